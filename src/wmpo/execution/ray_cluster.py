"""Where Ray is, what of it is used, and its actors (extra ``ray``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_START_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where Ray is, and what of it is used."""

    address: str = ""
    "HOST:PORT of a cluster's head, or auto for the one that this machine belongs to; empty: Ray is started here."
    samplers: int = 2
    "Actors that imagine episodes."
    gpus_per_sampler: float = 0.0
    "GPUs of each; a fraction lets several share one. 0: it computes on processors."
    learners: int = 1
    "Actors over which the learner is divided, and supervised training, as --execution.shards says."
    learner_gpus: float = 0.0
    "GPUs of each of them: 1, or of a single one a fraction, to share it. 0: on processors."
    simulators: int = 0
    "Actors that play the real (simulated) episodes, on any machine; 0: --num-workers processes of the driver's."
    max_restarts: int = 10
    "Times that samplers, or simulators, are replaced while one batch of episodes is played."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        if self.samplers < 1 or self.learners < 1 or self.simulators < 0 or self.max_restarts < 0:
            raise ValueError(
                f"execution.cluster.samplers {self.samplers} and learners {self.learners} must be at least 1, "
                f"simulators {self.simulators} and max_restarts {self.max_restarts} at least 0"
            )
        for name in ("gpus_per_sampler", "learner_gpus"):
            value = getattr(self, name)
            if value < 0 or (value > 1 and value != int(value)):
                raise ValueError(f"execution.cluster.{name} {value} must be a fraction of one GPU or a whole number")
        if self.learner_gpus > 1:
            raise ValueError(
                f"execution.cluster.learner_gpus {self.learner_gpus} must be at most 1, those of one process; several "
                "GPUs learn with as many --execution.cluster.learners"
            )
        if self.learners > 1 and self.learner_gpus not in (0, 1):
            raise ValueError(
                f"execution.cluster.learner_gpus {self.learner_gpus} must be 1 (or 0: on processors) where there are "
                f"{self.learners} learners: NCCL cannot share a GPU"
            )

    @property
    def gpus(self) -> float:
        return self.samplers * self.gpus_per_sampler + self.learners * self.learner_gpus

    @property
    def trains(self) -> bool:
        """Whether supervised training is the learners' too; a single one without a GPU would have one processor."""
        return self.learners > 1 or self.learner_gpus > 0

    @property
    def actors(self) -> int:
        """Of the stage that has most of them; each has a processor."""
        return self.samplers + self.learners + self.simulators


