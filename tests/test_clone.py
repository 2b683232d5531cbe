"""Filtered cloning before imagination: what it learns from, what imagination begins with, how it is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_run import finished_run
from torch import nn

from wmpo.data.episode import Episode
from wmpo.policy.small import SmallPolicy
from wmpo.stages import learn
from wmpo.stages.job import Job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    job = finished_run(tmp_path / "run")
    job.round = 2
    job.folder.complete("collect", 1.0, {"begins_with": 1})
    monkeypatch.setattr(Job, "shares", lambda self: [(3, 1), (3, 1)][: self.round])
    return job


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_real_successes_that_are_not_held_out_are_cloned(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Episode] = []
    clone = learn.clone

    def watched(policy: SmallPolicy, episodes: list[Episode], *args: Any, **settings: Any) -> None:
        assert equal(policy, learn.policy_of(job, 1)), "cloning goes on from the policy that the collection chose"
        seen.extend(episodes)
        clone(policy, episodes, *args, **settings)

    monkeypatch.setattr(learn, "clone", watched)
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
