"""Filtered cloning before imagination: what it learns from, what imagination begins with, how it is left out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import finished_run, recorded
from torch import nn

from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes, read_episodes
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.evaluation.policy import Outcomes
from wmpo.policy.small import SmallPolicy
from wmpo.stages import baselines, begin, learn, measure, record
from wmpo.stages.job import Job
from wmpo.train.fit import Training


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    job = finished_run(tmp_path / "run")
    fit = replace(job.experiment.sft.fit, num_steps=2)
    job.experiment = replace(job.experiment, sft=replace(job.experiment.sft, fit=fit))
    job.round = 2
    job.folder.complete("collect", 1.0, {"begins_with": 1})
    monkeypatch.setattr(Job, "shares", lambda self: [(3, 1), (3, 1)][: self.round])
    return job


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_real_successes_that_are_not_held_out_are_cloned(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Episode] = []
    cloning = begin.cloning

    def watched(policy: SmallPolicy, episodes: list[Episode], *args: Any, **settings: Any) -> Training:
        assert equal(policy, learn.policy_of(job, 1)), "cloning goes on from the policy that the collection chose"
        seen.extend(episodes)
        return cloning(policy, episodes, *args, **settings)

    monkeypatch.setattr(begin, "cloning", watched)
    learn.clone_successes(job)
    assert not equal(learn.first_policy(job), learn.policy_of(job, 1))
    allowed = {episode.start for episode in job.collected()[0] if episode.success}
    own = [episode for episode in seen if episode.policy != "expert"]
    assert own and {episode.start for episode in own} == allowed
    assert all(len(episode.actions) == episode.solved_at for episode in own)
    assert (job.folder.summary("clone") or {})["successes"] == len(own)


def test_without_it_a_round_begins_with_the_policy_as_it_is(job: Job) -> None:
    job.experiment = replace(job.experiment, clone=replace(job.experiment.clone, enabled=False))
    learn.clone_successes(job)
    assert equal(learn.first_policy(job), learn.policy_of(job, 1))
    assert job.folder.summary("clone") and not job.folder.model("cloned").exists()


def expert(job: Job, monkeypatch: pytest.MonkeyPatch, stop_at: int = 99) -> list[tuple[list[int], float]]:
    """Every second of its episodes is solved. Returns (starts, noise) of what it is asked for, later too; the request
    after ``stop_at`` is interrupted."""
    asked: list[tuple[list[int], float]] = []
    like = recorded(0, 5, policy="expert")

    def play(env: object, seeds: list[int], *, noise: float, frame_stride: int) -> list[Any]:
        asked.append((seeds, noise))
        if len(asked) == stop_at + 1:
            raise KeyboardInterrupt
        return [(like.frames, like.actions, 5 if seed % 2 else -1) for seed in seeds]

    monkeypatch.setattr(SimulatedEnv, "play_expert", play)
    job.experiment = replace(job.experiment, demos=replace(job.experiment.demos, num_episodes=3, base_at_most=0.5))
    append_episodes(job.dataset("demonstrations"), [recorded(103, 5, policy="expert")], fps=job.fps)
    job.root.complete("demos", 1.0, {})
    job.round = 1
    return asked


def test_interrupted_demonstrations_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {}
    for name, stop_at in (("whole", 99), ("stopped", 2)):
        job = finished_run(tmp_path / name, rounds=1)
        shutil.rmtree(job.dataset("demonstrations"))
        played = expert(job, monkeypatch, stop_at)
        shutil.rmtree(job.dataset("demonstrations"))
        config = job.experiment
        demos, collect = replace(config.demos, num_episodes=10), replace(config.collect, shard=3)
        job.experiment = replace(config, demos=demos, collect=collect)
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                record.demos(job)
            assert len(read_episodes(job.dataset("demonstrations"))) == 7, "what was written stays"
        record.demos(job)
        seen[name] = [episode.start for episode in read_episodes(job.dataset("demonstrations"))]
    assert seen["stopped"] == seen["whole"] and len(set(seen["whole"])) == 10
    again = [seed for seeds, _ in played[3:] for seed in seeds]
    assert again and not set(again) & set(seen["stopped"][:7]), "and is not played again"


@pytest.mark.parametrize(
    ("rates", "attempts"),
    [
        ([0.4], 1),
        ([1.0, 0.55], 2),  # within one standard error of the bound is near enough
        ([1.0, 0.7, 1.0], 4),  # the last one is not asked about
    ],
)
def test_a_base_policy_that_solves_too_much_is_cloned_again_from_noisier_demonstrations(
    rates: list[float], attempts: int, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, cloned, played = list(rates), [], expert(job, monkeypatch)

    def measured(job: Job, log: object, env: object, policy: SmallPolicy, name: str, *, enough: float) -> Outcomes:
        assert enough == 0.5
        success = np.arange(20) < round(20 * asked.pop(0))
        return Outcomes(success=success, num_steps=np.full(20, 9), temperature=0.0)

    monkeypatch.setattr(learn, "best_decoding", measured)  # the one in measure, asked below, is the real one
    cloning = begin.cloning

    def watched(policy: SmallPolicy, episodes: list[Episode], *args: Any, **settings: Any) -> Training:
        cloned.append([episode.start for episode in episodes])
        return cloning(policy, episodes, *args, **settings)

    monkeypatch.setattr(begin, "cloning", watched)
    first = [episode.start for episode in job.demonstrations()]
    learn.sft(job)
    assert len(cloned) == attempts and cloned[0] == first and not asked
    assert all(len(starts) == 3 and all(start % 2 for start in starts) for starts in cloned[1:])
    assert len({start for starts in cloned for start in starts}) == 3 * attempts, "no start twice"
    noise = job.experiment.demos.noise
    assert list(dict.fromkeys(n for _, n in played)) == [noise * 1.25**i for i in range(1, attempts)]
    seen = [episode.start for episode in job.demonstrations()]
    assert seen == cloned[-1], "later stages see what the base policy was cloned from"
    assert (job.root.summary("sft") or {})["attempt"] == attempts - 1
    known = len(rates) == attempts
    assert ((job.root.summary("sft") or {})["validated"] is not None) == known
    if known:  # real episodes are dear
        env = job.real_env(Purpose("validation", "base"), frame_stride=1)
        again = measure.best_decoding(job, job.log("evaluate"), env, learn.policy_of(job, 1), "base")
        assert again.success.mean() == rates[-1] and again.num_steps.tolist() == [9] * 20


def test_recorded_demonstrations_are_taken_as_they_are(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    played = expert(job, monkeypatch)
    job.experiment = replace(job.experiment, demos=replace(job.experiment.demos, recorded="somewhere", num_episodes=2))
    learn.sft(job)
    assert (job.root.summary("sft") or {})["demonstrations"] == [0, 3] and not played


def test_more_demonstrations_are_those_of_the_same_expert(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    played = expert(job, monkeypatch)
    job.root.complete("sft", 1.0, {"demonstrations": [0, 3], "attempt": 2})
    job.root.complete("base-audit", 1.0, {"solved": []})
    audit = replace(job.experiment.improve.audit, max_episodes=0)
    job.experiment = replace(job.experiment, improve=replace(job.experiment.improve, audit=audit))
    baselines.more_demos(job)
    assert {noise for _, noise in played} == {job.experiment.demos.noise * 1.25**2}
    assert sum(len(seeds) for seeds, _ in played) == job.experiment.collect.num_episodes


def test_what_the_check_of_the_base_policy_plays_is_in_the_ledger(job: Job) -> None:
    job.experiment = replace(job.experiment, demos=replace(job.experiment.demos, num_episodes=2, base_at_most=0.99))
    job.root.complete("demos", 1.0, {})
    job.round, config = 1, job.experiment.evaluate
    with job:
        learn.sft(job)
    assert Ledger(job.root.ledger).count() == {"validation": config.num_validation * len(config.temperatures)}
