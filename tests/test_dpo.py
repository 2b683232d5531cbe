"""Preferences: the loss by hand, which episodes are paired, and that success rises."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import BINS, SIZE, BanditEnv, TablePolicy, rollouts_of, small_policy, some_starts

from wmpo.data.episode import Episode
from wmpo.policy.codec import ActionCodec
from wmpo.report.run import RunFolder, StageLog
from wmpo.rl.dpo import dpo_loss, sequence_logprob
from wmpo.rng import keyed
from wmpo.rollout.run import run_episodes
from wmpo.stages.record import episodes_of
from wmpo.train.dpo import DPOConfig, pair, prefer
from wmpo.train.dpo import rollouts_of as recorded_rollouts
from wmpo.train.fit import FitConfig
from wmpo.types import Rollouts
from wmpo.views import ONE_VIEW

CODEC = ActionCodec((0.0, 0.0), (BINS - 1.0, BINS - 1.0), 2, BINS)


def test_the_loss_by_hand() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    assert dpo_loss(zero, zero, one, one, beta=0.1).total.item() == pytest.approx(math.log(2))
    chosen, rejected = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -2.0])
    found = dpo_loss(chosen, rejected, torch.tensor([-2.0, -4.0]), torch.tensor([-2.5, -3.0]), beta=0.5)
    assert found.margin.tolist() == pytest.approx([0.5 * (1 + 0.5), 0.5 * (0 - 1)])
    expected = (math.log1p(math.exp(-0.75)) + math.log1p(math.exp(0.5))) / 2
    assert found.total.item() == pytest.approx(expected)


def test_the_gradient_raises_the_success_and_lowers_the_failure_most_where_they_are_told_apart_worst() -> None:
    chosen = torch.tensor([0.0, 3.0], requires_grad=True)
    rejected = torch.tensor([2.0, -3.0], requires_grad=True)
    dpo_loss(chosen, rejected, torch.zeros(2), torch.zeros(2), beta=0.5).total.backward()
    assert chosen.grad is not None and rejected.grad is not None
    weight = [0.5 / (1 + math.exp(0.5 * difference)) / 2 for difference in (-2.0, 6.0)]
    assert chosen.grad.tolist() == pytest.approx([-w for w in weight])
    assert rejected.grad.tolist() == pytest.approx(weight)


def test_a_sequence_is_the_sum_of_its_executed_tokens_and_of_no_other() -> None:
    logprob = torch.tensor([[-1.0, -2.0], [-4.0, -8.0], [-16.0, -32.0]], requires_grad=True)
    executed = torch.tensor([[True, True], [True, False], [False, True]])
    total = sequence_logprob(logprob, executed, torch.tensor([0, 0, 2]), 3)
    assert total.tolist() == [-7.0, 0.0, -32.0]
    total.sum().backward()
    assert logprob.grad is not None and torch.equal(logprob.grad, executed.float())


def test_a_success_is_paired_with_failures_from_its_own_start_or_else_of_its_task() -> None:
    rollouts = replace(
        rollouts_of([True, False, True, False, True], [0] * 5),
        sim_seed=torch.tensor([7, 7, 8, 9, 10]),
        instruction=("push", "push", "push", "push", "pull"),
    )
    pairs = pair(rollouts, "start")
    assert pairs.success.tolist() == [0, 2] and pairs.same_start == 1, "nobody failed to pull"
    assert [failures.tolist() for failures in pairs.failures] == [[1], [1, 3]]
    assert [failures.tolist() for failures in pair(rollouts, "task").failures] == [[1, 3], [1, 3]]
    won, lost = pairs.draw(keyed(0, "test"), 200)
    assert rollouts.success[won].all() and not rollouts.success[lost].any()
    assert (lost[won == 0] == 1).all() and set(lost[won == 2].tolist()) == {1, 3}
    with pytest.raises(ValueError, match="5 of 5 episodes succeeded"):
        pair(replace(rollouts, success=torch.ones(5, dtype=torch.bool)), "start")


def learn(policy: TablePolicy, played: Rollouts, imitation: float, path: Path) -> None:
    fit = FitConfig(num_steps=120, batch_size=16, learning_rate=0.05, weight_decay=0.0)
    folder = RunFolder(path)
    log, checkpoint = StageLog(folder, "dpo", quiet=True), folder.checkpoint("dpo")
    config = DPOConfig(beta=0.5, imitation=imitation, fit=fit)
    prefer(policy, played, config, temperature=1.0, seed=0, checkpoint=checkpoint, log=log)


@pytest.mark.parametrize("imitation", [0.0, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_success_rises_on_the_bandit_and_falls_when_failure_is_preferred(
    flip: bool, imitation: float, tmp_path: Path
) -> None:
    policy, env = TablePolicy(CODEC, torch.zeros(CODEC.num_tokens, BINS)), BanditEnv(2, 4)
    played = run_episodes(env, policy, some_starts(128), temperature=1.0, seed=0)
    if flip:
        played = replace(played, success=~played.success)
    learn(policy, played, imitation, tmp_path)
    success = run_episodes(env, policy, some_starts(256), temperature=1.0, seed=7).success.float().mean()
    assert success < 0.15 if flip else success > 0.8, success


def test_imitation_keeps_successes_likely(tmp_path: Path) -> None:
    """A success and a failure with the same first token: preference takes it for worthless, as it cancels out."""
    shared, rest = torch.tensor([[[1, 2]], [[1, 3]]]), CODEC.num_tokens - 2
    tokens = torch.cat([shared, torch.zeros(2, 1, rest, dtype=torch.long)], dim=2)
    gain = {}
    for imitation in (0.0, 1.0):
        policy = TablePolicy(CODEC, torch.zeros(CODEC.num_tokens, BINS))
        played = replace(rollouts_of([True, False], [0, 0], chunks=1), tokens=tokens, sim_seed=torch.tensor([0, 0]))
        played = replace(played, executed=torch.ones_like(tokens, dtype=torch.bool))
        played = replace(played, logprob=torch.full(tokens.shape, -math.log(BINS)))
        learn(policy, played, imitation, tmp_path / str(imitation))
        gain[imitation] = policy.logits.detach().log_softmax(dim=1)[0, 1].item() + math.log(BINS)
    assert abs(gain[0.0]) < 0.1 and gain[1.0] > 1, gain


@pytest.mark.usefixtures("float32")
def test_recorded_episodes_become_the_rollouts_that_they_were() -> None:
    policy = small_policy(chunk_size=2)
    played = run_episodes(BanditEnv(0, 1), policy, some_starts(6), temperature=0.7, seed=0, record_video=True)
    again = recorded_rollouts(episodes_of(played, policy, "base", ONE_VIEW), policy, temperature=0.7)
    assert torch.equal(again.tokens, played.tokens) and torch.equal(again.executed, played.executed)
    assert torch.equal(again.frame, played.frame) and torch.equal(again.success, played.success)
    assert torch.allclose(again.logprob, played.logprob, atol=1e-5)


def test_nothing_after_success_counts() -> None:
    frames, actions = np.zeros((5, SIZE, SIZE, 3), dtype=np.uint8), np.zeros((4, 2), dtype=np.float32)
    episode = Episode(
        frames=frames, actions=actions, solved_at=3, instruction="push", start=0, episode_id=0, policy="base"
    )  # fmt: skip
    rollouts = recorded_rollouts([episode], small_policy(chunk_size=2), temperature=1.0)
    assert rollouts.executed.tolist() == [[[True] * 4, [True, True, False, False]]]
    assert len(episode.until_solved().actions) == 3 and episode.until_solved().success
