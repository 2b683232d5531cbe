"""Direct preference optimisation (DPO, arXiv 2305.18290) on whole episodes.

A sequence is all executed tokens of an episode; its log-probability is their sum. Nothing is divided by the length, as
in the original: so long episodes move the policy more than short ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """``total`` is the mean over pairs. ``margin`` is the implicit reward by which the success is preferred, in nats
    times beta, one a pair; the pair is told apart rightly where it is positive."""

    total: Float[Tensor, ""]
    margin: Float[Tensor, " M"]


def sequence_logprob(
    logprob: Float[Tensor, "D N"], executed: Bool[Tensor, "D N"], episode: Int[Tensor, " D"], num_episodes: int
) -> Float[Tensor, " B"]:
    """Sums the log-probabilities (nats) of executed tokens over the decisions of each episode.

    Args:
        episode: which of the ``num_episodes`` (B) each of the D decisions belongs to.
    """
    decision = torch.where(executed, logprob, 0.0).sum(dim=1)
    return torch.zeros(num_episodes, dtype=decision.dtype, device=decision.device).index_add(0, episode, decision)


def dpo_loss(
    chosen: Float[Tensor, " M"],
    rejected: Float[Tensor, " M"],
    reference_chosen: Float[Tensor, " M"],
    reference_rejected: Float[Tensor, " M"],
    beta: float,
) -> PreferenceLoss:
    """-log sigmoid(beta ((chosen - reference) - (rejected - reference))), mean over M pairs (equation 7).

    All are sequence log-probabilities in nats: of the policy that learns, and of the frozen reference.
    """
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return PreferenceLoss(-F.logsigmoid(margin).mean(), margin.detach())
