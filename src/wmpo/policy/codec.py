"""Actions to tokens and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _Sizes:
    """What follows from the quantiles and the chunk."""

    __slots__ = ()
    low: tuple[float, ...]
    chunk_size: int

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.low)

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.chunk_size * self.action_dim


def quantiles(actions: Float[Tensor, "S A"]) -> tuple[Float[Tensor, " A"], Float[Tensor, " A"]]:
    """q01 and q99 of each dimension of recorded actions; one that never moves gets a range of 2 around its value.

    Raises ValueError for actions that are not finite.
    """
    if not torch.isfinite(actions).all():
        raise ValueError("recorded actions contain NaN or infinity; repair or drop those episodes")
    low, high = torch.quantile(actions.double(), torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    still = high - low < 1e-6
    return torch.where(still, low - 1, low), torch.where(still, high + 1, high)


@dataclass(frozen=True, slots=True)
class ActionCodec(_Sizes):
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
        """From recorded actions; raises ValueError as :func:`quantiles` does."""
        low, high = quantiles(actions)
        return cls(tuple(low.tolist()), tuple(high.tolist()), chunk_size, num_bins)

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> ActionCodec:
        """From its fields as JSON has them."""
        return cls(**saved | {"low": tuple(saved["low"]), "high": tuple(saved["high"])})

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


@dataclass(frozen=True, slots=True)
class PathCodec:
    """Continuous actions at the end of denoising paths (:mod:`wmpo.denoising`), normalised: (a - center) / scale.

    Actions leave within ``limit`` of the center, in units of the scale.
    """

    center: tuple[float, ...]
    scale: tuple[float, ...]
    chunk_size: int
    limit: float = math.inf

    def __post_init__(self) -> None:
        if len(self.center) != len(self.scale) or any(not scale > 0 for scale in self.scale):
            raise ValueError(f"every action dimension needs a scale above 0: {self.center}, {self.scale}")

    @classmethod
    def fit(cls, actions: Float[Tensor, "S A"], chunk_size: int) -> PathCodec:
        """From recorded actions: their 1 % and 99 % quantiles become -1 and 1, and nothing outside is played."""
        low, high = quantiles(actions)
        return cls(tuple(((low + high) / 2).tolist()), tuple(((high - low) / 2).tolist()), chunk_size, 1.0)

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> PathCodec:
        """From its fields as JSON has them."""
        return cls(**saved | {name: tuple(saved[name]) for name in ("center", "scale")})

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.center)

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.chunk_size * self.action_dim

    @property
    def low(self) -> tuple[float, ...]:
        return tuple(c - self.limit * s for c, s in zip(self.center, self.scale, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        return tuple(c + self.limit * s for c, s in zip(self.center, self.scale, strict=True))

    def normalize(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        center, scale = torch.tensor(self.center).to(actions), torch.tensor(self.scale).to(actions)
        return (actions - center) / scale

    def decode(self, tokens: Float[Tensor, "*B N S"]) -> Float[Tensor, "*B K A"]:
        """Where the paths end, in the environment's units."""
        unit = tokens[..., -1].cpu().float().clamp(-self.limit, self.limit)
        return unit.unflatten(-1, (self.chunk_size, self.action_dim)) * torch.tensor(self.scale) + torch.tensor(
            self.center
        )


@dataclass(frozen=True, slots=True)
class VocabularyCodec(_Sizes):
    """The bins of OpenVLA (arXiv 2406.09246), which end the language model's vocabulary and run backwards.

    Token ``t`` here is the vocabulary's ``first bin + t``. The last one means the lowest action, and there is one token
    more than there are intervals between the ``num_bins`` edges, so the first two tokens mean the same. Dimensions that
    are not ``scaled`` (mostly grippers) are kept in the data set's own units, in [-1, 1].
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    scaled: tuple[bool, ...]
    chunk_size: int
    num_bins: int = 256

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.scaled):
            raise ValueError(f"action quantiles differ in length: {self.low}, {self.high}, mask {self.scaled}")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"action quantiles must satisfy q01 <= q99 in every dimension: {self.low}, {self.high}")

    @classmethod
    def fit(cls, actions: Float[Tensor, "S A"], chunk_size: int, num_bins: int) -> VocabularyCodec:
        """From recorded actions, all dimensions scaled; raises ValueError as :func:`quantiles` does."""
        low, high = quantiles(actions)
        return cls(tuple(low.tolist()), tuple(high.tolist()), (True,) * len(low), chunk_size, num_bins)

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> VocabularyCodec:
        """From its fields as JSON has them."""
        return cls(**saved | {name: tuple(saved[name]) for name in ("low", "high", "scaled")})

    def normalize(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """To [-1, 1] between the quantiles, not clipped; a dimension that never moves becomes 0."""
        low, span, scaled = self._constants(actions)
        unit = torch.where(span > 0, 2 * (actions - low) / span.clamp(min=1e-12) - 1, torch.zeros_like(actions))
        return torch.where(scaled, unit, actions)

    def encode(self, chunk: Float[Tensor, "*B K A"]) -> Int[Tensor, "*B N"]:
        """The token of the interval that each number lies in."""
        edges = torch.linspace(-1, 1, self.num_bins, dtype=torch.float64, device=chunk.device)
        unit = self.normalize(chunk.double()).clamp(-1, 1)
        return (self.num_bins - torch.bucketize(unit, edges, right=True)).flatten(-2)

    def decode(self, tokens: Int[Tensor, "*B N"]) -> Float[Tensor, "*B K A"]:
        """The centre of each interval, in the environment's units."""
        edges = torch.linspace(-1, 1, self.num_bins, dtype=torch.float64)
        centres = (edges[:-1] + edges[1:]) / 2
        interval = (self.num_bins - 1 - tokens.cpu()).clamp(0, self.num_bins - 2)
        unit = centres[interval].unflatten(-1, (self.chunk_size, self.action_dim))
        low, span, scaled = self._constants(unit)
        return torch.where(scaled, low + (unit + 1) / 2 * span, unit).float()

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = torch.tensor(self.low).to(like), torch.tensor(self.high).to(like)
        return low, high - low, torch.tensor(self.scaled, device=like.device)
