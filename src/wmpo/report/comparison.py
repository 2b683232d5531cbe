"""A comparison as people read it: ``comparison.md`` and ``comparison.svg`` from ``comparison.json``."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#2f6fde", "#d1495b", "#e09f3e", "#5b8e7d", "#8d6a9f", "#3a3a3a")
MEAN = "mean"


def write_comparison(file: Path) -> str:
    """Writes table and plot beside ``comparison.json``; returns the table."""
    found = json.loads(file.read_text(encoding="utf-8"))
    text = table(found)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    file.with_suffix(".svg").write_text(plot(found), encoding="utf-8")
    return text


def table(found: Mapping[str, Any]) -> str:
    """Markdown: the mean over tasks first, then every task."""
    seeds, tasks = found["num_seeds"], found["tasks"]
    lines = [
        f"# {found['recipe']}: {len(tasks)} task{'s' * (len(tasks) > 1)}, {seeds} seed{'s' * (seeds > 1)}",
        "",
        "Real success on the same test starts, in percent, each method at the decoding that did best on validation "
        "starts. Brackets: 95 % intervals over seeds (Student's t, as they are few) and starts"
        + (" (with one seed they say nothing about seeds)." if seeds == 1 else "."),
        "Differences are in points, paired by seed and start; *best other* is the method with the greatest mean beside "
        "the row's own and, for WMPO, its own variants" + _references(found["references"]) + ".",
    ]
    for task in ([MEAN] if len(tasks) > 1 else []) + list(tasks):
        title = f"Mean over {', '.join(tasks)}" if task == MEAN else task
        head = "| P | method | seeds | success | against base | against the best other | decoding | real episodes |"
        lines += ["", f"## {title}", "", head, "|---|---|---|---|---|---|---|---|"]
        lines += [_line(row, found["trials"], tasks) for row in found["rows"] if row["task"] == task]
    lines += ["", "Real episodes: the budget P, + audits + validation, mean of a run. The base policy's demonstrations "
              "and all test episodes come on top, equally for all."]  # fmt: skip
    if replaced := base_instead(found["trials"]):
        lines += ["", f"The base policy was handed in for {'; '.join(replaced)}."]
    if found["missing"]:
        missing = "; ".join(found["missing"])
        lines += ["", f"**Incomplete**, means are over what is there. Missing: {missing}."]
    return "\n".join(lines) + "\n"


def base_instead(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Trials whose method did not beat the base policy's validation, or could not be trained, and why."""
    return [
        f"{t['task']} seed {t['seed']} P = {t['budget']} {t['method']}" + (f" ({t['why']})" if t.get("why") else "")
        for t in trials
        if t["handed_in"] != t["method"]
    ]


def _references(names: Sequence[str]) -> str:
    return f" ({', '.join(names)} does not count: it costs an expert's time)" if names else ""


def _line(row: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    budget = 0 if row["method"] == "base" else row["budget"]
    some = tasks if row["task"] == MEAN else [row["task"]]
    runs = [t for t in trials if (t["method"], t["budget"]) == (row["method"], budget) and t["task"] in some]
    decodings = Counter("greedy" if t["temperature"] == 0 else f"T = {t['temperature']:g}" for t in runs)
    chosen = ", ".join(f"{name} x{count}" if len(runs) > 1 else name for name, count in sorted(decodings.items()))
    kinds = [mean(t["real_episodes"][kind] for t in runs) for kind in ("budget", "audit", "validation")] if runs else []
    best = f" ({row['best']})" if row["best"] else ""
    cells = [
        str(row["budget"]),
        row["method"],
        str(row["success"]["num_seeds"]) if row["success"] else "0",
        _cell(row["success"], signed=False),
        _cell(row["against_base"]),
        _cell(row["against_best"]) + best if row["against_best"] else "–",
        chosen or "–",
        " + ".join(f"{count:g}" for count in kinds) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def _cell(estimate: Mapping[str, Any] | None, *, signed: bool = True) -> str:
    if estimate is None:
        return "–"
    form = "+.1f" if signed else ".1f"
    low, high = (format(end, form) for end in estimate["interval"])
    return f"{estimate['value']:{form}} [{low}, {high}]"


def plot(found: Mapping[str, Any]) -> str:
    """SVG: success against real budget, one panel a task and one for their mean; the base policy is a dashed line."""
    tasks = found["tasks"]
    panels = [MEAN, *tasks] if len(tasks) > 1 else list(tasks)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "comparison", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(3.4 * columns, 2.8 * lines), layout="constrained")
        for number, task in enumerate(panels, start=1):
            axes = figure.add_subplot(lines, columns, number)
            _panel(axes, found, task)
        shown = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
        legend = {label: handle for handle, label in shown}
        figure.legend(
            list(legend.values()), list(legend), loc="outside lower center", ncols=max(1, len(legend)), frameon=False
        )
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _panel(axes: Axes, found: Mapping[str, Any], task: str) -> None:
    rows = [row for row in found["rows"] if row["task"] == task and row["success"]]
    place = {budget: i for i, budget in enumerate(sorted(found["budgets"]))}  # evenly: budgets are powers of two
    for row in [row for row in rows if row["method"] == "base"][:1]:
        axes.axhline(row["success"]["value"], color="#777777", linestyle="--", linewidth=1, label="base")
    for number, method in enumerate(found["methods"]):
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["budget"])
        if not mine:
            continue
        x = [place[row["budget"]] + 0.06 * (number - (len(found["methods"]) - 1) / 2) for row in mine]
        y = [row["success"]["value"] for row in mine]
        ends = [row["success"]["interval"] for row in mine]
        error = [[max(0.0, v - e[0]) for v, e in zip(y, ends, strict=True)],
                 [max(0.0, e[1] - v) for v, e in zip(y, ends, strict=True)]]  # fmt: skip
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(x, y, yerr=error, marker="o", markersize=4, linewidth=1.4, color=colour, label=method)
    axes.set_title("mean over tasks" if task == MEAN else task)
    axes.set_xticks(list(place.values()), [str(budget) for budget in place])
    axes.set(xlabel="real episodes P", ylabel="real success, %", xlim=(-0.5, len(place) - 0.5), ylim=(0, 104))
    axes.spines[["top", "right"]].set_visible(False)
