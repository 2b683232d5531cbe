"""The network of the small world model: what is known of a frame in, features of the next one out."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

MAPS = 16
"""Channels of the maps that tell every cell where the actions lead."""


class FilmBlock(nn.Module):
    """Residual block of two convolutions; the condition scales and shifts the features between them."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        for parameter in (*self.conv2.parameters(), *self.film.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # (B, c, y, x), (B, condition)
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(torch.relu(self.norm(x)))
        return x + self.conv2(torch.relu(h * (1 + scale) + shift))


class Level(nn.ModuleList):
    """The residual blocks of one resolution."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self:
            x = block(x, condition)
        return x


class UNet(nn.Module):
    """From what is known [B, C_in, y, x] and a condition [B, condition] to one frame's features [B, C_out, y, x]."""

    def __init__(
        self, known: int, out: int, widths: tuple[int, ...], grid: int, num_views: int, *, blocks: int, condition: int
    ) -> None:
        super().__init__()
        if grid % 2 ** (len(widths) - 1):
            raise ValueError(f"a grid of {grid} cells cannot be halved {len(widths) - 1} times")
        pairs = list(pairwise(widths))
        self.first = nn.Conv2d(known + MAPS, widths[0], 1)
        self.position = nn.Parameter(torch.zeros(1, widths[0], grid, num_views * grid))  # most cameras stand still
        coarse = grid // 2 ** (len(widths) - 1)
        self.coarse = coarse, num_views * coarse
        # Where the actions lead the hand, as maps: modulating features everywhere alike says it poorly.
        self.place = nn.Linear(condition, widths[-1] * num_views * coarse**2)
        self.map = nn.Linear(condition, MAPS * num_views * grid**2)

        def level(width: int) -> Level:
            return Level(FilmBlock(width, condition) for _ in range(blocks))

        self.down = nn.ModuleList(level(width) for width in widths)
        self.halve = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.enlarge = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(level(width) for width in widths[:-1])
        self.last = nn.Conv2d(widths[0], out, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub does not know it

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = torch.cat([x, self.map(condition).view(len(x), MAPS, *x.shape[-2:])], dim=1)
        h = self.first(x.contiguous(memory_format=torch.channels_last)) + self.position
        skips = []
        for level, halve in zip(self.down, self.halve, strict=False):  # the last level is not halved
            skips.append(level(h, condition))
            h = halve(skips[-1])
        h = h + self.place(condition).view(len(h), -1, *self.coarse)
        h = self.down[-1](h, condition)
        for i in reversed(range(len(self.up))):
            h = nn.functional.pixel_shuffle(self.enlarge[i](h), 2) + skips[i]
            h = self.up[i](h, condition)
        return self.last(torch.relu(h)).float()
