"""Comparisons: what the figures mean, what each method may cost, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmpo.cli import main
from wmpo.cli_compare import Lifelong
from wmpo.evaluation.compare import MEAN, Row, Trial, compare, estimate, student
from wmpo.evaluation.statistics import paired_difference
from wmpo.recipes import recipe
from wmpo.report.comparison import table, write_comparison
from wmpo.report.comparison_page import write_page
from wmpo.stages.compare import METHODS, Plan, steps_of
from wmpo.stages.job import check_folder, open_job

TASK, BUDGET = "coffee-button-v3", 18
CELL = f"{TASK}/seed0"
COMMAND = [sys.executable, "-m", "wmpo", "compare", "tiny", "--budgets", str(BUDGET), "--seeds", "1"]


def outcomes(rate: float, seed: int = 0, n: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < rate


def a_trial(method: str, success: np.ndarray, *, task: str = "push", seed: int = 0, budget: int = 64) -> Trial:
    return Trial(task=task, seed=seed, budget=0 if method == "base" else budget, method=method, success=success)


def the(rows: list[Row], method: str, task: str = MEAN, budget: int = 64) -> Row:
    (row,) = (row for row in rows if (row.method, row.task, row.budget) == (method, task, budget))
    return row


def test_with_one_seed_the_interval_is_that_over_starts() -> None:
    one, two = outcomes(0.4), outcomes(0.6, seed=1)
    points, interval = paired_difference(one, two)
    found = estimate([(two.astype(float) - one)[None]])
    assert found.value == pytest.approx(points) and found.interval == pytest.approx(interval, abs=1)


def test_seeds_that_disagree_make_the_interval_wide_and_tasks_are_weighed_alike() -> None:
    apart = np.stack([np.ones(200), np.zeros(200)])
    found = estimate([apart], lowest=0.0)
    assert found.value == 50 and found.interval == (0, 100) and found.num_seeds == 2
    assert estimate([apart, np.ones((5, 200))]).value == 75
    assert estimate([np.ones((3, 50))]).interval == (100, 100)


def test_student() -> None:
    tables = {1: 12.706, 2: 4.303, 3: 3.182, 8: 2.306, 30: 2.042, math.inf: 1.960}
    assert [student(freedom) for freedom in tables] == pytest.approx(list(tables.values()), rel=3e-3)


@pytest.mark.parametrize(("num_tasks", "spread"), [(1, 0.25), (3, 0.25), (4, 0.1)])
def test_of_few_seeds_95_of_100_intervals_hold_the_truth(num_tasks: int, spread: float) -> None:
    """A bootstrap's hold it in 76, 81 and 92 %."""
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        gains = rng.normal(0, spread, size=(num_tasks, 3, 1))  # of each training; none on average
        mine, other = (rng.random((num_tasks, 3, 128)) < 0.5 + sign * gains / 2 for sign in (1, -1))
        low, high = estimate(list(mine.astype(float) - other)).interval
        held.append(low <= 0 <= high)
    assert 0.92 <= np.mean(held) <= 0.99


def test_methods_are_paired_with_base_and_with_the_best_rival_that_is_no_reference() -> None:
    base, good = outcomes(0.2), outcomes(0.5, seed=1)
    trials = [a_trial("base", base), a_trial("wmpo", np.ones(200, dtype=bool)), a_trial("dpo", good)]
    trials += [a_trial("rft", base), a_trial("more-demos", np.ones(200, dtype=bool))]
    methods = ["wmpo", "dpo", "rft", "more-demos"]
    rows = compare(trials, tasks=["push"], budgets=[64, 128], methods=methods, references=["more-demos"])
    found = the(rows, "wmpo")
    assert found.best == "dpo" and the(rows, "dpo").best == "wmpo" and the(rows, "base").against_base is None
    assert found.against_best and found.against_best.value == pytest.approx(100 * (1 - good.mean()))
    rft = the(rows, "rft", "push").against_base
    assert rft and rft.value == 0 and rft.interval == (0, 0)
    twins = compare(
        trials, tasks=["push"], budgets=[64], methods=methods, references=["more-demos"], variants=["wmpo", "dpo"]
    )
    assert (the(twins, "wmpo").best, the(twins, "dpo").best, the(twins, "rft").best) == ("rft", "rft", "wmpo")
    later = the(rows, "base", budget=128).success
    assert later and later.value == pytest.approx(100 * base.mean()), "the base policy serves every budget"
    assert the(rows, "wmpo", budget=128).success is None


