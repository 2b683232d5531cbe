"""A cheap scene for measuring video models: a disc pushes a block over a textured table towards a green zone.

Deterministic, drawn with soft edges, 32 x 32 pixels, thousands of frames a second; actions are two numbers in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

SIZE, STEP, REACH, ZONE = 32, 0.16, 0.34, (0.62, 0.0, 0.3)
"""Pixels; displacement of a full action; distance at which disc and block touch; centre and half side of the zone."""


@dataclass(frozen=True, slots=True)
class Played:
    """Episodes that start in groups at the same place: frames 0 to L and the L actions between them."""

    frames: UInt8[Tensor, "B L h w 3"]
    actions: Float[Tensor, "B R 2"]


def play(num_starts: int, group_size: int, num_steps: int, seed: int) -> Played:
    """The hand goes behind the block and pushes it, sometimes towards the zone; every action is disturbed."""
    rng = np.random.default_rng(seed)
    hand = rng.uniform([-0.95, -0.8], [-0.4, 0.8], (num_starts, 2)).repeat(group_size, axis=0)
    block = rng.uniform([-0.3, -0.5], [0.25, 0.5], (num_starts, 2)).repeat(group_size, axis=0)
    paint = rng.uniform([0.6, 0.0, 0.0], [1.0, 0.35, 0.45], (num_starts, 3)).repeat(group_size, axis=0)
    aim = np.array(ZONE[:2]) + rng.normal(size=hand.shape) * [0.1, 0.35]
    frames, actions = [draw(hand, block, paint)], []
    for _ in range(num_steps):
        along = aim - block
        behind = block - REACH * along / np.linalg.norm(along, axis=1, keepdims=True)
        ready = np.linalg.norm(hand - behind, axis=1, keepdims=True) < 0.12
        wish = np.where(ready, along, behind - hand) / STEP
        action = np.clip(np.clip(wish, -1, 1) + 0.3 * rng.normal(size=hand.shape), -1, 1)
        hand = np.clip(hand + STEP * action, -1, 1)
        apart = block - hand
        distance = np.linalg.norm(apart, axis=1, keepdims=True)
        pushed = hand + apart / np.maximum(distance, 1e-6) * np.maximum(distance, REACH)
        block = np.clip(pushed, -0.9, 0.9)
        frames.append(draw(hand, block, paint))
        actions.append(action.astype(np.float32))
    return Played(torch.from_numpy(np.stack(frames, 1)), torch.from_numpy(np.stack(actions, 1)))


def draw(hand: np.ndarray, block: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """Positions [B, 2] in [-1, 1] and colours [B, 3] -> uint8 [B, h, w, 3]."""
    line = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")

    def inside(edge: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(np.clip(edge * SIZE * 1.5, -30, 30))))[..., None]

    def at(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x - place[:, 0, None, None], y - place[:, 1, None, None]

    table = 0.55 + 0.08 * np.sin(9 * x + 4 * y)[..., None] * np.array([1.0, 0.8, 0.6])
    zone = inside(np.maximum(np.abs(x - ZONE[0]), np.abs(y - ZONE[1])) - ZONE[2])
    picture = np.broadcast_to(
        table * (1 - 0.6 * zone) + 0.6 * zone * np.array([0.2, 0.8, 0.3]), (len(hand), *y.shape, 3)
    )
    for shape, colour in (
        (inside(np.maximum(*map(np.abs, at(block))) - 0.19), paint[:, None, None]),
        (inside(np.hypot(*at(hand)) - 0.15), np.array([0.1, 0.15, 0.3])),
    ):
        picture = picture * (1 - shape) + colour * shape
    return (255 * picture).round().astype(np.uint8)


class InZone:
    """A :class:`wmpo.protocols.RewardModel`: how much of the zone is as red as a block."""

    window = 1

    def __init__(self, threshold: float = 0.45) -> None:
        self.threshold = threshold

    def __call__(self, clips: UInt8[Tensor, "M W h w 3"], instructions: Sequence[str]) -> Float[Tensor, " M"]:
        low, high = (int((ZONE[0] + sign * 0.15 + 1) / 2 * SIZE) for sign in (-1, 1))
        top, bottom = (int((ZONE[1] + sign * 0.15 + 1) / 2 * SIZE) for sign in (-1, 1))
        middle = clips[:, -1, top:bottom, low:high].float()
        return ((middle[..., 0] - middle[..., 1]) > 60).float().mean(dim=(1, 2))


class Windows:
    """Latents of recorded episodes and windows over them, as training wants them."""

    def __init__(
        self, latents: Float[Tensor, "B L C y x"], actions: Float[Tensor, "B R 2"], num_context: int, size: int
    ):
        self.latents, self.actions, self.num_context, self.size = latents, actions, num_context, size

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Context frames and the ``size`` frames after them, as latents, and the actions between."""
        episode = torch.from_numpy(rng.integers(len(self.latents), size=count)).unsqueeze(1)
        now = torch.from_numpy(rng.integers(self.actions.shape[1] - self.size + 1, size=count)).unsqueeze(1)
        seen = (now + torch.arange(1 - self.num_context, self.size + 1)).clamp(min=0)
        return self.latents[episode, seen], self.actions[episode, now + torch.arange(self.size)]
