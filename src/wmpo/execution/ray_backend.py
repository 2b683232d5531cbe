"""Samplers, the learner and supervised training as Ray actors, on this machine or a cluster (extra ``ray``).

Each actor wraps what one process would use. Starts are split by rows and results joined in order; weights go from the
learner to all samplers through Ray's object store, once. Randomness is keyed by episode, so an actor that died is
replaced and its episodes are played again to the same tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wmpo.division import WHOLE
from wmpo.execution.local import DistantTrainer, LocalSampler, TrainingSpec, WorkerSpec
from wmpo.protocols import TrainablePolicy
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.types import Minibatch, Rollouts, Starts, concatenate

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
    learner_gpus: float = 0.0
    "GPUs of the learner, and of supervised training: 1, or a fraction to share one. 0: on processors."
    max_restarts: int = 10
    "Times that samplers are replaced while one batch of episodes is played."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        if self.samplers < 1 or self.max_restarts < 0:
            raise ValueError(
                f"execution.cluster.samplers {self.samplers} must be at least 1, max_restarts {self.max_restarts} at "
                "least 0"
            )
        for name in ("gpus_per_sampler", "learner_gpus"):
            value = getattr(self, name)
            if value < 0 or (value > 1 and value != int(value)):
                raise ValueError(f"execution.cluster.{name} {value} must be a fraction of one GPU or a whole number")
        if self.learner_gpus > 1:
            raise ValueError(
                f"execution.cluster.learner_gpus {self.learner_gpus} must be at most 1: Ray's learner is one "
                "process; a sharded one is --execution.backend torchrun"
            )

    @property
    def gpus(self) -> float:
        return self.samplers * self.gpus_per_sampler + self.learner_gpus


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
            quiet["num_cpus"] = max(os.cpu_count() or 1, config.samplers + 1)
        try:
            ray.init(address=config.address or "local", logging_level="error", **quiet)
        except Exception as error:  # Ray itself raises nothing narrower when a machine is too slow to begin
            raise ValueError(
                f"no Ray cluster answers at {config.address or 'this machine'} ({error}); start one with ray start "
                "--head and name its HOST:PORT, or leave --execution.cluster.address empty"
            ) from error
    have = ray.cluster_resources()
    for name, wanted in (("GPU", config.gpus), ("CPU", config.samplers + 1)):
        if have.get(name, 0) < wanted:
            raise ValueError(
                f"{config.samplers} samplers and a learner need {wanted:g} {name}s, but the Ray cluster has "
                f"{have.get(name, 0):g}; lower --execution.cluster.samplers, or the GPUs of each, or add machines"
            )


class _Sampler:
    """Runs in an actor. What can fail for a reason that a user can mend is outside ``__init__``."""

    def begin(self, spec: WorkerSpec) -> None:
        self.local: LocalSampler = spec.sampler()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.local.load(weights)

    def run(self, starts: Starts, temperature: float, seed: int) -> Rollouts:
        return self.local.run(starts, temperature, seed)


class _Learner:
    """Runs in an actor."""

    def begin(self, spec: WorkerSpec, config: GRPOConfig, temperature: float) -> None:
        self.local = GRPOLearner(spec.policy(), config, temperature=temperature)

    def step(self, minibatch: Minibatch) -> dict[str, float]:
        return self.local.step(minibatch)

    def publish(self, types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        return {name: tensor.to("cpu", types[name]) for name, tensor in self.local.publish().items()}

    def save(self) -> dict[str, Tensor]:
        return _on_cpu(self.local.save())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.local.restore(tensors)


class _Trainer:
    """Runs in an actor."""

    def begin(self, spec: TrainingSpec) -> None:
        self.local = spec.training(spec.network(), WHOLE)

    def step(self, number: int) -> float:
        return self.local.step(number)

    def average(self) -> dict[str, Tensor]:
        return _on_cpu(self.local.average())

    def save(self) -> dict[str, Tensor]:
        return _on_cpu(self.local.save())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.local.restore(tensors)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _get(pending: Any) -> Any:
    """Results of actors; what they raised is raised here, without Ray's traceback around it."""
    import ray

    try:
        return ray.get(pending)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _started(kind: type, count: int, gpus: float, *arguments: Any) -> list[Any]:
    """Actors that have begun, all at the same time."""
    import ray

    remote = ray.remote(num_cpus=1, num_gpus=gpus)(kind)
    actors = [remote.remote() for _ in range(count)]
    try:
        ray.get([actor.__ray_ready__.remote() for actor in actors], timeout=_START_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise ValueError(
            f"Ray found no place for an actor with {gpus:g} GPUs within {_START_SECONDS} s; others may be using "
            "the cluster"
        ) from error
    _get([actor.begin.remote(*arguments) for actor in actors])
    return actors


class Published(dict[str, Tensor]):
    """Weights that are in Ray's object store already, under ``reference``."""

    def __init__(self, weights: Mapping[str, Tensor], reference: Any) -> None:
        super().__init__(weights)
        self.reference = reference


class RaySampler:
    """A :class:`wmpo.protocols.Sampler` of several actors."""

    def __init__(self, config: ClusterConfig, spec: WorkerSpec) -> None:
        self.config, self.spec = config, spec
        self.actors = self._start(config.samplers)
        self._weights: Any = None

    def _start(self, count: int) -> list[Any]:
        return _started(_Sampler, count, self.config.gpus_per_sampler, self.spec)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        import ray

        self._weights = weights.reference if isinstance(weights, Published) else ray.put(_on_cpu(weights))
        for i in range(len(self.actors)):
            self.actors[i].load.remote(self._weights)  # in order before the next run; failures show there

    def run(self, starts: Starts, temperature: float, seed: int) -> Rollouts:
        """Raises RuntimeError when samplers die again and again."""
        import ray

        rows = torch.arange(len(starts)).tensor_split(min(len(self.actors), len(starts)))
        parts = [starts.rows(part) for part in rows]
        waiting = {self.actors[i].run.remote(part, temperature, seed): i for i, part in enumerate(parts)}
        results: dict[int, Rollouts] = {}
        restarts = 0
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            i = waiting.pop(ready)
            try:
                results[i] = _get(ready)
            except ray.exceptions.RayActorError as error:
                restarts += 1
                if restarts > self.config.max_restarts:
                    raise RuntimeError(
                        f"samplers died {restarts} times in one batch ({error}); the same command goes on from the "
                        "last iteration"
                    ) from error
                self._replace(i)
                waiting[self.actors[i].run.remote(parts[i], temperature, seed)] = i
        return concatenate([results[i] for i in range(len(parts))])

    def _replace(self, i: int) -> None:
        import ray

        ray.kill(self.actors[i])  # it may only be out of reach
        self.actors[i] = self._start(1)[0]
        if self._weights is not None:
            self.actors[i].load.remote(self._weights)

    def close(self) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)


