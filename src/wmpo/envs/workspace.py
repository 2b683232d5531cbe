"""Where a robot's controller lets the hand go.

Policies command movements, and a controller that moves the hand stops it at the border of its workspace. So the sum of
the commands runs away from where the hand can be (in two thirds of the chunks of a failing policy by more than two
centimetres, dev/LOG.md), and a world model that is told the commands must guess what the controller did. What the
controller really executes is plain arithmetic on known constants, the same for a simulated and a physical robot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from wmpo.data.episode import Episode


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Limits of the sum of all actions since an episode's start, one pair for each action dimension, in units of
    actions; infinite where nothing is limited."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def unlimited(cls, action_dim: int) -> Workspace:
        return cls(low=(-math.inf,) * action_dim, high=(math.inf,) * action_dim)

    def execute(
        self, position: Float[np.ndarray, "B A"], chunk: Float[np.ndarray, "B K A"]
    ) -> tuple[Float[np.ndarray, "B K A"], Float[np.ndarray, "B A"]]:
        """What remains of the commands at the border, and the sums after them."""
        return execute(np.array(self.low), np.array(self.high), position, chunk)

    def executed(self, episode: Episode) -> Episode:
        """The same episode with the actions that the controller executed, as a world model learns and replays them."""
        actions = episode.actions
        return replace(episode, actions=self.execute(np.zeros_like(actions[:1]), actions[None])[0][0])


@dataclass(frozen=True)
class Workspaces:
    """Those of a run's tasks, by their sentences. Where there is one task, whatever its episodes are called."""

    by_task: Mapping[str, Workspace]

    def of(self, instruction: str) -> Workspace:
        """Raises ValueError for a sentence that is none of several."""
        first, *others = self.by_task.values()
        if others and instruction not in self.by_task:
            raise ValueError(f"{instruction!r} is none of this run's tasks, which are {', '.join(self.by_task)}")
        return self.by_task[instruction] if others else first

    def executed(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Each as the controller executed it."""
        return [self.of(episode.instruction).executed(episode) for episode in episodes]

    def limits(self, instructions: Sequence[str]) -> tuple[Float[np.ndarray, "B A"], Float[np.ndarray, "B A"]]:
        """Of the sums of actions of several episodes."""
        rows = [self.of(instruction) for instruction in instructions]
        return np.array([row.low for row in rows]), np.array([row.high for row in rows])


def execute(
    low: Float[np.ndarray, "*B A"],
    high: Float[np.ndarray, "*B A"],
    position: Float[np.ndarray, "B A"],
    chunk: Float[np.ndarray, "B K A"],
) -> tuple[Float[np.ndarray, "B K A"], Float[np.ndarray, "B A"]]:
    """What remains of commands between limits of their sums, and the sums after them."""
    low, high, executed = low.astype(chunk.dtype), high.astype(chunk.dtype), np.empty_like(chunk)
    for k in range(chunk.shape[1]):
        following = np.clip(position + chunk[:, k], low, high)
        executed[:, k] = following - position
        position = following
    return executed, position
