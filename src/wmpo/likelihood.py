"""Logits to tokens, log-probabilities and entropy: the one path for rollouts, cloning and reinforcement learning.

The tokens of a chunk are decoded in parallel, so they are independent given the observation, and the probability of a
chunk is the product over its N tokens.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


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
