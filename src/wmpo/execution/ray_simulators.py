"""The simulators of the real (simulated) environment as Ray actors, on any machine of a cluster (extra ``ray``).

Collection, audits, evaluation and the expert play in them as in this machine's processes: a row always meets the same
simulator. One that dies is replaced, and what its rows have played since their reset is played again: physics and
actions are the same, so is what follows.
"""

from __future__ import annotations

from typing import Any

from wmpo.envs.processes import Seat, Workers
from wmpo.envs.simulator import SimulatorConfig, choose_gl
from wmpo.execution.ray_cluster import ActorPool, ClusterConfig


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
        self._played: list[list[tuple[str, tuple[Any, ...]]]] = [[] for _ in range(cluster.simulators)]
        self._pool = ActorPool(_Simulator, cluster.simulators, 0.0, cluster.max_restarts, self._refresh, config)

    def _ask(self, name: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Raises RuntimeError when simulators die again and again."""
        calls = [(name, own) for own in arguments]
        answers = self._pool.ask("answer", calls, "simulators", "the last episodes that were written")
        for i, call in enumerate(calls):
            if name == "reset":
                self._played[i] = []
            if name in ("reset", "step"):  # episodes of the expert leave nothing behind
                self._played[i].append(call)
        return answers

    def _refresh(self, actor: Any, i: int) -> None:
        for call in self._played[i]:
            actor.answer.remote(*call)

    def close(self) -> None:
        self._pool.close()
