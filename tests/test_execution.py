"""How a run is spread over processes is no part of what it is; what cannot be is refused before anything is played."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import fake_ray
import pytest

from wmpo.execution.backend import ExecutionConfig, serve_if_enlisted
from wmpo.execution.ray_backend import ClusterConfig
from wmpo.recipes import tiny
from wmpo.stages.job import open_job


def test_a_run_goes_on_with_other_processes_but_not_with_other_settings(tmp_path: Path) -> None:
    begun = tiny()
    open_job(tmp_path, "tiny", begun, 0).root.complete("demos", 1.0, {})
    grpo = replace(begun.improve.grpo, micro_batch=2)
    other = replace(
        begun,
        num_workers=3,
        execution=ExecutionConfig(backend="processes", processes=2, shards=1),
        improve=replace(begun.improve, grpo=grpo),
        sft=replace(begun.sft, fit=replace(begun.sft.fit, micro_batch=4)),
    )
    assert open_job(tmp_path, "tiny", other, 0).experiment is other
    with pytest.raises(ValueError, match=r"improve.grpo.num_minibatches: 4 there, 3 now"):
        changed = replace(begun.improve, grpo=replace(grpo, num_minibatches=3))
        open_job(tmp_path, "tiny", replace(other, improve=changed), 0)


def test_torchrun_and_its_backend_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the backend is torchrun, but .* go together"):
        ExecutionConfig(backend="torchrun").prepare()
    ExecutionConfig().prepare()
    assert not serve_if_enlisted(needed=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="the backend is local, but"):
        ExecutionConfig().prepare()
    assert serve_if_enlisted(needed=False), "the others have nothing to do in commands of one process"


def out_of_reach(**options: object) -> None:
    raise ConnectionError("nobody there")


def test_shards_and_a_missing_ray_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"execution.shards 3 must divide the 4 processes"):
        ExecutionConfig(backend="processes", processes=4, shards=3).prepare()
    ray = fake_ray.module({})
    ray.is_initialized, ray.init = lambda: False, out_of_reach
    monkeypatch.setitem(sys.modules, "ray", ray)
    for address, where in (("head:6379", "head:6379"), ("", "this machine")):
        with pytest.raises(
            ValueError, match=rf"no Ray cluster answers at {where} \(nobody there\); start one with ray"
        ):
            ExecutionConfig(backend="ray", cluster=ClusterConfig(address=address)).prepare()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'wmpo\[ray\]'"):
        ExecutionConfig(backend="ray").prepare()
