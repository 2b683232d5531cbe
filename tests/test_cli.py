"""The user's path: every stage through the command line, in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

WMPO = [sys.executable, "-m", "wmpo.cli"]


def wmpo(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WMPO, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=150)


def refused(*args: str | Path, cwd: Path) -> str:
    """What a refused command says; it must end with 2 and without a traceback."""
    done = wmpo(*args, cwd=cwd)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr + done.stdout


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Everything that does not depend on the clock."""
    kept = {k: v for k, v in results.items() if k not in ("seconds", "throughput", "commit")}
    kept["real_episodes"] = {k: v for k, v in kept["real_episodes"].items() if k != "played_again"}
    return kept


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of the tiny recipe."""
    place = tmp_path_factory.mktemp("user")
    done = wmpo("run", "tiny", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "difference, points" in done.stdout
    return place / "runs/tiny"


def test_a_run_ends_with_results_a_report_and_an_honest_ledger(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    for policy in ("base", "improved"):
        for key in ("greedy", "sampled", "best"):
            assert results[policy][key]["n"] == 4
    for key in ("greedy", "sampled", "best"):
        low, high = results["difference"][key]["interval"]
        assert low <= results["difference"][key]["points"] <= high
    rows = [json.loads(line) for line in (finished / "ledger.jsonl").read_text().splitlines()]
    assert results["real_episodes"] == dict(sorted(Counter(row["purpose"] for row in rows).items()))
    assert results["real_episodes"]["collection"] == 16
    starts = {p: {row["start"] for row in rows if row["purpose"] == p} for p in results["real_episodes"]}
    held_out = {row["start"] for row in [row for row in rows if row["purpose"] == "collection"][-8:]}
    learned = starts["demonstrations"] | starts["collection"] - held_out
    assert not learned & starts["audit"] and not (learned | held_out | starts["validation"]) & starts["test"]
    assert starts["audit"] <= held_out
    assert "</html>" in (finished / "report.html").read_text()
    assert not list((finished / "unfinished").iterdir())


def test_finished_stages_are_not_run_again(finished: Path) -> None:
    before = (finished / "ledger.jsonl").read_bytes()
    assert wmpo("run", "tiny", cwd=finished.parents[1]).returncode == 0
    assert (finished / "ledger.jsonl").read_bytes() == before


@pytest.mark.timeout(240)
def test_killed_at_any_stage_it_resumes_to_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/tiny"
    signs = ("data/collected/meta/info.json", "unfinished/world-model.safetensors", "unfinished/improve.safetensors")
    for sign in signs:
        process = subprocess.Popen(
            [*WMPO, "run", "tiny"],
            cwd=tmp_path,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (folder / sign).exists():
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before {sign} appeared"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = wmpo("run", "tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    once, again = (json.loads((path / "results.json").read_text()) for path in (finished, folder))
    assert comparable(once) == comparable(again)


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen([*WMPO, "demos", "tiny"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "runs/tiny/metrics").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "wmpo demos tiny" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["imprve", "tiny"], "improve"),
        (["run", "quikstart"], "quickstart"),
        (["run", "tiny", "--env.task", "drawer-opn-v3"], "drawer-open-v3"),
        (["run", "tiny", "--env.image-size", "33"], "33"),
        (["run", "tiny", "--no-such-flag", "1"], "no-such-flag"),
        (["run", "tiny", "--collect.num-episodes", "none"], "none"),
        (["sft", "tiny", "--name", "empty"], "wmpo demos"),
        (["report", "tiny", "--name", "nowhere"], "nowhere"),
        (["run", "tiny", "--world-model.pretrained", "nothing.safetensors"], "nothing.safetensors"),
    ],
)
def test_wrong_input_is_explained(args: list[str], says: str, tmp_path: Path) -> None:
    assert says in refused(*args, cwd=tmp_path)


def test_a_folder_of_another_configuration_is_left_alone(finished: Path) -> None:
    assert "seed" in refused("run", "tiny", "--seed", "1", cwd=finished.parents[1])


def test_runs_that_cannot_be_written_are_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused("demos", "tiny", "--runs", tmp_path / "file", cwd=tmp_path)


@pytest.mark.parametrize(
    ("victim", "stage"),
    [("data/collected/data/chunk-000/file-000.parquet", "world-model"), ("models/base.safetensors", "collect")],
)
def test_damaged_files_are_named(finished: Path, tmp_path: Path, victim: str, stage: str) -> None:
    shutil.copytree(finished, tmp_path / "runs/tiny")
    path = tmp_path / "runs/tiny" / victim
    path.write_bytes(path.read_bytes()[:1000])
    for done in (tmp_path / "runs/tiny/stages").glob("*"):
        if done.stem in ("tokenizer", "world-model", stage):
            done.unlink()
    assert path.name in refused(stage, "tiny", cwd=tmp_path)
