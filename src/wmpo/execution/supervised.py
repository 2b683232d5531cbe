"""Supervised training over several ranks: each has its part of the network and takes its rows of every batch.

Rank 0 runs the loop and decides, about checks, checkpoints and the end; the others do what it orders
(:mod:`wmpo.execution.parallel`). The sums that tell a loss and clip a gradient go over all ranks, so n of them learn
what one would, up to rounding. Checkpoints are whole: any number of ranks can go on from one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wmpo.division import cut
from wmpo.execution.local import DistantTrainer, TrainingSpec
from wmpo.execution.parallel import Layout, Team, gathered, shard, spread


class Ranks:
    """A :class:`wmpo.division.Division` among the ranks of a team."""

    def __init__(self, team: Team, shards: int) -> None:
        self._team, self._mesh = team, team.mesh(shards)

    def take(self, network: nn.Module) -> None:
        shard(network, self._mesh)

    def parts(self, count: int, most: int) -> list[tuple[slice, float]]:
        return cut(count, most, self._team.rank, self._team.size)

    def total(self, value: Tensor) -> Tensor:
        return self._team.total(value)


class DividedTrainer:
    """A training over all ranks of a team, as its rank 0 sees it."""

    def __init__(self, team: Team, spec: TrainingSpec, *, shards: int) -> None:
        self._team = team
        team.call(_begin, spec, shards)

    def step(self, number: int) -> float:
        return self._team.call(_step, number)[0]

    def average(self) -> Mapping[str, Tensor]:
        return self._team.call(_average)[0]

    def save(self) -> Mapping[str, Tensor]:
        return self._team.call(_save)[0]

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._team.send(_restore, tensors)


class TeamTrainer(DividedTrainer, DistantTrainer):
    """A :class:`wmpo.protocols.Trainer` of all ranks; ``network`` is rank 0's own."""

    def __init__(self, team: Team, spec: TrainingSpec, network: nn.Module, *, shards: int = 0) -> None:
        DividedTrainer.__init__(self, team, spec, shards=shards)
        DistantTrainer.__init__(self, network)


def _begin(team: Team, spec: TrainingSpec, shards: int) -> None:
    """Nothing is exchanged after the mesh is made: some ranks may take longer to read their data."""
    division = Ranks(team, shards)
    team.trainer = spec.training(spec.network(), division)


def _step(team: Team, number: int) -> float:
    return team.trainer.step(number)


def _average(team: Team) -> dict[str, Tensor]:
    return gathered(team, team.trainer.average(), torch.device("cpu"))


def _save(team: Team) -> dict[str, Tensor]:
    return gathered(team, team.trainer.save(), torch.device("cpu"))


def _restore(team: Team, layout: Layout, tensors: Mapping[str, Tensor] | None) -> None:
    team.trainer.restore(spread(team, layout, tensors, team.trainer.targets()))