def connect(config: ClusterConfig) -> None:
    """Finds or starts Ray. Raises ValueError when it is not installed, does not answer or lacks what is asked for."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "Ray is needed for --execution.backend ray; install it with: pip install 'wmpo[ray]'"
        ) from error
    config.validate()
    if not ray.is_initialized():
        quiet: dict[str, Any] = {"include_dashboard": False} if not config.address else {}
        if not config.address:  # a laptop's actors may share its cores
            quiet["num_cpus"] = max(os.cpu_count() or 1, config.actors)
        try:
            ray.init(address=config.address or "local", logging_level="error", **quiet)
        except Exception as error:  # Ray itself raises nothing narrower when a machine is too slow to begin
            raise ValueError(
                f"no Ray cluster answers at {config.address or 'this machine'} ({error}); start one with ray start "
                "--head and name its HOST:PORT, or leave --execution.cluster.address empty"
            ) from error
    have = ray.cluster_resources()
    for name, wanted in (("GPU", config.gpus), ("CPU", config.actors)):
        if have.get(name, 0) < wanted:
            raise ValueError(
                f"{config.samplers} samplers, {config.learners} learners and {config.simulators} simulators need "
                f"{wanted:g} {name}s, but the Ray cluster has {have.get(name, 0):g}; lower "
                "--execution.cluster.samplers, learners or simulators, or the GPUs of each, or add machines"
            )


def get(pending: Any) -> Any:
    """Results of actors; what they raised is raised here, without Ray's traceback around it."""
    import ray

    try:
        return ray.get(pending)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def started(kind: type, count: int, gpus: float, **options: Any) -> list[Any]:
    """Actors that have begun to exist, all at the same time; ``options``: Ray's."""
    import ray

    remote = ray.remote(num_cpus=1, num_gpus=gpus, **options)(kind)
    actors = [remote.remote() for _ in range(count)]
    try:
        ray.get([actor.__ray_ready__.remote() for actor in actors], timeout=_START_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise ValueError(
            f"Ray found no place for an actor with {gpus:g} GPUs within {_START_SECONDS} s; others may be using "
            "the cluster"
        ) from error
    return actors


def killed(actors: Sequence[Any]) -> None:
    import ray

    for actor in actors:
        ray.kill(actor)


class ActorPool:
    """Actors of which each can do another one's work. One that dies is replaced and asked again; ``refresh(actor, i)``
    tells a new one what the i-th knew."""

    def __init__(
        self, kind: type, count: int, gpus: float, most: int, refresh: Callable[[Any, int], None], *arguments: Any
    ) -> None:
        """``most``: replacements while one batch of calls is answered; ``arguments``: those of ``begin``."""
        self._kind, self._gpus, self._most, self._refresh, self._arguments = kind, gpus, most, refresh, arguments
        self.actors = self._begun(count)

    def _begun(self, count: int) -> list[Any]:
        actors = started(self._kind, count, self._gpus)
        get([actor.begin.remote(*self._arguments) for actor in actors])
        return actors

    def ask(self, name: str, arguments: Sequence[tuple[Any, ...]], what: str, on: str) -> list[Any]:
        """Calls ``name`` of the first actors, one for each of ``arguments``, all at the same time.

        Raises RuntimeError, which says ``what`` died and from where the same command goes ``on``, when they die again
        and again."""
        import ray

        def order(i: int) -> Any:
            return getattr(self.actors[i], name).remote(*arguments[i])

        waiting, answers, restarts = {order(i): i for i in range(len(arguments))}, [None] * len(arguments), 0
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            i = waiting.pop(ready)
            try:
                answers[i] = get(ready)
            except ray.exceptions.RayActorError as error:
                restarts += 1
                if restarts > self._most:
                    raise RuntimeError(
                        f"{what} died {restarts} times in one batch ({error}); the same command goes on from {on}"
                    ) from error
                killed([self.actors[i]])  # it may only be out of reach
                self.actors[i] = self._begun(1)[0]
                self._refresh(self.actors[i], i)  # in order before what is asked next; failures show there
                waiting[order(i)] = i
        return answers

    def close(self) -> None:
        killed(self.actors)


class ActorTeam:
    """The actor, or several that divide a network, whose state dies with one of them: their stage stops then, and goes
    on from a checkpoint.

    Several are ranks of a :class:`wmpo.execution.parallel.Team`, packed on as few machines as there is room for; the
    first is asked.
    """

    def __init__(self, config: ClusterConfig, kind: type, *arguments: Any) -> None:
        self._group: Any = None
        self._actors: list[Any] = []
        self._serving: list[Any] = []
        try:
            options = self._together(config) if config.learners > 1 else {}
            self._actors = started(kind, config.learners, config.learner_gpus, **options)
            if config.learners > 1:
                self._serving = self._in_ranks()
            self.ask("begin", *arguments)
        except BaseException:
            self.close()
            raise

    def _together(self, config: ClusterConfig) -> dict[str, Any]:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        each = {"CPU": 1.0} | ({"GPU": config.learner_gpus} if config.learner_gpus else {})
        self._group = ray.util.placement_group([each] * config.learners, strategy="PACK")
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=self._group)}

    def _in_ranks(self) -> list[Any]:
        """Makes the actors a team, its ranks machine by machine; what the others answer only once they have ended."""
        machines: list[str] = get([actor.machine.remote() for actor in self._actors])
        order = ranks(machines)
        self._actors = [self._actors[i] for i in order]
        meeting = get(self._actors[0].meeting.remote())
        local_sizes = [machines.count(machines[i]) for i in order]
        get([
            actor.join.remote(rank, len(order), local_size, meeting)
            for rank, (actor, local_size) in enumerate(zip(self._actors, local_sizes, strict=True))
        ])  # fmt: skip
        return [actor.serve.remote() for actor in self._actors[1:]]

    def ask(self, name: str, *arguments: Any) -> Any:
        return self.answer(self.order(name, *arguments))

    def order(self, name: str, *arguments: Any) -> Any:
        """Ray's reference to what will be answered."""
        return getattr(self._actors[0], name).remote(*arguments)

    def answer(self, reference: Any) -> Any:
        """Raises RuntimeError when the actor, or another one of its team, is dead."""
        import ray

        try:
            if self._serving:  # the first one may wait for a dead one for as long as NCCL lets it
                (first, *_), _ = ray.wait([reference, *self._serving], num_returns=1)
                if first != reference:
                    get(first)
            return get(reference)
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(
                f"the learner died ({error}); the same command goes on from its last checkpoint"
            ) from error

    def close(self) -> None:
        import ray

        killed(self._actors)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)


def ranks(machines: Sequence[str]) -> list[int]:
    """Which actor is rank 0, 1, ...: those of a machine follow each other, as shards lie inside machines."""
    return sorted(range(len(machines)), key=lambda i: machines.index(machines[i]))
