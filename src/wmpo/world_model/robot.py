"""The robot, drawn from its commands alone.

Where a robot is follows from the sum of its actions, whatever else is in the picture. A network that has to move the
last frame's pixels blurs an arm that moves far between frames, until the hand is gone after some chunks. This one draws
the arm for every pose, as a layer over the picture; it never sees a frame, so its errors do not add up (dev/LOG.md).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wmpo.nn import join_views

POINTS = 4
"""Points of each view that follow the hand."""
BUMPS = (0.4, 0.12)
"""Standard deviations of the bumps around a point; a view reaches from -1 to 1."""
PLANES = POINTS * (2 + len(BUMPS))
"""What every cell is told of the points: the two coordinates that it has from each, and the bumps."""
WAVES = 48
"""Directions in the space of sums of actions along which these are read as waves, in three octaves."""
CELL = 4 * 4
"""Pixels of a cell of the latents' grid."""
WIDTH = 256
"""Of the hidden layers that read sums and actions."""


class Pointers(nn.Module):
    """Sums of actions [B, A] to points of each view [B * V, POINTS, 2]: a linear projection, as of a camera far away,
    and what perspective adds to it, both learned.

    Told by a vector where the hand is, a network must learn a picture for every place. If every cell is told where it
    lies from the hand, what is drawn around a hand is the same everywhere.
    """

    def __init__(self, action_dim: int, num_views: int) -> None:
        super().__init__()
        self.linear = nn.Linear(action_dim, num_views * POINTS * 2)
        self.bend = nn.Sequential(
            nn.Linear(action_dim, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, num_views * POINTS * 2)
        )
        nn.init.normal_(self.linear.weight, std=0.3)
        nn.init.zeros_(self.linear.bias)
        for parameter in self.bend[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, sums: Float[Tensor, "B A"]) -> Float[Tensor, "R P 2"]:
        with torch.autocast(sums.device.type, enabled=False):  # positions need more than 8 bits
            return (self.linear(sums) + self.bend(sums)).view(-1, POINTS, 2)

    @staticmethod
    def maps(points: Float[Tensor, "R P 2"], size: int) -> Float[Tensor, "R c size size"]:
        """What every cell of a square of ``size`` cells is told."""
        at = (torch.arange(size, device=points.device) + 0.5) * (2 / size) - 1
        away = torch.stack(torch.meshgrid(at, at, indexing="xy")) - points[..., None, None]
        near = away.square().sum(dim=2, keepdim=True)
        return torch.cat([away, *(torch.exp(-near / (2 * width**2)) for width in BUMPS)], dim=2).flatten(1, 2)


class RobotLayer(nn.Module):
    """Sums of actions [B, A] and the ``latest`` of them [B, n, A], the newest last, both scaled to about -1 to 1, to
    colours in [-1, 1] and an opacity [B, 4, h, V * w]; the opacity is a logit.

    ``channels``: widths at a quarter of the latents' ``grid``, half of it and the grid, whose cells are 4 pixels wide.
    Finer convolutions would take two thirds of the time.
    """

    waves: Tensor

    def __init__(self, channels: tuple[int, int, int], action_dim: int, latest: int, grid: int, num_views: int) -> None:
        super().__init__()
        self.num_views, self.coarse = num_views, grid // 4
        octaves = torch.tensor([2.0, 4.0, 8.0]).repeat_interleave(WAVES // 3)
        draw = torch.Generator().manual_seed(0)
        self.register_buffer("waves", torch.randn(action_dim, WAVES, generator=draw) * octaves)
        self.pose = nn.Sequential(
            nn.Linear(action_dim * (1 + latest) + 2 * WAVES, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, num_views * channels[0] * self.coarse**2),
        )  # fmt: skip
        sizes = [self.coarse * 2**i for i in range(len(channels))]
        self.place = nn.ParameterList(
            torch.zeros(num_views, width, size, size) for width, size in zip(channels, sizes, strict=True)
        )
        self.pointers = Pointers(action_dim, num_views)
        self.near = nn.ModuleList(nn.Conv2d(PLANES, width, 1) for width in channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in channels)
        self.enlarge = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for coarse, fine in pairwise(channels))
        self.last = nn.Conv2d(channels[-1], 4 * CELL, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        self.last.bias = nn.Parameter(torch.tensor([0.0] * (3 * CELL) + [-2.0] * CELL))  # at first nearly transparent
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub does not know it

    def forward(self, sums: Float[Tensor, "B A"], latest: Float[Tensor, "B n A"]) -> Float[Tensor, "B 4 h w"]:
        angles = sums @ self.waves
        clues = torch.cat([sums, latest.flatten(1), angles.sin(), angles.cos()], dim=1)
        points = self.pointers(sums)
        h = self.pose(clues).view(len(points), -1, self.coarse, self.coarse)
        for i, (place, near, conv) in enumerate(zip(self.place, self.near, self.convs, strict=True)):
            told = place.repeat(len(sums), 1, 1, 1) + near(self.pointers.maps(points, place.shape[-1]))
            h = torch.relu(h + told)
            h = h + conv(h)
            if i < len(self.enlarge):
                h = nn.functional.pixel_shuffle(self.enlarge[i](torch.relu(h)), 2)
        return join_views(nn.functional.pixel_shuffle(self.last(torch.relu(h)), 4).float(), self.num_views)
