"""Filtered cloning before imagination: what it learns from, what imagination begins with, how it is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import finished_run, recorded
from torch import nn

from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.policy import Outcomes
from wmpo.policy.small import SmallPolicy
from wmpo.stages import begin, learn, measure
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


@pytest.mark.parametrize(
    ("rates", "tried"),
    [
        ([0.4], [range(3)]),
        ([1.0, 0.55], [range(3), range(1)]),  # within one standard error of the bound is near enough
        ([1.0, 0.7, 1.0], [range(3), range(1), range(1, 2), range(2, 3)]),
    ],
)
def test_a_base_policy_that_solves_too_much_is_cloned_again_from_fewer_demonstrations(
    rates: list[float], tried: list[range], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half as many, then each by itself; there is nothing after the last one that could be asked about."""
    asked, cloned = list(rates), []

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
    job.experiment = replace(job.experiment, demos=replace(job.experiment.demos, base_at_most=0.5))
    append_episodes(job.dataset("demonstrations"), [recorded(103, 5, policy="expert")], fps=job.fps)
    job.root.complete("demos", 1.0, {})
    job.round, every = 1, [episode.start for episode in job.demonstrations()]
    learn.sft(job)
    assert cloned == [[every[i] for i in chosen] for chosen in tried] and not asked
    seen = [episode.start for episode in job.demonstrations()]
    assert seen == cloned[-1], "later stages see what the base policy was cloned from"
    known = len(rates) == len(tried)
    assert ((job.root.summary("sft") or {})["validated"] is not None) == known
    if known:  # real episodes are dear
        env = job.real_env(Purpose("validation", "base"), frame_stride=1)
        again = measure.best_decoding(job, job.log("evaluate"), env, learn.policy_of(job, 1), "base")
        assert again.success.mean() == rates[-1] and again.num_steps.tolist() == [9] * 20


def test_what_the_check_of_the_base_policy_plays_is_in_the_ledger(job: Job) -> None:
    job.experiment = replace(job.experiment, demos=replace(job.experiment.demos, base_at_most=0.99))
    job.root.complete("demos", 1.0, {})
    job.round, config = 1, job.experiment.evaluate
    with job:
        learn.sft(job)
    assert Ledger(job.root.ledger).count() == {"validation": config.num_validation * len(config.temperatures)}


def test_many_demonstrations_are_halved_until_one_is_left_and_then_taken_one_by_one() -> None:
    assert [len(chosen) for chosen in learn._fewer(60)[:6]] == [60, 30, 15, 7, 3, 1]
    assert learn._fewer(1) == [range(1)] and learn._fewer(4)[2:] == [range(i, i + 1) for i in range(4)]