def test_differences_are_over_the_seeds_that_both_have_and_means_over_tasks_need_all_tasks() -> None:
    trials = [a_trial("base", outcomes(0.5, seed), seed=seed) for seed in range(3)]
    trials += [a_trial("wmpo", ~outcomes(0.5, seed), seed=seed) for seed in (0, 2)]
    rows = compare(trials, tasks=["push", "pull"], budgets=[64], methods=["wmpo"])
    found = the(rows, "wmpo", "push").against_base
    expected = np.mean([(~outcomes(0.5, s)).mean() - outcomes(0.5, s).mean() for s in (0, 2)])
    assert found and found.num_seeds == 2 and found.value == pytest.approx(100 * expected)
    assert the(rows, "wmpo").success is None and the(rows, "wmpo", "pull").success is None


def test_the_best_rival_is_found_on_the_seeds_that_both_have() -> None:
    trials = [a_trial(name, outcomes(0.5, seed), seed=seed) for seed in range(3) for name in ("base", "wmpo")]
    trials += [a_trial("dpo", outcomes(0.7, seed), seed=seed) for seed in range(3)]
    trials += [a_trial("rft", np.ones(200, dtype=bool), seed=2)]  # its hard seeds are still to come
    trials[5] = a_trial("wmpo", np.ones(200, dtype=bool), seed=2)
    found = the(compare(trials, tasks=["push"], budgets=[64], methods=["wmpo", "dpo", "rft"]), "wmpo")
    assert found.best == "dpo" and found.against_best and found.against_best.num_seeds == 3


def test_different_numbers_of_starts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"push: methods were tested on different numbers of starts \[100, 200\]"):
        compare(
            [a_trial("base", outcomes(0.5)), a_trial("wmpo", outcomes(0.5, n=100))],
            tasks=["push"], budgets=[64], methods=["wmpo"],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--methods", "dop"], "unknown method 'dop'; did you mean dpo"),
        (["--methods", "dpo", "dpo"], "--methods must name each"),
        (["--budgets", "3"], "--budgets 3 is less than one group of 4 siblings"),
        (["--tasks", "coffee-buton-v3"], "coffee-button-v3"),
        (["--env.task", "door-open-v3"], "--env.task differs between the runs of a comparison; use --tasks"),
        (["--clone.no-enabled"], "use --methods wmpo-rft"),
        (["--seeds", "0"], "--seeds is how many seeds to run"),
        (["--budgets", "8"], "collect.num_held_out 8"),
        (["--show"], "holds no comparison; run: wmpo compare tiny"),
        (["--name", "single"], "is the folder of a single run"),
    ],
)
def test_wrong_input_is_explained_before_anything_is_made(
    args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "single").mkdir()
    (tmp_path / "single/config.json").write_text("{}")
    assert says in refused(["tiny", "--runs", str(tmp_path), *args], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["single"]


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *args])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in errors
    return errors


