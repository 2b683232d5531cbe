"""GRPO's learner, divided over the ranks of a team (:mod:`wmpo.execution.parallel`) by FSDP2."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from wmpo.division import split
from wmpo.execution.local import WorkerSpec
from wmpo.execution.parallel import Layout, Team, gathered, shard, spread
from wmpo.protocols import TrainablePolicy
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.types import Minibatch


class DividedLearner:
    """GRPO's learner over all ranks of a team, as its rank 0 sees it.

    A checkpoint is whole, gathered tensor by tensor in rank 0's memory, so any number of ranks can go on from it.
    """

    def __init__(self, team: Team, spec: WorkerSpec, config: GRPOConfig, *, temperature: float, shards: int) -> None:
        self._team = team
        team.call(_begin, spec, config, temperature, shards)

    def step(self, minibatch: Minibatch) -> dict[str, float]:
        return self._team.each(_step, [(part,) for part in split(minibatch, self._team.size)])[0]

    def weights(self, types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """Whole ones of these types, on rank 0's device."""
        return self._team.call(_weights, types)[0]

    def save(self) -> Mapping[str, Tensor]:
        return self._team.call(_save)[0]

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._team.send(_restore, tensors)


class TeamLearner(DividedLearner):
    """A :class:`wmpo.protocols.Learner` of all ranks. ``policy`` is whole and rank 0's own: audits play with it,
    ``publish`` refreshes it."""

    def __init__(
        self,
        team: Team,
        spec: WorkerSpec,
        policy: TrainablePolicy,
        config: GRPOConfig,
        *,
        temperature: float,
        shards: int = 0,
    ) -> None:
        self._policy = policy.eval()
        super().__init__(team, spec, config, temperature=temperature, shards=shards)

    @property
    def policy(self) -> TrainablePolicy:
        return self._policy

    def publish(self) -> Mapping[str, Tensor]:
        weights = self.weights({name: tensor.dtype for name, tensor in self._policy.state_dict().items()})
        self._policy.load_state_dict(weights)
        return weights


class ShardedLearner(GRPOLearner):
    """One rank's part of the learner. Every method is called on all ranks at once."""

    def __init__(self, policy: nn.Module, config: GRPOConfig, *, temperature: float, mesh: DeviceMesh) -> None:
        shard(policy, mesh)
        super().__init__(policy, config, temperature=temperature)  # type: ignore[arg-type]

    def _backward(self, minibatch: Minibatch) -> Tensor:
        sums = super()._backward(minibatch)
        dist.all_reduce(sums)
        return sums

    def _clip(self) -> Tensor:
        norm = super()._clip()
        assert isinstance(norm, DTensor)
        return norm.full_tensor().cpu()

    def targets(self) -> dict[str, Tensor]:
        """Weights by their names in a checkpoint, and by the names of their moments without the last part."""
        weights = {f"model.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        return weights | {f"optimizer.{i}": p for i, p in enumerate(self.policy.parameters())}


def _begin(team: Team, spec: WorkerSpec, config: GRPOConfig, temperature: float, shards: int) -> None:
    policy = spec.policy()
    assert isinstance(policy, nn.Module)
    team.learner = ShardedLearner(policy, config, temperature=temperature, mesh=team.mesh(shards))


def _step(team: Team, part: Minibatch) -> dict[str, float]:
    return team.learner.step(part)


def _weights(team: Team, types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    return gathered(team, team.learner.policy.state_dict(), team.device, types)


def _save(team: Team) -> dict[str, Tensor]:
    return gathered(team, team.learner.save(), torch.device("cpu"))


def _restore(team: Team, layout: Layout, tensors: Mapping[str, Tensor] | None) -> None:
    team.learner.restore(spread(team, layout, tensors, team.learner.targets()))
