"""Group-relative advantages (GRPO, arXiv 2402.03300): an episode is compared with its siblings from the same start."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def group_advantages(
    reward: Float[Tensor, " B"], group: Int[Tensor, " B"], epsilon: float = 1e-6
) -> Float[Tensor, " B"]:
    """(R - mean) / (std + epsilon) inside each group; std with Bessel's correction, as the paper's code has it.

    A group of equal rewards gets zeros: it teaches nothing.
    """
    _, member, size = torch.unique(group, return_inverse=True, return_counts=True)
    zeros = torch.zeros(len(size), dtype=reward.dtype)
    mean = zeros.scatter_add(0, member, reward) / size
    centred = reward - mean[member]
    variance = zeros.scatter_add(0, member, centred.square()) / (size - 1).clamp(min=1)
    return centred / (variance.sqrt()[member] + epsilon)
