"""A comparison as one HTML page: ``comparison.html`` from ``comparison.json`` and its plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmpo.report import page
from wmpo.report.comparison import MEAN, base_instead
from wmpo.report.page import between, cell, esc, number, signed, table

METHODS = {
    "base": "the policy that was cloned from the demonstrations",
    "wmpo": "learns a world model from P episodes and improves in it",
    "wmpo-rft": "the same, and clones the real successes so far before each round's imagination",
    "grpo-real": "the same GRPO in the real environment",
    "dpo": "prefers the base policy's successes to its failures",
    "rft": "clones the base policy's successes and the demonstrations",
    "more-demos": "clones P more attempts of the expert: a reference in an expert's time",
}


def write_page(file: Path) -> Path:
    """Writes the page beside ``comparison.json``, whose plot must be there, and returns its path."""
    found = json.loads(file.read_text(encoding="utf-8"))
    tasks = list(found["tasks"])
    groups = ([(MEAN, f"Mean over {len(tasks)} tasks")] if len(tasks) > 1 else []) + [(task, task) for task in tasks]
    sections = [
        ("curves", "Success against real episodes", _curves(found, file.with_suffix(".svg"))),
        *((esc(task), title, _task(found, task)) for task, title in groups),
        ("methods", "Methods", _methods(found)),
        ("runs", "Every run", _runs(found["trials"])),
    ]
    commits = ", ".join(sorted({str(trial["commit"]) for trial in found["trials"]})) or "unknown"
    foot = f"wmpo · commits {esc(commits)}"
    text = page.document(f"{found['recipe']}: methods compared", _hero(found), sections, foot)
    return page.write(file.with_suffix(".html"), text)


def _hero(found: Mapping[str, Any]) -> str:
    seeds, starts = found["num_seeds"], {len(trial["success"]) for trial in found["trials"]}
    each = f"{min(starts)} test starts each" if starts else "no test yet"
    missing = f" · <b>incomplete: {len(found['missing'])} missing</b>" if found["missing"] else ""
    counts = ((len(found["tasks"]), "task"), (seeds, "seed"))
    size = " · ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in counts)
    what = f"{size} · budgets {', '.join(map(str, found['budgets']))} · {each}"
    title = f"<h1>{esc(found['recipe'])} <small>· methods at the same real budget</small></h1>"
    return f"{title}<p class=lead>{what}{missing}</p>"


def _curves(found: Mapping[str, Any], plot: Path) -> str:
    lead = (
        "Success in the real environment on the same test starts, each method at the decoding that did best on "
        "validation starts. Bars are 95\u202f% intervals over seeds and starts"
        + ("; with one seed they say nothing about seeds." if found["num_seeds"] == 1 else ".")
    )
    source = page.embed(plot, "image/svg+xml")
    image = f"<img src='{source}' alt='success against real episodes' style='background:#fff;max-width:none'>"
    return f"<p class=lead>{lead}</p><div class=scroll>{image}</div>"


def _task(found: Mapping[str, Any], task: str) -> str:
    head = ["method", "P", "success, %", "against base, points", "against the best other", "seeds"]
    mine = [row for row in found["rows"] if row["task"] == task]
    rows = [
        [
            esc(row["method"]),
            str(row["budget"]) if row["method"] != "base" else page.MISSING,
            _estimate(row["success"], sign=False),
            _estimate(row["against_base"]),
            _estimate(row["against_best"]) + (f"<small>{esc(row['best'])}</small>" if row["best"] else ""),
            str(row["success"]["num_seeds"]) if row["success"] else "0",
        ]
        for row in mine
        if row["method"] != "base" or row["budget"] == mine[0]["budget"]  # it is the same at every budget
    ]
    return table(head, rows, "Differences are paired by seed and start.")


def _estimate(estimate: Mapping[str, Any] | None, *, sign: bool = True) -> str:
    if estimate is None:
        return page.MISSING
    figure = signed(estimate["value"]) if sign else number(estimate["value"], 1)
    return cell(figure, between(estimate["interval"], sign=sign))


def _methods(found: Mapping[str, Any]) -> str:
    rows = []
    for method in ("base", *found["methods"]):
        runs = [trial for trial in found["trials"] if trial["method"] == method]
        handed_in = Counter(trial["handed_in"] != method for trial in runs)[True]
        rows.append(
            [
                esc(method),
                f"<p>{METHODS.get(method, '')}</p>",
                str(len(runs)),
                str(handed_in) if method != "base" else "",
            ]
        )
    note = (
        "Where the base policy solves clearly more validation starts than what a method made of it (one standard "
        "error), or a training could not go on, the base policy is handed in. "
        + "; ".join(map(esc, base_instead(found["trials"])))
    )
    return table(["method", "<p>what it does</p>", "runs", "base policy handed in"], rows, note)


def _runs(trials: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{esc(trial['task'])}, seed {trial['seed']}",
            str(trial["budget"] or page.MISSING),
            esc(trial["method"]),
            number(100 * trial["success"].count("1") / max(len(trial["success"]), 1), 1),
            "greedy" if trial["temperature"] == 0 else f"T = {trial['temperature']:g}",
            " + ".join(str(trial["real_episodes"][kind]) for kind in ("budget", "audit", "validation")),
        ]
        for trial in trials
    ]
    note = "Real episodes: the budget, + audits + validation. Demonstrations and test episodes come on top for all."
    return page.details(
        f"{len(rows)} runs", table(["run", "P", "method", "success, %", "decoding", "real episodes"], rows, note)
    )
