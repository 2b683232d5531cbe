"""A flow-matching policy of about a million parameters: the trunk of :mod:`wmpo.policy.small` under continuous actions.

One query an action reads picture and sentence once; a small network then gives the velocity of the whole chunk at every
denoising step, which costs little beside the trunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wmpo.denoising import DenoisingConfig, PathLikelihood
from wmpo.nn import best_device
from wmpo.policy.codec import PathCodec
from wmpo.policy.small import Trunk, TrunkConfig
from wmpo.views import ONE_VIEW


@dataclass(frozen=True, kw_only=True)
class SmallFlowPolicyConfig(TrunkConfig):
    """Sizes of the small flow policy."""

    hidden: int = 256
    "Width of the velocity's network."
    denoising: DenoisingConfig = field(default_factory=lambda: DenoisingConfig(num_steps=5, times_per_sample=8))
    "How chunks are drawn."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        super().validate()
        self.denoising.validate()

    def fit(self, actions: Float[Tensor, "S A"], image_size: int, views: tuple[str, ...] = ONE_VIEW) -> SmallFlowPolicy:
        """An untrained policy for actions such as the recorded ones."""
        return self.build(PathCodec.fit(actions, self.chunk_size), image_size, views)

    def restore(self, about: dict[str, Any]) -> SmallFlowPolicy:
        """An untrained policy as another one's ``about()`` says."""
        views = tuple(about.get("views", ONE_VIEW))  # older files have one
        return self.build(PathCodec.restore(about["codec"]), about["image_size"], views)

    def build(self, codec: PathCodec, image_size: int, views: tuple[str, ...] = ONE_VIEW) -> SmallFlowPolicy:
        """Raises ValueError for a codec of another chunk size, or values without a meaning."""
        self.denoising.validate()
        return SmallFlowPolicy(self, codec, image_size, views).to(best_device())


class Velocity(nn.Module):
    """(context (B, D), state (B, J, N), time (B, J)) -> (B, J, N)."""

    NUM_FREQUENCIES = 8

    def __init__(self, dim: int, num_tokens: int, hidden: int) -> None:
        super().__init__()
        self.context, self.state = nn.Linear(dim, hidden), nn.Linear(num_tokens, hidden)
        self.time = nn.Linear(2 * self.NUM_FREQUENCIES, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
            for _ in range(2)
        )
        self.out = nn.Linear(hidden, num_tokens)

    def forward(self, context: Tensor, state: Tensor, time: Tensor) -> Tensor:
        angle = time.unsqueeze(-1) * math.pi * 2.0 ** torch.arange(self.NUM_FREQUENCIES, device=time.device)
        x = self.context(context).unsqueeze(1) + self.state(state)
        x = x + self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        for block in self.blocks:
            x = x + block(x)
        return self.out(x.relu())


class SmallFlowPolicy(Trunk):
    """A :class:`wmpo.denoising.FlowPolicy`."""

    config: SmallFlowPolicyConfig
    codec: PathCodec

    def __init__(
        self, config: SmallFlowPolicyConfig, codec: PathCodec, image_size: int, views: tuple[str, ...] = ONE_VIEW
    ) -> None:
        if codec.chunk_size != config.chunk_size:
            raise ValueError(f"codec {codec} does not fit policy {config}")
        super().__init__(config, num_queries=config.chunk_size, image_size=image_size, views=views)
        self.config, self.codec = config, codec
        self.field = Velocity(config.chunk_size * config.dim, codec.num_tokens, config.hidden)

    @property
    def likelihood(self) -> PathLikelihood:
        return PathLikelihood(self, self.config.denoising)

    def forward(self, frame: UInt8[Tensor, "B h w 3"], text: Tensor) -> Float[Tensor, "B D"]:
        return self.read(frame, text).flatten(1)

    def velocity(
        self, context: Float[Tensor, "B D"], states: Float[Tensor, "B J K A"], time: Float[Tensor, "B J"]
    ) -> Float[Tensor, "B J K A"]:
        return self.field(context, states.flatten(2), time).unflatten(2, states.shape[2:])
