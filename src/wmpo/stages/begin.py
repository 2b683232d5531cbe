"""What training begins with: networks and data of a run's folder, in this process and in those beside it.

Other processes are sent a :class:`RunSpec`, which is small, and build the same from the folder.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmpo.config import Experiment
from wmpo.data.episode import Episode
from wmpo.division import WHOLE, Division
from wmpo.envs.recorded import RecordedConfig
from wmpo.evaluation.world_model import replay
from wmpo.execution.local import LocalSampler
from wmpo.policy.codec import quantiles
from wmpo.protocols import PolicyNet
from wmpo.report.run import RunFolder
from wmpo.reward.small import SmallRewardConfig
from wmpo.reward.vlm_judge import VLMJudgeConfig
from wmpo.stages import models
from wmpo.stages.guards import guarded_env
from wmpo.stages.job import Job
from wmpo.stages.pretrained import load_pretrained, pretrained_path
from wmpo.stages.rounds import begins_with, policy_of
from wmpo.train.distill import distillation
from wmpo.train.fit import Training
from wmpo.train.reward import RewardNet, real_videos, replayed_videos, telling_success
from wmpo.train.sft import cloning
from wmpo.train.video_clips import VideoClips
from wmpo.train.world_model import WorldModelNet, WorldModelTraining, flow_matching
from wmpo.world_model.opensora import OpenSoraWorldModel, OpenSoraWorldModelConfig
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.tokenizer import Tokenizer


def new_policy(job: Job, episodes: Sequence[Episode]) -> PolicyNet:
    """For actions such as those of these demonstrations."""
    actions = torch.from_numpy(np.concatenate([episode.actions for episode in episodes]))
    job.seed_torch(1)
    env = job.experiment.env
    return job.experiment.policy.fit(actions, env.image_size, env.views)


def first_policy(job: Job) -> PolicyNet:
    """The policy with which the round's imagination begins."""
    if job.experiment.clone.enabled:
        return models.load_policy(job.folder, "cloned")
    return policy_of(job, begins_with(job))


