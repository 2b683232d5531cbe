"""Few sampling steps instead of thirty: the OpenSora-class world model learns to take large steps from itself.

Shortcut models (arXiv 2410.12557): the network also hears how large a step shall be, and one step of any size learns to
end where two halves of it end; the smallest halves are Euler steps along the flow. Chosen before consistency and
mean-flow training because the same weights still are the plain flow at step 0, so that thirty Euler steps remain the
reference and a dream can be checked against its finer self; because targets need forward passes only, where mean flows
(arXiv 2505.13447) differentiate forward through attention, which fused kernels cannot; and because no second network
has to be in memory. Differs from the paper: training begins with a trained flow, so most rows distil; targets come from
the present weights instead of averaged ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmpo.division import WHOLE, Division
from wmpo.noise import torch_generator
from wmpo.report.run import StageLog
from wmpo.rng import keyed
from wmpo.train.fit import FitConfig, Part, Training, fit
from wmpo.world_model import flow
from wmpo.world_model.opensora import OpenSoraWorldModel


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation of a trained world model, in recipes with an OpenSora-class one."""

    enabled: bool = False
    "Without it imagination takes all its Euler steps, as in the paper."
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(num_steps=4000, batch_size=16, learning_rate=1e-4, ema=0.999)
    )
    "The training loop."
    flow_share: float = 0.25
    "Part of each batch that goes on learning the plain flow from recorded frames."
    finest: int = 32
    "Euler steps of the sampler that is distilled, a power of two."
    shortcut_steps: int = 2
    "Sampling steps of a chunk afterwards, a power of two."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        if self.finest < 2 or self.finest.bit_count() > 1:
            raise ValueError(f"distillation.finest {self.finest} must be a power of two, at least 2")
        if not 1 <= self.shortcut_steps < self.finest or self.shortcut_steps.bit_count() > 1:
            raise ValueError(
                f"distillation.shortcut_steps {self.shortcut_steps} must be a power of two below finest {self.finest}"
            )
        if not 0 <= self.flow_share < 1:
            raise ValueError(f"distillation.flow_share {self.flow_share} must be at least 0 and below 1")


class Windows(Protocol):
    """Context frames with the frames of the chunk that follows, as latents, and the chunk's actions."""

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[Float[Tensor, "B T C y x"], Float[Tensor, "B K A"]]: ...


def distill_world_model(
    model: OpenSoraWorldModel, windows: Windows, config: DistillConfig, *, seed: int, checkpoint: Path, log: StageLog
) -> None:
    """Trains the transformer in place, in this process, then lets the model imagine in ``config.shortcut_steps``.

    To be called when the flow is trained, with the same windows; where the flow is trained further, set the model's
    ``shortcut_steps`` to 0 before, and distil again after. Goes on from ``checkpoint`` if there is one. Raises
    ValueError for settings that cannot be.
    """
    fit(distillation(model, windows, config, seed=seed), config.fit, checkpoint=checkpoint, log=log)
    model.config = replace(model.config, shortcut_steps=config.shortcut_steps)


def distillation(
    model: OpenSoraWorldModel, windows: Windows, config: DistillConfig, *, seed: int, division: Division = WHOLE
) -> Training:
    """Steps of all sizes on windows of recorded episodes."""
    config.validate()
    count = config.fit.batch_size
    num_plain = round(config.flow_share * count)
    device = model.action_low.device

    def batch(number: int) -> Part:
        rng, generator = keyed(seed, "distill/batch", number), torch_generator(seed, "distill/noise", number)
        latents, actions = windows.sample(rng, count)
        noise = torch.randn(latents.shape, generator=generator)
        time, step = flow.shortcut_times(count, config.finest, generator)
        time[:num_plain], step[:num_plain] = torch.randn(num_plain, generator=generator).sigmoid(), 0

        def loss(rows: slice) -> Tensor:
            tensors = (t[rows].to(device) for t in (latents, actions, noise, time, step))
            return model(*tensors, finest=1 / config.finest).mean()

        return loss

    return Training(model, batch, config.fit, division)