class _Alone:
    """An actor that cannot be replaced, as the optimiser's state dies with it: its stage stops then, and goes on from a
    checkpoint."""

    def __init__(self, kind: type, gpus: float, *arguments: Any) -> None:
        (self._actor,) = _started(kind, 1, gpus, *arguments)

    def ask(self, name: str, *arguments: Any) -> Any:
        return self.answer(self.order(name, *arguments))

    def order(self, name: str, *arguments: Any) -> Any:
        """Ray's reference to what will be answered."""
        return getattr(self._actor, name).remote(*arguments)

    def answer(self, reference: Any) -> Any:
        """Raises RuntimeError when the actor is dead."""
        import ray

        try:
            return _get(reference)
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(
                f"the learner died ({error}); the same command goes on from its last checkpoint"
            ) from error

    def close(self) -> None:
        import ray

        ray.kill(self._actor)


class RayLearner:
    """A :class:`wmpo.protocols.Learner` in an actor; ``policy`` is the driver's copy, which ``publish`` refreshes."""

    def __init__(
        self, config: ClusterConfig, spec: WorkerSpec, policy: TrainablePolicy, grpo: GRPOConfig, *, temperature: float
    ) -> None:
        self._policy = policy.eval()
        self._learner = _Alone(_Learner, config.learner_gpus, spec, grpo, temperature)

    @property
    def policy(self) -> TrainablePolicy:
        return self._policy

    def step(self, minibatch: Minibatch) -> dict[str, float]:
        return self._learner.ask("step", minibatch)

    def publish(self) -> Mapping[str, Tensor]:
        types = {name: tensor.dtype for name, tensor in self._policy.state_dict().items()}
        reference = self._learner.order("publish", types)
        weights = Published(self._learner.answer(reference), reference)
        self._policy.load_state_dict(weights)
        return weights

    def save(self) -> Mapping[str, Tensor]:
        return self._learner.ask("save")

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._learner.ask("restore", dict(tensors))

    def close(self) -> None:
        self._learner.close()


class RayTrainer(DistantTrainer):
    """A :class:`wmpo.protocols.Trainer` in an actor, where the learner's GPU is; ``network`` is the driver's own."""

    def __init__(self, config: ClusterConfig, spec: TrainingSpec, network: nn.Module) -> None:
        self._trainer = _Alone(_Trainer, config.learner_gpus, spec)
        super().__init__(network)

    def step(self, number: int) -> float:
        return self._trainer.ask("step", number)

    def average(self) -> Mapping[str, Tensor]:
        return self._trainer.ask("average")

    def save(self) -> Mapping[str, Tensor]:
        return self._trainer.ask("save")

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._trainer.ask("restore", _on_cpu(tensors))

    def close(self) -> None:
        self._trainer.close()
