"""Actions to tokens and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ActionCodec:
    """Uniform bins over actions normalised by their quantiles: 2 (a - q01) / (q99 - q01) - 1 (arXiv 2511.09515).

    ``low`` and ``high`` are q01 and q99 of each action dimension, in the environment's units. A chunk [K, A] becomes
    N = K * A tokens, time first.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    chunk_size: int
    num_bins: int

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or any(not lo < hi for lo, hi in zip(self.low, self.high, strict=True)):
            raise ValueError(f"action quantiles must satisfy low < high in every dimension: {self.low}, {self.high}")

    @classmethod
    def fit(cls, actions: Float[Tensor, "S A"], chunk_size: int, num_bins: int) -> ActionCodec:
        """From recorded actions. A dimension that never moves gets a range of 2 around its value."""
        if not torch.isfinite(actions).all():
            raise ValueError("recorded actions contain NaN or infinity; repair or drop those episodes")
        low, high = torch.quantile(actions.double(), torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
        still = high - low < 1e-6
        return cls(
            tuple(torch.where(still, low - 1, low).tolist()),
            tuple(torch.where(still, high + 1, high).tolist()),
            chunk_size,
            num_bins,
        )

    @property
    def action_dim(self) -> int:
        return len(self.low)

    @property
    def num_tokens(self) -> int:
        return self.chunk_size * self.action_dim

    def normalize(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """To [-1, 1] between the quantiles, not clipped."""
        low, high = torch.tensor(self.low).to(actions), torch.tensor(self.high).to(actions)
        return 2 * (actions - low) / (high - low) - 1

    def encode(self, chunk: Float[Tensor, "*B K A"]) -> Int[Tensor, "*B N"]:
        """The nearest bin of each number."""
        unit = self.normalize(chunk).clamp(-1, 1)
        return ((unit + 1) / 2 * (self.num_bins - 1)).round().long().flatten(-2)

    def decode(self, tokens: Int[Tensor, "*B N"]) -> Float[Tensor, "*B K A"]:
        """The centre of each bin, in the environment's units."""
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        unit = tokens.cpu().float() / (self.num_bins - 1)
        return low + unit.unflatten(-1, (self.chunk_size, self.action_dim)) * (high - low)
