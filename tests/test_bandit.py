"""The whole learning path on a one-chunk bandit: signs, masks and weights are right only if success rises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from miniatures import BINS, BanditEnv, TablePolicy, small_policy, some_starts

from wmpo.execution.local import LocalSampler
from wmpo.policy.codec import ActionCodec
from wmpo.protocols import TrainablePolicy
from wmpo.rl.grpo import GRPOConfig, GRPOLearner, minibatches
from wmpo.rl.loss import ClipConfig
from wmpo.rollout.groups import GroupConfig, sample_groups
from wmpo.rollout.run import run_episodes

CODEC = ActionCodec((0.0, 0.0), (BINS - 1.0, BINS - 1.0), 2, BINS)  # an action is its token


def success(policy: TrainablePolicy, env: BanditEnv) -> float:
    rollouts = run_episodes(env, policy, some_starts(256), temperature=1.0, seed=7)
    return float(rollouts.success.float().mean())


def trained(
    make: Callable[[], TrainablePolicy],
    env: BanditEnv,
    *,
    rate: float,
    iterations: int,
    flip: bool = False,
    ratio: Literal["token", "chunk"] = "token",
) -> TrainablePolicy:
    """``flip`` rewards failure."""
    learner = GRPOLearner(
        make(), GRPOConfig(learning_rate=rate, num_minibatches=2, clip=ClipConfig(ratio=ratio)), temperature=1.0
    )
    sampler, groups = LocalSampler(env, make()), GroupConfig(num_groups=8, group_size=8, max_rounds=2)
    for iteration in range(iterations):
        sampler.load(learner.publish())
        episodes = sample_groups(sampler, some_starts(16), groups, temperature=1.0, seed=0, iteration=iteration)
        if episodes.kept is None:
            break
        kept = replace(episodes.kept, success=~episodes.kept.success) if flip else episodes.kept
        for part in minibatches(kept, learner.config, seed=0, iteration=iteration):
            learner.step(part)
    return learner.policy


def table() -> TablePolicy:
    return TablePolicy(CODEC, torch.zeros(CODEC.num_tokens, BINS))


def network() -> TrainablePolicy:
    policy = small_policy(chunk_size=2, actions=2)
    policy.codec = CODEC
    return policy


def test_success_rises_from_a_fifth_to_nearly_always() -> None:
    env = BanditEnv(2, 3)
    assert 0.1 < success(table(), env) < 0.3
    policy = trained(table, env, rate=0.05, iterations=30)
    assert success(policy, env) > 0.9
    others = next(policy.parameters()).softmax(dim=-1)[1:]
    assert others.max() < 0.6, "tokens that do not matter stay undecided"


def test_rewarding_failure_makes_success_vanish() -> None:
    env = BanditEnv(2, 5)
    assert 0.5 < success(table(), env) < 0.7
    assert success(trained(table, env, rate=0.05, iterations=30, flip=True), env) < 0.1


def test_a_network_learns_it_too() -> None:
    env = BanditEnv(1, 3)
    assert success(network(), env) < 0.7
    assert success(trained(network, env, rate=3e-3, iterations=12), env) > 0.9


def test_one_ratio_per_chunk_learns_it_too() -> None:
    env = BanditEnv(2, 3)
    assert success(trained(table, env, rate=0.05, iterations=30, ratio="chunk"), env) > 0.9
