"""The user's path: every stage through the command line, in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import WMPO, refused, wmpo

from wmpo.cli import main
from wmpo.report.run import RunFolder
from wmpo.stages.guards import guarded_env, starts_to_improve
from wmpo.stages.job import Job, saved_experiment
from wmpo.train.wmpo import GuardConfig


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of the tiny recipe."""
    place = tmp_path_factory.mktemp("user")
    done = wmpo("run", "tiny", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "difference, points" in done.stdout
    assert "Warning" not in done.stderr, "what libraries warn of is nothing that a user could change"
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
    _, experiment, seed = saved_experiment(finished) or pytest.fail("no configuration")
    learned, held_out = (
        {e.start for e in part} for part in Job(RunFolder(finished), experiment, seed, round=2).collected()
    )
    assert (len(learned), len(held_out)) == (8, 8) and learned | held_out == starts["collection"]
    learned |= starts["demonstrations"]
    assert not learned & starts["audit"] and not (learned | held_out | starts["validation"]) & starts["test"]
    assert starts["audit"] <= held_out
    assert Counter(row["policy"] for row in rows if row["purpose"] == "collection") == {"base": 11, "round 1": 5}
    assert [audit["iteration"] for audit in results["audits"]] == [0, 2, 2, 4]
    assert [each["episodes"] for each in results["rounds"]] == [11, 5]
    assert "</html>" in (finished / "report.html").read_text()
    for folder in (finished, finished / "round-2"):
        assert not list((folder / "unfinished").iterdir())


def test_finished_stages_are_not_run_again(finished: Path) -> None:
    before = (finished / "ledger.jsonl").read_bytes()
    with contextlib.chdir(finished.parents[1]):
        main(["run", "tiny"])
    assert (finished / "ledger.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_stage_alone_goes_round_by_round(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs/tiny")
    assert "round-2/stages/reward.json" in wmpo("reward", "tiny", cwd=tmp_path).stderr
    (tmp_path / "runs/tiny/round-2/stages/reward.json").unlink()
    assert "needs the stage reward" in refused("improve", "tiny", cwd=redo(tmp_path, "improve"))
    assert wmpo("reward", "tiny", cwd=tmp_path).returncode == 0
    again, once = (
        json.loads((p / "round-2/stages/reward.json").read_text()) for p in (tmp_path / "runs/tiny", finished)
    )
    assert again | {"seconds": 0} == once | {"seconds": 0}
    (tmp_path / "runs/tiny/stages/improve.json").unlink()
    shutil.rmtree(tmp_path / "runs/tiny/round-2")
    assert "next round begins when improve is complete" in wmpo("collect", "tiny", cwd=tmp_path).stderr


def redo(place: Path, stage: str) -> Path:
    """Lets a stage of the second round be run again."""
    (place / f"runs/tiny/round-2/stages/{stage}.json").unlink()
    return place


def test_guards_are_measured_on_held_out_replays_and_branches_begin_in_recorded_episodes(finished: Path) -> None:
    _, experiment, seed = saved_experiment(finished) or pytest.fail("no configuration")
    guards = GuardConfig(verify=True, trust=0.5, branch_share=0.5, branch_chunks=2)
    guarded = replace(experiment, improve=replace(experiment.improve, guards=guards))
    job = Job(RunFolder(finished), guarded, seed, round=2)
    learn, held_out = job.collected()
    dream, audit = guarded_env(job, held_out)
    assert audit["trust"]["dropped"] == len(held_out) / 2 and dream.verify and dream.max_doubt
    assert all(0 <= worth["rightly"] <= worth["dropped"] <= worth["n"] == 8 for worth in audit.values())
    starts = starts_to_improve(job, learn)
    assert starts.begun is not None and starts.frames is not None
    assert len(starts) == 16 and (starts.begun > 0).sum() == 8 and starts.begun.max() < experiment.max_chunks
    assert (experiment.max_chunks - starts.begun[starts.begun > 0] <= 2).all()
    recorded = {frame.tobytes() for episode in learn for frame in episode.frames}
    assert {frame.numpy().tobytes() for frame in starts.frames[:, -1]} <= recorded


@pytest.mark.slow
def test_how_far_the_dream_can_be_trusted_is_measured_and_told(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs/tiny")
    done = wmpo("fidelity", "tiny", cwd=tmp_path)
    assert done.returncode == 0 and "imagined against real success of 6 policies" in done.stderr
    found = json.loads((tmp_path / "runs/tiny/stages/fidelity.json").read_text())
    assert [sum(each["outcomes"].values()) for each in found["rounds"]] == [8, 8]
    rows = [json.loads(line) for line in (tmp_path / "runs/tiny/ledger.jsonl").read_text().splitlines()]
    assert sum(row["purpose"] == "fidelity" for row in rows) == 6 * 4
    assert wmpo("report", "tiny", cwd=tmp_path).returncode == 0
    assert "Signs of hallucination" in (tmp_path / "runs/tiny/report.html").read_text()


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*WMPO, "demos", "tiny"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background inherit "ignore"
    )
    while not (tmp_path / "runs/tiny/metrics").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "wmpo demos tiny" in errors and "Traceback" not in errors


def test_a_folder_of_another_configuration_is_left_alone(finished: Path) -> None:
    assert "seed" in refused("run", "tiny", "--seed", "1", cwd=finished.parents[1])


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


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Everything that does not depend on the clock."""
    kept = {k: v for k, v in results.items() if k not in ("seconds", "throughput", "commit")}
    kept["real_episodes"] = {k: v for k, v in kept["real_episodes"].items() if k != "played_again"}
    return kept


@pytest.mark.timeout(240)
def test_killed_at_any_stage_it_resumes_to_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    """``kill -9``: the same command goes on and ends with the same numbers."""
    folder = tmp_path / "runs/tiny"
    signs = (
        "data/collected/meta/info.json", "unfinished/world-model.safetensors", "round-2/unfinished/improve.safetensors",
    )  # fmt: skip
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
    first, again = (json.loads((path / "results.json").read_text()) for path in (finished, folder))
    assert comparable(first) == comparable(again)
