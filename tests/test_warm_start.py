"""Filtered cloning before imagination: what it learns from, that it is kept, and that it is off by default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_run import finished_run

from wmpo.data.episode import Episode
from wmpo.policy.small import SmallPolicy
from wmpo.stages import learn
from wmpo.stages.job import Job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    job = finished_run(tmp_path / "run")
    job.round = 2
    monkeypatch.setattr(Job, "shares", lambda self: [(3, 1), (3, 1)][: self.round])
    return job


def first(job: Job) -> SmallPolicy:
    return learn.first_policy(job, 2, job.log("improve"))


def test_the_round_begins_with_its_own_policy_unless_asked(job: Job) -> None:
    plain, expected = first(job), learn.policy_of(job, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), expected.parameters(), strict=True))
    assert not job.folder.model("warm").exists()


def test_a_warm_start_clones_real_successes_that_are_not_held_out(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.experiment = replace(job.experiment, improve=replace(job.experiment.improve, warm_start=True))
    seen: list[Episode] = []
    clone = learn.clone

    def watched(policy: SmallPolicy, episodes: list[Episode], *args: Any, **settings: Any) -> None:
        seen.extend(episodes)
        clone(policy, episodes, *args, **settings)

    monkeypatch.setattr(learn, "clone", watched)
    warm, before = first(job), learn.policy_of(job, 2)
    assert not all(torch.equal(a, b) for a, b in zip(warm.parameters(), before.parameters(), strict=True))
    allowed = {episode.start for episode in job.collected()[0] if episode.success}
    own = [episode for episode in seen if episode.policy != "expert"]
    assert own and {episode.start for episode in own} == allowed
    assert all(len(episode.actions) == episode.solved_at for episode in own)
    seen.clear()
    again = first(job)
    assert not seen, "what is complete is not trained again"
    assert all(torch.equal(a, b) for a, b in zip(warm.parameters(), again.parameters(), strict=True))
