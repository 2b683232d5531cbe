"""Recipes: functions that return a whole experiment. The command line changes leaves of it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from wmpo.config import (
    BaselinesConfig,
    CollectConfig,
    DemosConfig,
    DisruptionsConfig,
    EvaluateConfig,
    Experiment,
    FidelityConfig,
)
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.recorded import RecordedConfig
from wmpo.envs.robosuite import RobosuiteConfig
from wmpo.envs.simulator import CameraConfig
from wmpo.evaluation.audit import AuditConfig
from wmpo.policy.small import SmallPolicyConfig
from wmpo.recipes_paper import paper_coffee, paper_square, paper_stack_three, paper_three_piece, single_gpu
from wmpo.reward.small import SmallRewardConfig
from wmpo.rollout.groups import GroupConfig
from wmpo.train.dpo import DPOConfig
from wmpo.train.fit import FitConfig
from wmpo.train.reward import RewardTraining
from wmpo.train.sft import CloneConfig, RFTConfig, SFTConfig
from wmpo.train.tokenizer import TokenizerTraining
from wmpo.train.wmpo import ImproveConfig
from wmpo.train.world_model import WorldModelTraining
from wmpo.world_model.small import SmallWorldModelConfig
from wmpo.world_model.tokenizer import TokenizerConfig


def quickstart() -> Experiment:
    """Meta-World, one task, two CPU cores: demonstrations in, a better policy and a report out."""
    return Experiment(demos=DemosConfig(base_at_most=0.5))


def tiny() -> Experiment:
    """Every stage in a minute, far too small to learn anything: for tests and for trying things out."""
    fit = FitConfig(num_steps=12, batch_size=8, checkpoint_seconds=0.0)
    return Experiment(
        env=MetaWorldConfig(task="coffee-button-v3", image_size=32),
        max_chunks=6,
        num_workers=1,  # a second simulator takes longer to start than these episodes to play
        num_rounds=2,
        demos=DemosConfig(num_episodes=3, noise=0.2),
        policy=SmallPolicyConfig(dim=32, depth=1, num_heads=2, num_bins=11),
        sft=SFTConfig(fit=FitConfig(num_steps=40, batch_size=16, learning_rate=2e-3, checkpoint_seconds=0.0)),
        collect=CollectConfig(num_episodes=16, num_held_out=8, shard=8, temperature=1.0),
        tokenizer=TokenizerConfig(channels=16, encoder_channels=16),
        tokenizer_training=TokenizerTraining(fit=fit),
        world_model=SmallWorldModelConfig(
            channels=(16, 24), blocks=1, condition=32, robot=(32, 16, 8), pretrained="none"
        ),
        world_model_training=WorldModelTraining(
            fit=dataclasses.replace(fit, num_steps=24, learning_rate=3e-3), check_every=12
        ),
        reward=SmallRewardConfig(channels=8),
        reward_training=RewardTraining(fit=dataclasses.replace(fit, num_steps=30, batch_size=16), num_replays=1),
        clone=CloneConfig(sft=SFTConfig(fit=dataclasses.replace(fit, batch_size=16))),
        improve=ImproveConfig(
            num_iterations=2,
            early_iterations=0,
            temperature=1.0,
            groups=GroupConfig(num_groups=2, group_size=4, dynamic_sampling=False),  # such a dream has few mixed groups
            audit=AuditConfig(every=2, num_episodes=2, max_episodes=4),
        ),
        evaluate=EvaluateConfig(num_test=4, num_validation=2, temperatures=(0.0, 1.0), num_throughput=2, num_videos=1),
        fidelity=FidelityConfig(num_starts=4, temperatures=(0.0, 0.25), num_videos=1),
        disruptions=DisruptionsConfig(
            num_starts=4, played=("light:0.5", "position:3"), push_centimetres=3.0, push_chunk=1, num_videos=1
        ),
        baselines=BaselinesConfig(
            dpo=DPOConfig(fit=dataclasses.replace(fit, batch_size=2)),
            rft=RFTConfig(sft=SFTConfig(fit=fit)),
            more_demos=SFTConfig(fit=dataclasses.replace(fit, num_steps=40)),
            real_groups=3,
        ),
    )


def _from_scratch() -> Experiment:
    """Small networks for another robot than the one that the shipped weights have seen; ten minutes are no aim here."""
    return Experiment(
        num_rounds=3,
        reward_training=RewardTraining(fit=FitConfig(num_steps=300, batch_size=64, learning_rate=1e-3)),
        policy=SmallPolicyConfig(chunk_size=8),
        sft=SFTConfig(fit=FitConfig(num_steps=3000, batch_size=32, learning_rate=6e-4)),
        world_model=SmallWorldModelConfig(pretrained="none"),
        world_model_training=WorldModelTraining(
            fit=FitConfig(num_steps=4000, batch_size=16, learning_rate=1e-3, ema=0.995), check_every=500, patience=3
        ),
    )


def square() -> Experiment:
    """robosuite's Square, the paper's Square_D0, with its time limit, chunks and budget P, but small models and
    pictures of two cameras: the nut is seen by the one at the wrist. Nothing is pretrained, as the shipped weights have
    seen another robot. What came of it: docs/robosuite.md."""
    base = _from_scratch()
    camera = CameraConfig(azimuth=180.0, elevation=-40.0, distance=0.65, lookat=(0.04, 0.14, 0.88))
    fit = dataclasses.replace(base.world_model_training.fit, num_steps=2500)
    return dataclasses.replace(
        base,
        num_rounds=2,
        env=RobosuiteConfig(task="Square", camera=camera, more_cameras=("robot0_eye_in_hand",)),
        max_chunks=23,
        demos=DemosConfig(num_episodes=200, noise=0.1),
        sft=SFTConfig(fit=dataclasses.replace(base.sft.fit, num_steps=6000)),
        world_model_training=dataclasses.replace(
            base.world_model_training, fit=fit, refresh_share=0.3, check_every=250
        ),
    )


def recorded() -> Experiment:
    """Any robot, from recorded episodes alone: ``--demos.recorded`` are solved demonstrations, ``--collect.recorded``
    episodes of a policy with failures. Cameras, picture size, actions, rate, numbers of episodes and the time limit are
    what the datasets hold, unless they are set. Nothing is pretrained, and nothing is played: no audits, no
    evaluation, and success in the dream is judged by replays, as another policy than the clone may have acted. Not
    tuned: no whole run of a real robot was measured yet."""
    return dataclasses.replace(
        _from_scratch(),
        env=RecordedConfig(),
        max_chunks=0,
        num_rounds=1,
        demos=DemosConfig(num_episodes=0),
        collect=CollectConfig(num_episodes=0, num_held_out=0),
        reward_training=dataclasses.replace(_from_scratch().reward_training, on_policy=False),
        improve=ImproveConfig(audit=AuditConfig(max_episodes=0)),
    )


RECIPES: dict[str, Callable[[], Experiment]] = {
    "quickstart": quickstart,
    "tiny": tiny,
    "square": square,
    "recorded": recorded,
    "single-gpu": single_gpu,
    "paper-square": paper_square,
    "paper-coffee": paper_coffee,
    "paper-stack-three": paper_stack_three,
    "paper-three-piece": paper_three_piece,
}


def recipe(name: str) -> Experiment:
    """The experiment of a recipe; raises ValueError with the nearest names."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=2, cutoff=0.3) or sorted(RECIPES)
        raise ValueError(f"unknown recipe {name!r}; did you mean {' or '.join(near)}?")
    return dataclasses.replace(RECIPES[name]())
