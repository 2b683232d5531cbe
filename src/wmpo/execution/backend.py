"""Which processes sample and learn: a choice that changes time and memory, never what is learned."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from wmpo.division import check_gpus, check_sizes
from wmpo.envs.processes import Workers
from wmpo.envs.simulator import SimulatorConfig
from wmpo.execution import ray_cluster
from wmpo.execution.local import LocalSampler, TrainingSpec, WorkerSpec
from wmpo.execution.ray_backend import RayLearner, RaySampler, RayTrainer
from wmpo.execution.ray_cluster import ClusterConfig
from wmpo.execution.ray_simulators import RayWorkers
from wmpo.protocols import Learner, Sampler, TrainablePolicy, Trainer
from wmpo.rl.grpo import GRPOConfig, GRPOLearner


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """Where networks are trained and episodes imagined. A run may go on with other values than it began with."""

    backend: Literal["local", "processes", "torchrun", "ray"] = "local"
    "This process; several of this machine; those that torchrun started, on any number of machines; or Ray actors."
    processes: int = 0
    "How many for backend processes, one a GPU; 0: one for each GPU, or for each core where there is none."
    shards: int = 0
    "Processes, or Ray's learners, that divide weights, gradients and optimiser; 1: all have a copy; 0: a machine's."
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    "For backend ray."

    @property
    def size(self) -> int:
        """Processes of backend processes."""
        return self.processes or torch.cuda.device_count() or os.cpu_count() or 1

    def prepare(self) -> None:
        """Finds out before any long work whether what is asked for is there. Raises ValueError for what is not."""
        if from_torchrun() != (self.backend == "torchrun"):
            raise ValueError(
                f"the backend is {self.backend}, but torchrun and --execution.backend torchrun go together: "
                "torchrun --nproc-per-node GPUS --module wmpo run RECIPE --execution.backend torchrun"
            )
        if self.backend == "torchrun":
            from wmpo.execution.parallel import enlisted

            enlisted().check_sizes(self.shards)
        elif self.backend == "processes":
            check_sizes(self.size, [self.size], self.shards)
            check_gpus(self.size, torch.cuda.device_count())
        elif self.backend == "ray":
            if self.cluster.learners > 1 and self.shards:
                check_sizes(self.cluster.learners, [], self.shards)  # which machines they will be on, Ray decides
            ray_cluster.connect(self.cluster)


def from_torchrun() -> bool:
    """Whether this process is one of those that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def serve_if_enlisted(*, needed: bool) -> bool:
    """What all processes of torchrun do but the first one: wait for its orders until it ends. False in the first one,
    and without torchrun; ``needed``: whether there will be orders at all."""
    if not from_torchrun() or os.environ["RANK"] == "0":
        return False
    if needed:
        from wmpo.execution.parallel import enlisted

        enlisted().serve()
    return True


def distant_simulators(config: ExecutionConfig, simulator: SimulatorConfig) -> Workers | None:
    """Those that the real (simulated) environment plays in, where they are Ray's; None: processes of this machine."""
    if config.backend != "ray" or not config.cluster.simulators:
        return None
    simulator.validate()
    ray_cluster.connect(config.cluster)
    return RayWorkers(config.cluster, simulator)


@contextmanager
def workers(
    config: ExecutionConfig,
    spec: WorkerSpec,
    sampler: LocalSampler,
    policy: TrainablePolicy,
    grpo: GRPOConfig,
    *,
    temperature: float,
) -> Iterator[tuple[Sampler, Learner]]:
    """A sampler and a learner, wherever they are. ``sampler`` and ``policy`` are this process's own; other processes
    build theirs from ``spec``. The learner leaves its weights in ``policy``."""
    if config.backend == "local":
        yield sampler, GRPOLearner(policy, grpo, temperature=temperature)
        return
    if config.backend == "ray":
        ray_cluster.connect(config.cluster)
        learner = RayLearner(config.cluster, spec, policy, grpo, temperature=temperature, shards=config.shards)
        with closing(learner), closing(RaySampler(config.cluster, spec)) as imagining:  # learners stay together
            yield imagining, learner
        return
    from wmpo.execution.parallel import TeamSampler, enlisted, spawned
    from wmpo.execution.sharded import TeamLearner

    with nullcontext(enlisted()) if config.backend == "torchrun" else spawned(config.size) as team:
        yield (
            TeamSampler(team, spec, sampler),
            TeamLearner(team, spec, policy, grpo, temperature=temperature, shards=config.shards),
        )
        team.forget()


@contextmanager
def trainer(
    config: ExecutionConfig, spec: TrainingSpec, network: nn.Module, own: Callable[[], Trainer]
) -> Iterator[Trainer]:
    """Who trains ``network``, this process's own: alone, ``own()``; else it and others, or the actors of Ray with the
    learner's GPUs, which build their parts from ``spec``."""
    if config.backend == "local" or (config.backend == "ray" and not config.cluster.trains):
        yield own()
        return
    if config.backend == "ray":
        ray_cluster.connect(config.cluster)
        with closing(RayTrainer(config.cluster, spec, network, shards=config.shards)) as training:
            yield training
        return
    from wmpo.execution.parallel import enlisted, spawned
    from wmpo.execution.supervised import TeamTrainer

    with nullcontext(enlisted()) if config.backend == "torchrun" else spawned(config.size) as team:
        yield TeamTrainer(team, spec, network, shards=config.shards)
        team.forget()
