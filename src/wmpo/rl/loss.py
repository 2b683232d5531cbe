"""The clipped policy-gradient loss of WMPO (arXiv 2511.09515).

The paper writes one ratio per chunk, its released code one per token. ``ratio="token"`` is the default here too; both
clip asymmetrically ("clip-higher") and have neither KL penalty nor entropy bonus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How far one update may move the policy."""

    low: float = 0.2
    "A ratio below 1 - low gets no gradient when the advantage is negative."
    high: float = 0.28
    "A ratio above 1 + high gets no gradient when the advantage is positive."
    ratio: Literal["token", "chunk"] = "token"
    "One ratio per token (the released code) or per chunk (the paper)."


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """``total`` is a sum that carries its divisor already, so micro-batches and workers simply add up. The others are
    sums over executed tokens, to be divided by ``num_tokens``."""

    total: Float[Tensor, ""]
    clipped: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    num_tokens: int


def policy_loss(
    logprob: Float[Tensor, "M N"],
    old_logprob: Float[Tensor, "M N"],
    mask: Bool[Tensor, "M N"],
    advantage: Float[Tensor, " M"],
    weight: Float[Tensor, " M"],
    num_episodes: int,
    clip: ClipConfig,
) -> PolicyLoss:
    """Mean over the executed tokens of an episode, then mean over the episodes.

    Args:
        weight: 1 / (executed tokens of the decision's episode).
        num_episodes: of the whole minibatch, over all workers.
    """
    log_ratio = torch.where(mask, logprob - old_logprob, 0.0)
    if clip.ratio == "chunk":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    limited = ratio.clamp(1 - clip.low, 1 + clip.high)
    gain = advantage.unsqueeze(1)
    surrogate = torch.minimum(ratio * gain, limited * gain)
    total = -(surrogate * mask * weight.unsqueeze(1)).sum() / num_episodes
    with torch.no_grad():
        clipped = ((ratio * gain > limited * gain) & mask).float().sum()
        kl = ((ratio - 1 - log_ratio) * mask).sum()  # the low-variance estimator of KL(old | new)
    return PolicyLoss(total, clipped, kl, int(mask.sum()))
