"""Samplers, the learner and supervised training as Ray actors, on this machine or a cluster (extra ``ray``).

Each actor wraps what one process would use. Starts are split by rows and results joined in order; weights go from the
learner to all samplers through Ray's object store, once. Randomness is keyed by episode, so an actor that died is
replaced and its episodes are played again to the same tokens. Several learners are ranks of a team, over which
``torch.distributed`` divides the network as it does for other backends.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wmpo.division import WHOLE
from wmpo.execution.local import DistantTrainer, LocalSampler, TrainingSpec, WorkerSpec
from wmpo.execution.ray_cluster import ActorPool, ActorTeam, ClusterConfig
from wmpo.protocols import TrainablePolicy
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.types import Minibatch, Rollouts, Starts, concatenate


class _Sampler:
    """Runs in an actor. What can fail for a reason that a user can mend is outside ``__init__``."""

    def begin(self, spec: WorkerSpec) -> None:
        self.local: LocalSampler = spec.sampler()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.local.load(weights)

    def run(self, starts: Starts, temperature: float, seed: int) -> Rollouts:
        return self.local.run(starts, temperature, seed)


class _Member:
    """Runs in an actor; one of a team where there are several. ``local`` does what is asked for."""

    team: Any = None
    local: Any

    def machine(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def meeting(self) -> str:
        """Where the others find this one."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def join(self, rank: int, size: int, local_size: int, meeting: str) -> None:
        from wmpo.execution.parallel import Team

        self.team = Team(rank, size, local_rank=0, local_size=local_size, meeting=meeting, own_gpu=True)

    def serve(self) -> None:
        self.team.serve()

    def save(self) -> dict[str, Tensor]:
        return _on_cpu(self.local.save())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.local.restore(tensors)


class _Learner(_Member):
    """Runs in an actor."""

    def begin(self, spec: WorkerSpec, config: GRPOConfig, temperature: float, shards: int) -> None:
        if self.team is None:
            self.local = GRPOLearner(spec.policy(), config, temperature=temperature)
        else:
            from wmpo.execution.sharded import DividedLearner

            self.local = DividedLearner(self.team, spec, config, temperature=temperature, shards=shards)

    def step(self, minibatch: Minibatch) -> dict[str, float]:
        return self.local.step(minibatch)

    def publish(self, types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        weights = self.local.publish() if self.team is None else self.local.weights(types)
        return {name: tensor.to("cpu", types[name]) for name, tensor in weights.items()}


class _Trainer(_Member):
    """Runs in an actor."""

    def begin(self, spec: TrainingSpec, shards: int) -> None:
        if self.team is None:
            self.local = spec.training(spec.network(), WHOLE)
        else:
            from wmpo.execution.supervised import DividedTrainer

            self.local = DividedTrainer(self.team, spec, shards=shards)

    def step(self, number: int) -> float:
        return self.local.step(number)

    def average(self) -> dict[str, Tensor]:
        return _on_cpu(self.local.average())


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


class Published(dict[str, Tensor]):
    """Weights that are in Ray's object store already, under ``reference``."""

    def __init__(self, weights: Mapping[str, Tensor], reference: Any) -> None:
        super().__init__(weights)
        self.reference = reference


class RaySampler:
    """A :class:`wmpo.protocols.Sampler` of several actors."""

    def __init__(self, config: ClusterConfig, spec: WorkerSpec) -> None:
        self._weights: Any = None
        self._pool = ActorPool(
            _Sampler, config.samplers, config.gpus_per_sampler, config.max_restarts, self._refresh, spec
        )

    def load(self, weights: Mapping[str, Tensor]) -> None:
        import ray

        self._weights = weights.reference if isinstance(weights, Published) else ray.put(_on_cpu(weights))
        for actor in self._pool.actors:
            actor.load.remote(self._weights)  # in order before the next run; failures show there

    def run(self, starts: Starts, temperature: float, seed: int) -> Rollouts:
        """Raises RuntimeError when samplers die again and again."""
        rows = torch.arange(len(starts)).tensor_split(min(len(self._pool.actors), len(starts)))
        parts = [(starts.rows(part), temperature, seed) for part in rows]
        return concatenate(self._pool.ask("run", parts, "samplers", "the last iteration"))

    def _refresh(self, actor: Any, i: int) -> None:
        if self._weights is not None:
            actor.load.remote(self._weights)

    def close(self) -> None:
        self._pool.close()


class RayLearner:
    """A :class:`wmpo.protocols.Learner` in one actor or several; ``policy`` is the driver's copy, which ``publish``
    refreshes."""

    def __init__(
        self,
        config: ClusterConfig,
        spec: WorkerSpec,
        policy: TrainablePolicy,
        grpo: GRPOConfig,
        *,
        temperature: float,
        shards: int = 0,
    ) -> None:
        self._policy = policy.eval()
        self._learner = ActorTeam(config, _Learner, spec, grpo, temperature, shards)

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
    """A :class:`wmpo.protocols.Trainer` in one actor or several, where the learner's GPUs are; ``network`` is the
    driver's own."""

    def __init__(self, config: ClusterConfig, spec: TrainingSpec, network: nn.Module, *, shards: int = 0) -> None:
        self._trainer = ActorTeam(config, _Trainer, spec, shards)
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
