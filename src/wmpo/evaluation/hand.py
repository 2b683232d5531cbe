"""Where the robot is in a picture, read without knowing the camera: does the imagined hand go where it was sent?

The sum of the actions says where a robot that moves by steps has been sent, so recorded episodes label their own
pictures. A small network learns to read that sum off real frames; what it reads off an imagined frame, against what it
reads off the real one, is how far the imagined robot is from the real one. Pixel distances do not show that: a smeared
arm can be near the real picture (dev/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from wmpo.data.episode import Episode
from wmpo.nn import autocast, best_device, to_unit
from wmpo.noise import torch_generator

READABLE = 0.8
"""Axes of which a reader explains less than this share of the variance in other frames are not read: grippers, turns
that nobody sees, and actions that name places instead of movements."""
MOST = 20_000
"""Frames to learn from, or to tell from whether axes can be read; of more, evenly spread ones are taken."""
NOISE = 6.0
"""Standard deviation of the noise on pictures to learn from, in grey levels, so that blur is no riddle."""


@dataclass(frozen=True, slots=True)
class HandReader:
    """Reads the sums of the actions since an episode began off its frames, those of the ``axes`` that can be read."""

    net: nn.Module
    mean: Float[Tensor, " A"]
    scale: Float[Tensor, " A"]
    axes: Bool[Tensor, " A"]

    @torch.no_grad()
    def __call__(self, frames: UInt8[Tensor, "M h w 3"]) -> Float[Tensor, "M a"]:
        """In actions: 1 is as far as an action of 1 moves."""
        return (_read(self.net, frames) * self.scale + self.mean)[:, self.axes]

    def apart(self, real: UInt8[Tensor, "M h w 3"], imagined: UInt8[Tensor, "M h w 3"]) -> Float[Tensor, " M"]:
        """Distance of the two readings; NaN where no axis can be read."""
        if not self.axes.any():
            return torch.full((len(real),), torch.nan)
        return (self(real) - self(imagined)).norm(dim=1)


def learn_to_read(
    learn: Sequence[Episode], other: Sequence[Episode], *, seed: int, num_steps: int = 600, batch_size: int = 64
) -> HandReader:
    """From the frames of ``learn``; which axes can be read is told by those of ``other``. Actions are executed ones."""
    (frames, sums), (unseen, truth) = _labelled(learn), _labelled(other)
    mean, scale = sums.mean(dim=0), sums.std(dim=0) + 1e-6
    height, width = frames.shape[1:3]
    generator = torch_generator(seed, "hand", 0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = _network(height, width, sums.shape[1]).to(best_device())
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    for _ in range(num_steps):
        rows = torch.randint(len(frames), (batch_size,), generator=generator)
        noise = NOISE * torch.randn(batch_size, *frames.shape[1:], generator=generator)
        noisy = (frames[rows] + noise).clamp(0, 255).to(torch.uint8)
        loss = (_read(net, noisy) - (sums[rows] - mean) / scale).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    every = HandReader(net, mean, scale, torch.ones(sums.shape[1], dtype=torch.bool))
    wrong = torch.cat([every(part) for part in unseen.split(256)]) - truth
    explained = 1 - wrong.var(dim=0) / truth.var(dim=0).clamp(min=1e-12)
    return HandReader(net, mean, scale, explained > READABLE)


def _labelled(episodes: Sequence[Episode]) -> tuple[UInt8[Tensor, "M h w 3"], Float[Tensor, "M A"]]:
    every = math.ceil(sum(len(e.frames) for e in episodes) / MOST)
    sums = [np.concatenate([np.zeros_like(e.actions[:1]), np.cumsum(e.actions, axis=0)])[::every] for e in episodes]
    frames = [torch.from_numpy(e.frames[::every]) for e in episodes]
    return torch.cat(frames), torch.from_numpy(np.concatenate(sums)).float()


def _network(height: int, width: int, out: int) -> nn.Sequential:
    """Halves the picture four times, then reads it whole: places matter."""
    widths = (12, 48, 96, 96)
    layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
    cells = (height // 16) * (width // 16)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(widths[-1] * cells, 256), nn.SiLU(), nn.Linear(256, out)
    )  # fmt: skip


def _read(net: nn.Module, frames: UInt8[Tensor, "M h w 3"]) -> Float[Tensor, "M A"]:
    device = next(net.parameters()).device
    with autocast(device):
        return net(to_unit(frames.to(device))).float().cpu()
