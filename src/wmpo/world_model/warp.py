"""Motion compensation: most of the next picture is in the last one, only elsewhere.

A network that must redraw a moving arm out of latents spends its training on learning to draw. Saying where every pixel
comes from is far easier to learn: after the same 100 seconds from scratch the replayed distance was half as large
(dev/LOG.md). The idea is that of action-conditioned video prediction by moving pixels (arXiv 1605.07157).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MOTION_CHANNELS = 9
"""Two displacements of two numbers each, and the preferences for five sources."""


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
    robot: Float[Tensor, "B 4 h w"],
    motion: Float[Tensor, "B m h w"],
) -> Float[Tensor, "B 3 h w"]:
    """A mixture, pixel by pixel, of the moved last frame, the moved first frame, the first frame where it stands (the
    background behind what moved away), what was made anew, and the robot as drawn from its pose."""
    near, far, preference = motion.float().split((2, 2, 5), dim=1)
    colours, opacity = robot.float().split((3, 1), dim=1)
    still = torch.zeros_like(opacity)  # at first, the robot over the last frame
    share = (preference + torch.cat([still + 2, still, still, still, opacity + 2], dim=1)).softmax(dim=1).unsqueeze(2)
    sources = torch.stack([move(last, 0.1 * near), move(first, 0.3 * far), first, made, colours], dim=1)
    return (share * sources).sum(dim=1)
