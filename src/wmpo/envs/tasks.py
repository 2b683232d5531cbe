"""Several tasks in one run: they share policy, world model and classifier, and their sentences tell them apart.

Start states alternate: of two tasks, even seeds are the first one's, odd seeds the second one's. So the seed of a start
says which task it is of, and everything that is keyed by it stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from wmpo.envs.disrupt import NONE, Disruption
from wmpo.rng import alternating

if TYPE_CHECKING:
    from wmpo.envs.simulator import Simulator, SimulatorConfig


def check_different(tasks: Sequence[str]) -> None:
    """Raises ValueError for a task that is named twice."""
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"env.task and env.more_tasks name a task twice: {' '.join(tasks)}")


class SeveralTasks:
    """A :class:`wmpo.envs.simulator.Simulator` of several tasks: as many simulators, each built when its first start
    comes."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self._sims: dict[int, Simulator] = {}
        self._place = 0

    @property
    def _sim(self) -> Simulator:
        """That of the present episode."""
        if self._place not in self._sims:
            self._sims[self._place] = self.config.with_task(self.config.tasks[self._place]).build()
        return self._sims[self._place]

    def reset(self, seed: int, disruption: Disruption = NONE) -> None:
        self._place = alternating(seed, range(len(self.config.tasks)))
        self._sim.reset(seed, disruption)

    def step(self, action: Float[np.ndarray, " A"]) -> bool:
        return self._sim.step(action)

    def push(self, offset: Float[np.ndarray, " 3"]) -> None:
        self._sim.push(offset)

    def expert_action(self) -> Float[np.ndarray, " A"]:
        return self._sim.expert_action()

    def snapshot(self) -> Any:
        return self._place, self._sim.snapshot()

    def restore(self, state: Any) -> None:
        self._place, inner = state
        self._sim.restore(inner)

    def render(self, disruption: Disruption = NONE) -> UInt8[np.ndarray, "h w 3"]:
        if os.environ.get("MUJOCO_GL") == "osmesa":  # several of its contexts in a process corrupt each other
            for place, sim in self._sims.items():
                if place != self._place:
                    sim.close()
        return self._sim.render(disruption)

    def close(self) -> None:
        for sim in self._sims.values():
            sim.close()
