"""Whether stages fit into the GPU is said before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_plan import miniature

from wmpo.config import Experiment
from wmpo.execution.backend import ExecutionConfig
from wmpo.report.run import RunFolder
from wmpo.stages import order
from wmpo.stages.job import Job
from wmpo.stages.memory import check_memory
from wmpo.stages.plan import Hardware, Stage, plan


def stage(name: str) -> Stage:
    return next(each for each in plan(miniature(), Hardware()).stages if each.name == name)


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A GPU with so many bytes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (count, 10**9))


def test_a_stage_that_cannot_fit_is_refused_with_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = stage("improve").memory
    least = memory.total - memory.activations
    free(monkeypatch, least - 1)
    with pytest.raises(
        ValueError, match=r"improve needs 0\.0 GB on a GPU .* are free; what helps: .*lora-rank"
    ) as error:
        check_memory(miniature(), {"improve"})
    assert "--improve.grpo.micro-batch" in str(error.value) and "--execution.shards" in str(error.value)
    check_memory(miniature(), {"evaluate"})


def test_activations_that_may_not_fit_are_told_and_what_fits_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = stage("sft").memory
    free(monkeypatch, memory.total - 1)
    state = torch.get_rng_state()
    check_memory(miniature(), {"sft"})
    assert "sft may need" in capsys.readouterr().err and torch.equal(torch.get_rng_state(), state)
    free(monkeypatch, memory.total)
    check_memory(miniature(), {"sft"})
    assert not capsys.readouterr().err


def unknown(experiment: Experiment, hardware: Hardware) -> None:
    raise ValueError("wmpo plan does not count policies of kind FlowPolicyConfig yet")


def test_what_cannot_be_counted_and_machines_without_a_gpu_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    check_memory(miniature(), {"improve"})
    free(monkeypatch, 0)
    check_memory(replace(miniature(), execution=ExecutionConfig(backend="ray")), {"improve"})
    monkeypatch.setattr("wmpo.stages.memory.plan", unknown)
    check_memory(miniature(), {"improve"})


def test_nothing_is_begun_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 0)
    with Job(RunFolder(tmp_path), miniature(), 0, quiet=True) as job, pytest.raises(ValueError, match="sft needs"):
        order.run_missing(job, [("demos", 1), ("sft", 1)])
    assert not list(tmp_path.iterdir())
