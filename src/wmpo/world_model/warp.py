"""Motion compensation: most of the next picture is in the last one, only elsewhere.

A network that must redraw a moving arm out of latents spends its training on learning to draw. Saying where every pixel
comes from is far easier to learn: after the same 100 seconds from scratch the replayed distance was half as large
(dev/LOG.md). The idea is that of action-conditioned video prediction by moving pixels (arXiv 1605.07157).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MOTION_CHANNELS = 8
"""Two displacements of two numbers each, and the preferences for four sources."""


def move(image: Float[Tensor, "B 3 h w"], displacement: Float[Tensor, "B 2 h w"]) -> Float[Tensor, "B 3 h w"]:
    """Each pixel is fetched from ``displacement`` (x, y; in half widths of the picture) away; the border repeats."""
    height, width = image.shape[-2:]
    x = (torch.arange(width, device=image.device) + 0.5) * (2 / width) - 1
    y = (torch.arange(height, device=image.device) + 0.5) * (2 / height) - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) + displacement.movedim(1, -1)
    return torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


def compose(
    last: Float[Tensor, "B 3 h w"],
    first: Float[Tensor, "B 3 h w"],
    made: Float[Tensor, "B 3 h w"],
    motion: Float[Tensor, "B 8 h w"],
) -> Float[Tensor, "B 3 h w"]:
    """A mixture, pixel by pixel, of the moved last frame, the moved first frame, the first frame where it stands (the
    background behind what moved away) and what was made anew."""
    near, far, preference = motion.float().split((2, 2, 4), dim=1)
    prior = torch.tensor([2.0, 0.0, 0.0, 0.0], device=motion.device).view(1, 4, 1, 1)  # at first, copy the last frame
    share = (preference + prior).softmax(dim=1).unsqueeze(2)
    sources = torch.stack([move(last, 0.1 * near), move(first, 0.3 * far), first, made], dim=1)
    return (share * sources).sum(dim=1)
