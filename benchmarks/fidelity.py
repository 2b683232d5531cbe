"""Does success in the dream say anything about success? ``wmpo fidelity`` on finished runs, and what it found together.

    python benchmarks/fidelity.py runs/drawer-open-v3-seed0 runs/button-press-topdown-v3-seed0 [...]
    python benchmarks/fidelity.py --show

What each run's fidelity stage measured is kept in results/fidelity, with the outcomes of every episode.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import measure_and_show

from wmpo.evaluation.statistics import mean_max_rank_violation, pearson

RESULTS = Path(__file__).parent / "results" / "fidelity"


def measure(run: Path) -> dict[str, Any]:
    config = json.loads((run / "config.json").read_text())
    wmpo = [sys.executable, "-m", "wmpo"]
    subprocess.run([*wmpo, "fidelity", config["recipe"], "--name", run.name, "--runs", str(run.parent)], check=True)
    found = json.loads((run / "stages" / "fidelity.json").read_text())
    task = config["config"]["env"]["task"]
    return {"task": task, "seed": config["seed"], **found}


def rates(row: dict[str, Any], side: str) -> list[float]:
    return [float(np.mean(policy[side])) for policy in row["policies"]]


def show(rows: list[dict[str, Any]]) -> str:
    """A line for each run, and one for the policies of all runs of a task together."""
    head = (
        "| task | seed | policies | Pearson | MMRV | too high by, points (95 %) | calibrated | J | AUROC of the signs |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        over = [
            f"{row[name]['points']:+.0f} [{row[name]['interval'][0]:+.0f}, {row[name]['interval'][1]:+.0f}]"
            for name in ("over_optimism", "calibrated")
        ]
        lines.append(
            f"| {row['task']} | {row['seed']} | {len(row['policies'])} | {_text(row['pearson'])} | {row['mmrv']:.3f} | "
            f"{over[0]} | {over[1]} | "
            f"{row['rounds'][-1]['rates']['j']:.2f} | {_text(row['signs']['areas']['combined'])} |"
        )
    means = {
        ".2f": [row["pearson"] for row in rows], ".3f": [row["mmrv"] for row in rows],
        "5.1f": [abs(row["over_optimism"]["points"]) for row in rows],
        "6.1f": [abs(row["calibrated"]["points"]) for row in rows],
        "5.2f": [row["rounds"][-1]["rates"]["j"] for row in rows],
        "6.2f": [row["signs"]["areas"]["combined"] for row in rows],
    }  # fmt: skip
    texts = [f"{_mean(values):{form}}".strip() for form, values in means.items()]
    lines.append(f"| **mean, of sizes** | | | {' | '.join(texts)} |")
    for task in dict.fromkeys(row["task"] for row in rows):
        found = [row for row in rows if row["task"] == task]
        imagined, real = ([rate for row in found for rate in rates(row, side)] for side in ("imagined", "real"))
        lines.append(
            f"| **{task}** | all | {len(real)} | {pearson(imagined, real):.2f} | "
            f"{mean_max_rank_violation(imagined, real):.3f} | {100 * (np.mean(imagined) - np.mean(real)):+.0f} | | | |"
        )
    return "\n".join(lines)


def _mean(values: list[float | None]) -> float:
    """Of those that are defined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    measure_and_show(__doc__, RESULTS, measure, show)