def small_world_model(job: Job, config: SmallWorldModelConfig, tokenizer: Tokenizer) -> SmallWorldModel:
    """Actions are scaled by the simulator's bounds, so that a pretrained model fits every policy; without a simulator
    by what is usual in the demonstrations."""
    bounds, env = (-torch.ones(job.action_dim), torch.ones(job.action_dim)), job.experiment.env
    if isinstance(env, RecordedConfig):
        bounds = usual_actions(job)
    net = config.build(tokenizer, *bounds, env.image_size // 4, env.views)
    if (path := pretrained_path(config.pretrained)) is not None:
        load_pretrained(path, net)
    return net


def usual_actions(job: Job) -> tuple[Tensor, Tensor]:
    """The base policy's bounds; the demonstrations' quantiles where it has none, as a fine-tuned SmolVLA."""
    codec = models.load_policy(job.root, "base").codec
    low, high = torch.tensor(codec.low), torch.tensor(codec.high)
    if (high - low).isfinite().all():
        return low, high
    low, high = quantiles(torch.from_numpy(np.concatenate([episode.actions for episode in job.demonstrations()])))
    return low.float(), high.float()


def first_world_model(job: Job) -> WorldModelNet:
    """Before it has seen anything of the round: new in the first, later that of the round before."""
    job.seed_torch(3)
    if job.round > 1:
        net = models.load_world_model(job.folder_of(job.round - 1))
        if isinstance(net, OpenSoraWorldModel):
            net.config = replace(net.config, shortcut_steps=0)  # the flow is trained before it is distilled again
        return net
    config = job.experiment.world_model
    if isinstance(config, OpenSoraWorldModelConfig):
        env = job.experiment.env
        return config.build(*usual_actions(job), env.image_size, env.views)
    small = small_world_model(job, config, job.experiment.tokenizer.build())
    small.tokenizer.load_state_dict(models.load_tokenizer(job.root).state_dict())
    return small


def world_model_training(job: Job) -> WorldModelTraining:
    """Of the present round."""
    config = job.experiment.world_model_training
    return config if job.round == 1 else config.refreshed()


def new_reward(job: Job) -> RewardNet:
    config = job.experiment.reward
    assert not isinstance(config, VLMJudgeConfig), "it is not trained"
    job.seed_torch(4)
    env = job.experiment.env
    if isinstance(config, SmallRewardConfig):
        return config.build(env.image_size, env.views, env.instructions)
    return config.build(env.image_size, env.views)


def fields_of(job: Job) -> tuple[Path, Experiment, int, int]:
    """Those of the :class:`RunSpec` of a job."""
    return job.root.path.resolve(), job.experiment, job.seed, job.round


@dataclass(frozen=True)
class RunSpec:
    """A run's folder, which all machines must see under the same path, and what of it is wanted."""

    path: Path
    experiment: Experiment
    seed: int
    round: int

    def job(self) -> Job:
        if not self.path.exists():
            raise ValueError(f"{self.path} is not there on {platform.node()}; all machines must share this folder")
        return Job(RunFolder(self.path), self.experiment, self.seed, quiet=True, round=self.round)


class ImproveSpec(RunSpec):
    """A :class:`wmpo.execution.local.WorkerSpec`: the round's dream and policy."""

    def sampler(self) -> LocalSampler:
        job = self.job()
        guarded = self.experiment.improve.guards.needs_shadow
        dream, _ = guarded_env(job, job.executed(job.collected()[1]) if guarded else [])
        return LocalSampler(dream, first_policy(job), self.experiment.improve.micro_batch)

    def policy(self) -> PolicyNet:
        return first_policy(self.job())


@dataclass(frozen=True)
class SFTSpec(RunSpec):
    """A :class:`wmpo.execution.local.TrainingSpec`, as all that follow: the base policy, of some demonstrations."""

    chosen: range

    def episodes(self, job: Job) -> list[Episode]:
        return job.demonstrations()[self.chosen.start : self.chosen.stop]

    def network(self) -> Any:
        job = self.job()
        return new_policy(job, self.episodes(job))

    def training(self, network: Any, division: Division) -> Training:
        job = self.job()
        return self.begin(job, network, self.episodes(job), division)

    @staticmethod
    def begin(job: Job, policy: PolicyNet, episodes: Sequence[Episode], division: Division = WHOLE) -> Training:
        return cloning(policy, episodes, job.experiment.sft, seed=job.seed, division=division)


class CloneSpec(RunSpec):
    """The policy that clones its own successes."""

    def network(self) -> Any:
        job = self.job()
        return policy_of(job, begins_with(job))

    def training(self, network: Any, division: Division) -> Training:
        job = self.job()
        return self.begin(job, network, self.solved(job), division)

    @staticmethod
    def solved(job: Job) -> list[Episode]:
        """The real successes so far, held-out ones left aside."""
        return [episode.until_solved() for episode in job.collected()[0] if episode.success]

    @staticmethod
    def begin(job: Job, policy: PolicyNet, solved: Sequence[Episode], division: Division = WHOLE) -> Training:
        episodes = [*job.demonstrations(), *solved]
        return cloning(policy, episodes, job.experiment.clone.sft, seed=job.noise_seed, division=division)


class WorldModelSpec(RunSpec):
    """The round's world model. Later rounds see their own episodes twice as often as older ones."""

    def network(self) -> Any:
        return first_world_model(self.job())

    def training(self, network: Any, division: Division) -> Training:
        job = self.job()
        return self.begin(job, network, job.executed(job.collected()[0]), division)

    @staticmethod
    def begin(job: Job, net: WorldModelNet, learn: Sequence[Episode], division: Division = WHOLE) -> Training:
        played, held = job.shares()[-1]
        return flow_matching(
            net,
            job.executed(job.demonstrations()),
            learn if job.round == 1 else [*learn, *learn[held - played :]],
            world_model_training(job),
            chunk_size=job.experiment.policy.chunk_size,
            seed=job.noise_seed,
            division=division,
        )


class DistillationSpec(WorldModelSpec):
    """The same, when it learns to take large steps."""

    @staticmethod
    def begin(job: Job, net: WorldModelNet, learn: Sequence[Episode], division: Division = WHOLE) -> Training:
        assert isinstance(net, OpenSoraWorldModel)
        episodes = [*job.executed(job.demonstrations()), *learn]
        windows = VideoClips(net, episodes, job.experiment.policy.chunk_size)
        return distillation(net, windows, job.experiment.distillation, seed=job.noise_seed, division=division)


class RewardSpec(RunSpec):
    """The success classifier; every process imagines the replays that it learns from."""

    def network(self) -> Any:
        return new_reward(self.job())

    def training(self, network: Any, division: Division) -> Training:
        job = self.job()
        return self.begin(job, network, models.load_world_model(job.folder), job.executed(job.collected()[0]), division)

    @staticmethod
    def begin(
        job: Job, net: RewardNet, dream: WorldModelNet, learn: Sequence[Episode], division: Division = WHOLE
    ) -> Training:
        config, stride = job.experiment.reward_training, dream.frame_stride
        episodes = [*job.executed(job.demonstrations()), *learn]
        clips = real_videos(episodes, stride, dream)
        for phase in range(stride):
            clips += real_videos(episodes, stride, phase=phase)
        for i in range(config.num_replays):
            imagined = replay(dream, episodes, job.experiment.policy.chunk_size, seed=job.seed + i)
            clips += replayed_videos(episodes, imagined, stride)
        return telling_success(net, clips, config, seed=job.noise_seed, division=division)
