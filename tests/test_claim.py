"""Whose a folder is: of two processes the second one is told, or takes other work; who dies leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from errno import ENOLCK
from pathlib import Path

import pytest

from wmpo.checkpoint import read_json
from wmpo.cli import main
from wmpo.recipes import recipe
from wmpo.stages import claim, compare
from wmpo.stages.claim import claimed, sole
from wmpo.stages.job import begun_experiment, open_job


def test_a_claim_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as mine, claimed(tmp_path / "run") as other, claimed(tmp_path / "another") as third:
        assert (mine, other, third) == (True, False, True)
    with pytest.raises(KeyError), sole(tmp_path / "run"):
        raise KeyError
    with sole(tmp_path / "run"):
        pass


def test_a_killed_process_leaves_no_claim(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from wmpo.stages.claim import sole\n"
    code += "with sole(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "mine\n"
        with claimed(tmp_path) as mine:
            assert not mine
        process.kill()
    with claimed(tmp_path) as mine:
        assert mine


def test_without_locks_everybody_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(ENOLCK, "No locks available")

    monkeypatch.setattr(claim.fcntl, "flock", none)
    with claimed(tmp_path) as mine:
        assert mine


def test_a_run_in_use_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sole(tmp_path / "tiny"), pytest.raises(SystemExit):
        main(["demos", "tiny", "--runs", str(tmp_path)])
    said = capsys.readouterr().err
    assert f"another wmpo process is at work in {tmp_path / 'tiny'}; wait" in said and "Traceback" not in said
    assert not (tmp_path / "tiny/config.json").exists()


def test_settings_of_a_command_that_was_refused_do_not_stay(tmp_path: Path) -> None:
    open_job(tmp_path, "tiny", recipe("tiny"), 0)
    assert begun_experiment(tmp_path) is None
    job = open_job(tmp_path, "tiny", recipe("tiny"), 1)
    assert read_json(tmp_path / "config.json")["seed"] == 1
    job.root.complete("demos", 1.0, {})
    with pytest.raises(ValueError, match="seed: 1 there, 0 now"):
        open_job(tmp_path, "tiny", recipe("tiny"), 0)


def test_a_comparison_takes_what_no_other_process_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(compare, "_take", lambda job, step, path: taken.append(str(step)))
    experiment = recipe("tiny")
    task = experiment.env.task
    plan = compare.Plan(
        recipe="tiny", experiment=experiment, tasks=(task,), methods=("rft",), budgets=(16,), num_seeds=2
    )
    with claimed(tmp_path / task / "seed0"):
        assert compare.run(plan, tmp_path) == []
    assert taken == [f"{task} seed 1 base", f"{task} seed 1 P = 16 rft"]
    assert "seed0 is left to the process that is at work there" in capsys.readouterr().err
    compare.run(plan, tmp_path)
    assert taken[2:4] == [f"{task} seed 0 base", f"{task} seed 0 P = 16 rft"]