def test_a_folder_made_before_a_setting_existed_has_its_default(tmp_path: Path) -> None:
    experiment = replace(recipe("tiny"), baselines=replace(recipe("tiny").baselines, real_groups=4))
    open_job(tmp_path, "tiny", experiment, 0).root.complete("demos", 1.0, {})
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["config"]["baselines"]["real_groups"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert check_folder(tmp_path, "tiny", experiment, 0)
    with pytest.raises(ValueError, match=r"baselines\.real_groups: 4 there, 3 now"):
        check_folder(tmp_path, "tiny", recipe("tiny"), 0)
    with pytest.raises(ValueError, match="recipe: tiny there, other now"):
        check_folder(tmp_path, "other", experiment, 0)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    rows = compare([a_trial("base", outcomes(0.5))], tasks=["push"], budgets=[64], methods=["wmpo"])
    found: dict[str, Any] = {
        "recipe": "tiny", "tasks": ["push"], "methods": ["wmpo"], "references": [], "budgets": [64], "num_seeds": 1,
        "rows": [asdict(row) for row in rows], "missing": ["push seed 0 P = 64 wmpo"], "trials": [],
    }  # fmt: skip
    text = table(found)
    assert "Missing: push seed 0 P = 64 wmpo." in text and "| 64 | wmpo | 0 | – |" in text
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    write_comparison(tmp_path / "comparison.json")
    assert "incomplete: 1 missing" in write_page(tmp_path / "comparison.json").read_text()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete comparison of every method that was killed in the middle of GRPO in the real environment."""
    place = tmp_path_factory.mktemp("comparison")
    folder = place / "runs/compare"
    process = subprocess.Popen(COMMAND, cwd=place, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (folder / CELL / f"P{BUDGET}/unfinished/grpo-real.safetensors").exists():
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(COMMAND, cwd=place, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "3/7 done" in done.stderr and "at least 0 minutes left" in done.stderr
    assert done.stdout.startswith((folder / "comparison.md").read_text())
    return folder


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_the_ledger_proves_that_every_method_had_the_same_budget(compared: Path) -> None:
    trials = {t["method"]: t for t in json.loads((compared / "comparison.json").read_text())["trials"]}
    assert list(trials) == ["base", *METHODS]
    budgets = {name: trial["real_episodes"]["budget"] for name, trial in trials.items()}
    assert budgets == {"base": 0} | dict.fromkeys(METHODS, BUDGET) | {"grpo-real": 16}, "18 are 4 groups of 4"
    for name, trial in trials.items():
        cost = trial["real_episodes"]
        assert (cost["validation"], cost["test"]) == (2 * 2, 4 if trial["handed_in"] == name else 0), name
        assert cost["audit"] <= 4 and len(trial["success"]) == 4
    rows = set((compared / CELL / f"P{BUDGET}/ledger.jsonl").read_text().splitlines())
    count = Counter(json.loads(row)["purpose"] for row in rows)
    assert {p: count[p] for p in ("collection", "more", "training", "more-demonstrations")} == {
        "collection": 18, "more": 6, "training": 16, "more-demonstrations": 18,
    }  # fmt: skip
    played = [json.loads(row) for row in rows]
    collected = {row["start"] for row in played if row["purpose"] == "collection"}
    assert {row["start"] for row in played if row["purpose"] in ("more", "training")} <= collected
    assert not collected & {row["start"] for row in played if row["purpose"] in ("audit", "validation", "test")} - {
        row["start"] for row in played if row["purpose"] == "audit" and row["policy"].startswith("round ")
    }


@pytest.mark.slow
def test_what_is_there_is_shown_and_not_run_again(
    compared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(compared.parents[1])
    before = {path: path.stat().st_mtime_ns for path in (compared / CELL).rglob("*") if path.is_file()}
    for show in ([], ["--show"]):
        main(["compare", "tiny", *show])  # the folder knows tasks, budgets and seeds
        assert f"| {BUDGET} | grpo-real | 1 |" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (compared / CELL).rglob("*") if path.is_file()}
    assert "</svg>" in (compared / "comparison.svg").read_text()


@pytest.mark.slow
def test_a_training_that_cannot_go_on_counts_as_the_base_policy(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(compared, tmp_path / "compare")
    monkeypatch.chdir(tmp_path)
    stages = tmp_path / "compare" / CELL / f"P{BUDGET}/stages"
    for name in ("dpo", "dpo-test"):
        (stages / f"{name}.json").unlink()

    def no_pairs(_: Any) -> None:
        raise ValueError("no failure to prefer anything to")

    monkeypatch.setitem(METHODS, "dpo", replace(METHODS["dpo"], train=no_pairs))
    command = ["tiny", "--runs", str(tmp_path)]
    assert "1 could not be trained to the end" in refused(command, capsys)
    found = json.loads((tmp_path / "compare/comparison.json").read_text())
    dpo, base = (next(t for t in found["trials"] if t["method"] == name) for name in ("dpo", "base"))
    assert dpo["success"] == base["success"] and dpo["handed_in"] == "base" and not found["missing"]
    main(["compare", *command])
    assert f"P = {BUDGET} dpo (no failure to prefer anything to)" in capsys.readouterr().out
    for damage in ("{}", "null", json.dumps({"starts": [], "success": []})):
        (stages / "dpo-test.json").write_text(damage)
        assert "dpo-test.json" in refused([*command, "--show"], capsys)


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(compared, tmp_path / "compare")
    runs = ["--runs", str(tmp_path)]
    assert "recipe: tiny there, quickstart now" in refused(["quickstart", *runs], capsys)
    assert "sft.fit.num_steps: 40 there, 41 now" in refused(["tiny", *runs, "--sft.fit.num-steps", "41"], capsys)
    file = tmp_path / "compare" / CELL / f"P{BUDGET}/stages/dpo-test.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps(summary | {"starts": [1 + start for start in summary["starts"]]}))
    assert "dpo-test.json has other test starts than" in refused(["tiny", *runs, "--show"], capsys)
    file.write_text(json.dumps(summary))
    config = tmp_path / "compare" / CELL / f"P{BUDGET}/config.json"
    config.write_text(config.read_text().replace('"recipe": "tiny"', '"recipe": "other"'))
    assert "recipe: other there, tiny now" in refused(["tiny", *runs, "--show"], capsys)
    with pytest.raises(ValueError, match="compare is the folder of a comparison, not of a run"):
        open_job(tmp_path / "compare", "tiny", recipe("tiny"), 0)
    before = (tmp_path / "compare/compare.json").read_text()
    assert "recipe: other there, tiny now" in refused(["tiny", *runs, "--budgets", "18", "20"], capsys)
    assert (tmp_path / "compare/compare.json").read_text() == before, "a refused command changes nothing"


def test_budgets_share_the_base_policy() -> None:
    plan = Plan(
        recipe="tiny", experiment=recipe("tiny"), tasks=("a", "b"), methods=("wmpo",), budgets=(16, 18), num_seeds=1
    )
    assert plan.at("b", 18).collect.num_episodes == 18 and plan.at("b").collect == recipe("tiny").collect
    assert plan.at("b", 18).env.task == "b"
    assert [plan.at("b", 18, method).clone.enabled for method in ("wmpo", "wmpo-rft")] == [False, True]


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_lifelong_adds_a_budget_in_every_round_and_tests_after_each(tmp_path: Path) -> None:
    command = [*COMMAND[:3], "lifelong", "tiny", "--rounds", "2", "--seeds", "1", "--methods", "wmpo-rft", "dpo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/lifelong"
    trials = json.loads((folder / "comparison.json").read_text())["trials"]
    budgets = {(t["method"], t["budget"]): t["real_episodes"]["budget"] for t in trials}
    assert budgets == {("base", 0): 0} | {(method, p): p for method in ("wmpo-rft", "dpo") for p in (16, 32)}
    for trial in trials:  # where the base policy is handed in, its own test episodes serve
        played = trial["real_episodes"]["validation"], trial["real_episodes"]["test"]
        assert played == (4, 4 if trial["handed_in"] == trial["method"] else 0)
    run = folder / CELL / "lifelong-rft"
    assert (run / "stages/wmpo-rft-test.json").exists() and (run / "round-2/stages/wmpo-rft-test.json").exists()
    assert not list((run / "round-2/unfinished").iterdir())
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    collected = Counter(row["policy"] for row in rows if row["purpose"] == "collection")
    assert collected == {"base": 16, "round 1": 16}
    audited = Counter(row["policy"].split(",")[0] for row in rows if row["purpose"] == "audit")
    assert audited["round 1"] and audited["round 2"], audited


def test_budgets_of_a_lifelong_comparison_are_sums_over_rounds() -> None:
    plan = Lifelong(experiment=recipe("tiny"), rounds=3).plan("tiny")
    assert plan.budgets == (16, 32, 48)
    run, other = plan.at(TASK, 48, "wmpo"), plan.at(TASK, 48, "dpo")
    assert run.num_rounds == 3 and run.collect.shares(3) == [(16, 8)] * 3 and run == plan.at(TASK, 16, "wmpo")
    assert other.collect.num_episodes == 48 and not other.collect.every_round
    (folder,) = {step.folder(Path()) for step in steps_of(plan) if step.seed == 0 and step.method == "wmpo-rft"}
    assert folder == Path(CELL) / "lifelong-rft"
