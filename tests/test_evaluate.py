"""Which policy is handed in, and that nothing else is tested then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import finished_run

from wmpo.envs.simulated import SimulatedEnv
from wmpo.evaluation.policy import Outcomes
from wmpo.stages import measure
from wmpo.stages.job import Job


def outcomes(solved: int, count: int, temperature: float) -> Outcomes:
    return Outcomes(success=np.arange(count) < solved, num_steps=np.full(count, 7), temperature=temperature)


@pytest.mark.parametrize(
    ("improved", "handed_in"), [(16, "improved"), (10, "improved"), (9, "improved"), (8, "base"), (0, "base")]
)
def test_a_policy_that_has_clearly_lost_is_not_handed_in(
    improved: int, handed_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished_run(tmp_path / "run")
    job.round = 2
    played: list[tuple[str, str]] = []

    def play_once(*args: Any) -> Outcomes:
        *_, split, name, _count, temperature = args
        played.append((split, name))
        solved = {"base": 10, "improved": improved}[name]  # the same starts: all that differ were lost, or won
        return outcomes(solved if temperature == 0 else 0, 16, temperature)

    monkeypatch.setattr(Job, "real_env", lambda *args, **settings: SimulatedEnv.__new__(SimulatedEnv))
    monkeypatch.setattr(Job, "collected", lambda self: ([], []))
    monkeypatch.setattr(measure, "play_once", play_once)
    for part in ("imagined_starts", "_throughput", "make_videos", "_write_results"):
        monkeypatch.setattr(measure, part, lambda *args: {})
    monkeypatch.setattr(measure, "_imagined_success", lambda *args: 0.5)
    measure.evaluate(job)
    found = job.root.summary("evaluate") or {}
    assert found["handed_in"] == handed_in and found["validation"] == {"base": 10, "improved": improved, "n": 2}
    assert (("test", "improved") in played) == (handed_in == "improved") and ("test", "base") in played
    solved = improved if handed_in == "improved" else 10
    assert found["improved"]["best"]["success"] == solved / 16
    assert found["difference"]["best"]["points"] == pytest.approx(100 * (solved - 10) / 16)
