"""One recorded episode."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Frame ``f`` is seen after ``f`` actions, so there is one frame more than there are actions.

    ``solved_at`` is the number of executed actions after which the task was first solved, or -1. Frames after it, if
    any, are real too (the chunk is played to its end).
    """

    frames: UInt8[np.ndarray, "L h w 3"]
    actions: Float[np.ndarray, "S A"]
    solved_at: int
    instruction: str
    start: int
    "The simulator seed that names the start state."
    episode_id: int
    policy: str
    "Who acted: ``expert``, ``base``, ``improved``, ..."

    def __post_init__(self) -> None:
        if len(self.frames) != len(self.actions) + 1:
            raise ValueError(f"episode {self.episode_id}: {len(self.frames)} frames for {len(self.actions)} actions")
        if not -1 <= self.solved_at <= len(self.actions) or self.solved_at == 0:
            raise ValueError(f"episode {self.episode_id}: solved_at {self.solved_at} outside 1..{len(self.actions)}")
        if not np.isfinite(self.actions).all():
            raise ValueError(f"episode {self.episode_id}: actions contain NaN or infinity")

    @property
    def success(self) -> bool:
        return self.solved_at > 0

    def until_solved(self) -> Episode:
        """The part of a solved episode in which its success was earned."""
        return replace(self, frames=self.frames[: self.solved_at + 1], actions=self.actions[: self.solved_at])
