"""Training of the image tokenizer on recorded frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.nn import to_unit
from wmpo.noise import torch_generator
from wmpo.report.run import StageLog
from wmpo.rng import keyed
from wmpo.train.fit import FitConfig, Part, Training, fit
from wmpo.world_model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """Training of the tokenizer."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(num_steps=1500, batch_size=32, learning_rate=3e-3))
    "The training loop."
    foreground: float = 8.0
    "Extra weight of pixels that differ from the median picture: hand, objects and markers are few pixels."

    def validate(self) -> None:
        """Raises ValueError for a batch in parts: each would be normalised by statistics of its own."""
        if self.fit.micro_batch:
            raise ValueError(
                f"the tokenizer's fit.micro_batch {self.fit.micro_batch} must be 0: its latents are normalised over "
                "the batch; lower its fit.batch_size instead"
            )


def train_tokenizer(
    tokenizer: Tokenizer,
    episodes: Sequence[Episode],
    config: TokenizerTraining,
    *,
    seed: int,
    checkpoint: Path,
    log: StageLog,
) -> None:
    """Minimises a foreground-weighted L1 distance, in place, then fixes the latents' mean and variance."""
    config.validate()
    frames = torch.from_numpy(np.concatenate([episode.frames for episode in episodes]))
    background = to_unit(frames[:: max(1, len(frames) // 200)]).median(dim=0).values
    device = next(tokenizer.parameters()).device

    def batch(step: int) -> Part:
        index = torch.from_numpy(keyed(seed, "tokenizer/batch", step).integers(len(frames), size=config.fit.batch_size))
        images = to_unit(frames[index])
        weight = foreground_weight(images, background, config.foreground).to(device)
        images = images.to(device)

        def loss(rows: slice) -> Tensor:
            latents = tokenizer.latents(images[rows])
            noise = torch.randn(latents.shape, generator=torch_generator(seed, "tokenizer/noise", step))
            decoded = tokenizer.images(latents + tokenizer.config.latent_noise * noise.to(device))
            return (weight[rows] * (decoded - images[rows]).abs()).mean()

        return loss

    fit(Training(tokenizer, batch, config.fit), config.fit, checkpoint=checkpoint, log=log)
    _fix_statistics(tokenizer, frames)


def foreground_weight(
    images: Float[Tensor, "M 3 h w"], background: Float[Tensor, "3 h w"], extra: float
) -> Float[Tensor, "M 1 h w"]:
    """Pixel weights, on average 1; pixels next to the foreground count as foreground, so that outlines stay."""
    distance = (images - background).abs().amax(dim=1, keepdim=True)
    foreground = torch.nn.functional.max_pool2d((distance / 0.2).clamp(max=1), 3, stride=1, padding=1)
    weight = 1 + extra * foreground
    return weight / weight.mean()


@torch.no_grad()
def _fix_statistics(tokenizer: Tokenizer, frames: UInt8[Tensor, "M h w 3"]) -> None:
    """Running averages lag behind the averaged weights; measure mean and variance once more, exactly."""
    device = next(tokenizer.parameters()).device
    sample = frames[:: max(1, len(frames) // 1024)]
    raw = torch.cat([tokenizer.encoder(to_unit(part).to(device)).float() for part in sample.split(128)])
    tokenizer.normalize.running_mean.copy_(raw.mean(dim=(0, 2, 3)))  # type: ignore[union-attr]
    tokenizer.normalize.running_var.copy_(raw.var(dim=(0, 2, 3)))  # type: ignore[union-attr]
