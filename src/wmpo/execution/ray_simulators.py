"""The simulators of the real (simulated) environment as Ray actors, on any machine of a cluster (extra ``ray``).

Collection, audits, evaluation and the expert play in them as in this machine's processes: a row always meets the same
simulator. One that dies is replaced, and what its rows have played since their reset is played again: physics and
actions are the same, so is what follows.
"""

from __future__ import annotations

from typing import Any

from wmpo.envs.processes import Seat, Workers
from wmpo.envs.simulator import SimulatorConfig, choose_gl
from wmpo.execution.ray_cluster import ClusterConfig, get, started


class _Simulator:
    """Runs in an actor."""

    def begin(self, config: SimulatorConfig) -> None:
        choose_gl()
        self._seat = Seat(config)

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        return self._seat.answer(name, arguments)


class RayWorkers(Workers):
    """:class:`wmpo.envs.processes.Workers` that are actors."""

    def __init__(self, cluster: ClusterConfig, config: SimulatorConfig) -> None:
        super().__init__(cluster.simulators)
        self._most, self._config = cluster.max_restarts, config
        self._actors = self._start(cluster.simulators)
        self._played: list[list[tuple[str, tuple[Any, ...]]]] = [[] for _ in self._actors]

    def _start(self, count: int) -> list[Any]:
        actors = started(_Simulator, count, 0.0)
        get([actor.begin.remote(self._config) for actor in actors])
        return actors

    def _ask(self, name: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Raises RuntimeError when simulators die again and again."""
        import ray

        restarts = 0
        pending = [self._order(i, name, own) for i, own in enumerate(arguments)]
        answers = []
        for i, own in enumerate(arguments):
            while True:
                try:
                    answers.append(get(pending[i]))
                    break
                except ray.exceptions.RayActorError as error:
                    restarts += 1
                    if restarts > self._most:
                        raise RuntimeError(
                            f"simulators died {restarts} times in one chunk ({error}); the same command goes on from "
                            "the last episodes that were written"
                        ) from error
                    self._replace(i)
                    pending[i] = self._order(i, name, own)
            self._remember(i, name, own)
        return answers

    def _order(self, i: int, name: str, arguments: tuple[Any, ...]) -> Any:
        return self._actors[i].answer.remote(name, arguments)

    def _remember(self, i: int, name: str, arguments: tuple[Any, ...]) -> None:
        """Episodes of the expert leave nothing behind."""
        if name == "reset":
            self._played[i] = []
        if name in ("reset", "step"):
            self._played[i].append((name, arguments))

    def _replace(self, i: int) -> None:
        import ray

        ray.kill(self._actors[i])  # it may only be out of reach
        self._actors[i] = self._start(1)[0]
        for name, arguments in self._played[i]:
            self._order(i, name, arguments)  # in order before what is asked next; a failure shows there

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
