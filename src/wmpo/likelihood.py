"""How chunks of actions are drawn from a policy and how probable they are: the one path for rollouts, cloning and
reinforcement learning.

The discrete tokens of a chunk are decoded in parallel, so they are independent given the observation, and the
probability of a chunk is the product over its N tokens. A policy that is not over discrete tokens has a ``likelihood``
of its own (flow matching: :mod:`wmpo.denoising`); nothing else in the package knows the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wmpo.nn import autocast
from wmpo.noise import row_gumbel
from wmpo.protocols import Policy, TokenCodec


def log_probs(
    logits: Float[Tensor, "*B N V"], tokens: Int[Tensor, "*B N"], temperature: float = 1.0
) -> Float[Tensor, "*B N"]:
    """Log-probability of each token under softmax(logits / temperature); always computed in float32."""
    scaled = logits.float() / max(temperature, 1e-6)
    return scaled.log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def sample(
    logits: Float[Tensor, "*B N V"], temperature: float, gumbel: Float[Tensor, "*B N V"] | None
) -> Int[Tensor, "*B N"]:
    """Tokens at a temperature (Gumbel-max); temperature 0 is greedy and needs no noise."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    assert gumbel is not None, "sampling needs noise"
    return (logits.float() / temperature + gumbel).argmax(dim=-1)


def entropy(logits: Float[Tensor, "*B N V"], temperature: float = 1.0) -> Float[Tensor, "*B N"]:
    """Entropy in nats of each token."""
    logp = (logits.float() / max(temperature, 1e-6)).log_softmax(dim=-1)
    return -(logp.exp() * logp).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class NoiseKeys:
    """What keys the noise of decisions: the same episode and chunk draw the same in any batch (:mod:`wmpo.rng`)."""

    seed: int
    episodes: Sequence[int]
    chunk: int


class Likelihood(Protocol):
    """Of one policy. ``seen`` is what its ``prepare`` made of B observations; results are on the CPU.

    Tokens are whatever the policy's codec decodes, [B, N] or [B, N, ...]; there are always N = K * A of them, time
    first, each with its own log-probability, so that those of actions which were not executed can be left out.
    """

    def draw(
        self, seen: Mapping[str, Tensor], temperature: float, keys: NoiseKeys | None
    ) -> tuple[Tensor, Float[Tensor, "B N"]]:
        """Tokens and their log-probabilities. Temperature 0 is greedy, needs no keys and is judged at 1."""

    def score(
        self, seen: Mapping[str, Tensor], tokens: Tensor, temperature: float
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        """Log-probabilities, with gradient, and entropies (nats), without."""

    def cloning_noise(self, count: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """What ``cloning_loss`` needs to be drawn for ``count`` chunks."""

    def cloning_loss(
        self, seen: Mapping[str, Tensor], actions: Float[Tensor, "B K A"], *noise: Tensor
    ) -> Float[Tensor, ""]:
        """The supervised loss of demonstrated chunks, in the environment's units: the mean over the rows."""


def of(policy: Policy) -> Likelihood:
    """The policy's own ``likelihood``; one that has none gives logits of discrete tokens."""
    own: Likelihood | None = getattr(policy, "likelihood", None)
    return own or TokenLikelihood(policy)


class TokenLikelihood:
    """A :class:`Likelihood` over discrete tokens: the policy gives logits [B, N, V], its codec encodes actions."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def _logits(self, seen: Mapping[str, Tensor]) -> Float[Tensor, "B N V"]:
        with autocast(next(iter(seen.values())).device):
            return self._policy(**seen)

    def draw(
        self, seen: Mapping[str, Tensor], temperature: float, keys: NoiseKeys | None
    ) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B N"]]:
        logits, noise = self._logits(seen).cpu(), None
        if temperature > 0:
            assert keys is not None, "sampling needs noise"
            noise = row_gumbel(keys.seed, "rollout/tokens", keys.episodes, keys.chunk, logits.shape[1:])
        tokens = sample(logits, temperature, noise)
        return tokens, log_probs(logits, tokens, temperature or 1.0)

    def score(
        self, seen: Mapping[str, Tensor], tokens: Int[Tensor, "B N"], temperature: float
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        logits = self._logits(seen)
        with torch.no_grad():
            spread = entropy(logits, temperature).cpu()
        return log_probs(logits, tokens.to(logits.device), temperature).cpu(), spread

    def cloning_noise(self, count: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Tokens need none."""
        return ()

    def cloning_loss(
        self, seen: Mapping[str, Tensor], actions: Float[Tensor, "B K A"], *noise: Tensor
    ) -> Float[Tensor, ""]:
        """Negative log-likelihood, nats a token."""
        logits = self._logits(seen)
        tokens = cast(TokenCodec, self._policy.codec).encode(actions)
        return -log_probs(logits, tokens.to(logits.device)).mean()
