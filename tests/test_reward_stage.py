"""The threshold of imagined success: the policy to improve must be as successful in the dream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import finished_run, recorded

from wmpo.data.lerobot import append_episodes, read_episodes
from wmpo.envs.imagined import ImaginedEnv
from wmpo.reward.small import SmallRewardConfig
from wmpo.rollout.run import run_episodes
from wmpo.stages import learn
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import Job
from wmpo.stages.rounds import imagined_env, policy_of
from wmpo.train.reward import RewardTraining, calibrate, threshold_of


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    job = finished_run(tmp_path / "run", rounds=1)
    append_episodes(job.dataset("collected"), [recorded(20 + i, 8) for i in range(5)], fps=job.fps)  # 8, 3 solved
    job.root.complete("world-model", 1.0, {})
    monkeypatch.setattr(Job, "shares", lambda self: [(8, 4)])
    return job


def solved_in_the_dream(job: Job, env: ImaginedEnv) -> float:
    starts = imagined_starts(read_episodes(job.dataset("collected")))
    twice = torch.arange(2 * len(starts))
    starts = starts.rows(twice % len(starts)).with_ids(twice, twice)
    played = run_episodes(
        env, policy_of(job, 1), starts, temperature=job.experiment.improve.temperature, seed=job.noise_seed
    )
    return float(played.success.float().mean())


def test_the_policy_that_was_collected_with_solves_as_many_in_the_dream_as_really(job: Job) -> None:
    dream = imagined_env(job, 1)
    found = learn._on_policy(job, dream.world_model, dream.reward_model)  # type: ignore[arg-type]
    assert (found["success"], found["n"]) == (3 / 8, 8)
    dream.reward_model.threshold = found["threshold"]
    assert solved_in_the_dream(job, dream) == pytest.approx(3 / 8, abs=1 / 16)


@pytest.mark.parametrize("matched", [25.0, -25.0])
def test_that_threshold_counts_unless_replays_want_a_higher_one(
    matched: float, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"threshold": matched, "success": 3 / 8, "n": 8}
    monkeypatch.setattr(learn, "_on_policy", lambda *args: found)
    learn.reward(job)
    summary = job.root.summary("reward") or {}
    assert summary["on_policy"] == (found if matched > 0 else {})
    assert (summary["threshold"] == matched) == (matched > 0)
    assert summary["imagined"]["threshold"] == summary["threshold"] == imagined_env(job, 1).reward_model.threshold


def test_episodes_may_be_imagined_in_parts(job: Job) -> None:
    dream, found = imagined_env(job, 1), []
    for most in (0, 5):
        job.experiment = replace(job.experiment, improve=replace(job.experiment.improve, micro_batch=most))
        found.append(learn._on_policy(job, dream.world_model, dream.reward_model))  # type: ignore[arg-type]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_policy_that_was_dropped_sets_no_threshold(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later round may go on from an earlier policy than the one that its episodes were played with."""
    job.round, places = 2, []
    monkeypatch.setattr(learn, "begins_with", lambda job: 1)
    monkeypatch.setattr(learn, "policy_of", lambda job, number: places.append(number) or policy_of(job, number))
    dream = imagined_env(job, 1)
    found = learn._on_policy(job, dream.world_model, dream.reward_model)  # type: ignore[arg-type]
    assert places == [1] and found["n"] == 8


def test_without_it_held_out_replays_choose(job: Job) -> None:
    config = replace(job.experiment.reward_training, on_policy=False)
    job.experiment = replace(job.experiment, reward_training=config)
    learn.reward(job)
    assert (job.root.summary("reward") or {})["on_policy"] == {}


def test_a_policy_that_solved_nothing_sets_no_threshold(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [episode for episode in read_episodes(job.dataset("collected")) if not episode.success]
    monkeypatch.setattr(learn, "read_episodes", lambda path: failures)
    dream = imagined_env(job, 1)
    assert learn._on_policy(job, dream.world_model, dream.reward_model) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(("rate", "count"), [(0.25, 2), (0.5, 4), (0.875, 7)])
def test_the_threshold_lets_the_wanted_share_pass(rate: float, count: int) -> None:
    peaks = torch.randn(8, generator=torch.Generator().manual_seed(0)).numpy()
    assert (peaks > threshold_of(peaks, rate)).sum() == count


def test_the_threshold_of_imagined_videos_is_never_below_that_of_replays() -> None:
    """A dream in which a policy succeeds too rarely would else call its failures solved."""
    score, truth = np.array([-6.0, -5.0, -4.0, 5.0, 6.0]), np.array([False, False, False, True, True])
    found = {}
    for matched in (-5.5, 5.5):
        net = SmallRewardConfig(channels=8).build(32)
        found[matched] = calibrate(net, score, score, truth, RewardTraining(), matched=matched)
        assert net.threshold == found[matched]["threshold"] == found[matched]["imagined"]["threshold"]
    assert -4 < found[-5.5]["threshold"] < 5 and found[-5.5]["imagined"]["j"] == 1
    assert found[5.5]["threshold"] == 5.5 and found[5.5]["imagined"]["tpr"] == 0.5
