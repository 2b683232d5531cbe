"""Everything in this process: the sampler that a laptop uses, and that other backends wrap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from wmpo.division import Division
from wmpo.protocols import ChunkEnv, TrainablePolicy, Trainer
from wmpo.rollout.run import run_in_parts
from wmpo.types import Rollouts, Starts, concatenate


class LocalSampler:
    """A :class:`wmpo.protocols.Sampler` with its own copy of the policy. ``most``: episodes at once, 0 for any number;
    it changes memory, not results."""

    def __init__(self, env: ChunkEnv, policy: TrainablePolicy, most: int = 0) -> None:
        self.env, self.policy, self.most = env, policy.eval(), most

    def run(self, starts: Starts, temperature: float, seed: int) -> Rollouts:
        parts = run_in_parts(self.env, self.policy, starts, self.most, temperature=temperature, seed=seed)
        return concatenate(list(parts))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.policy.load_state_dict(dict(weights))


class WorkerSpec(Protocol):
    """What another process is sent instead of networks: small and picklable. The heavy objects are built there."""

    def sampler(self) -> LocalSampler: ...

    def policy(self) -> TrainablePolicy: ...


class TrainerPart(Trainer, Protocol):
    """One process's part of a supervised training. ``average``: weights to keep, by name; ``targets``: what each tensor
    of a checkpoint belongs to."""

    def average(self) -> Mapping[str, Tensor]: ...

    def targets(self) -> Mapping[str, Tensor]: ...


class DistantTrainer(ABC):
    """What a :class:`wmpo.protocols.Trainer` does whose training is elsewhere. ``network`` is this process's own and
    whole: its weights are those to begin with, and averaged ones come back into it."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval()
        self.restore({f"model.{name}": tensor for name, tensor in network.state_dict().items()})

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...

    @abstractmethod
    def average(self) -> Mapping[str, Tensor]:
        """The weights that are kept, by name."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self.finish()
        with torch.no_grad():
            yield

    def finish(self) -> None:
        self._network.load_state_dict(dict(self.average()))


class TrainingSpec(Protocol):
    """The same for supervised training: a network of the right shape, and what trains it on the run's data."""

    def network(self) -> nn.Module: ...

    def training(self, network: nn.Module, division: Division) -> TrainerPart: ...
