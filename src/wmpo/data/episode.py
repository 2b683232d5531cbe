"""One recorded episode."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from wmpo.views import ONE_VIEW


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
    views: tuple[str, ...] = ONE_VIEW
    "Names of the cameras whose pictures, equally wide, stand side by side in a frame, from the left."

    def __post_init__(self) -> None:
        if len(self.frames) != len(self.actions) + 1:
            raise ValueError(f"episode {self.episode_id}: {len(self.frames)} frames for {len(self.actions)} actions")
        if not -1 <= self.solved_at <= len(self.actions) or self.solved_at == 0:
            raise ValueError(f"episode {self.episode_id}: solved_at {self.solved_at} outside 1..{len(self.actions)}")
        if not np.isfinite(self.actions).all():
            raise ValueError(f"episode {self.episode_id}: actions contain NaN or infinity")
        check_views(self.views)
        if self.frames.shape[2] % len(self.views):
            raise ValueError(
                f"episode {self.episode_id}: frames {self.frames.shape[2]} pixels wide are not the pictures of "
                f"{len(self.views)} cameras side by side ({', '.join(self.views)})"
            )

    @property
    def success(self) -> bool:
        return self.solved_at > 0

    def until_solved(self) -> Episode:
        """The part of a solved episode in which its success was earned."""
        return replace(self, frames=self.frames[: self.solved_at + 1], actions=self.actions[: self.solved_at])


def check_views(views: tuple[str, ...]) -> None:
    """Raises ValueError for names that no dataset can keep."""
    if not views or len(set(views)) < len(views) or any(not name or set(name) & set("/\\\0") for name in views):
        raise ValueError(f"names of cameras must be different, not empty and without a slash: {list(views)}")
