"""Where a robot's controller lets the hand go.

Policies command movements, and a controller that moves the hand stops it at the border of its workspace. So the sum of
the commands runs away from where the hand can be (in two thirds of the chunks of a failing policy by more than two
centimetres, dev/LOG.md), and a world model that is told the commands must guess what the controller did. What the
controller really executes is plain arithmetic on known constants, the same for a simulated and a physical robot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        low, high = np.array(self.low, chunk.dtype), np.array(self.high, chunk.dtype)
        executed = np.empty_like(chunk)
        for k in range(chunk.shape[1]):
            following = np.clip(position + chunk[:, k], low, high)
            executed[:, k] = following - position
            position = following
        return executed, position

    def executed(self, episodes: Sequence[Episode]) -> list[Episode]:
        """The same episodes with the actions that the controller executed, as a world model learns and replays them."""
        return [replace(episode, actions=self._executed(episode.actions)) for episode in episodes]

    def _executed(self, actions: Float[np.ndarray, "S A"]) -> Float[np.ndarray, "S A"]:
        return self.execute(np.zeros_like(actions[:1]), actions[None])[0][0]
