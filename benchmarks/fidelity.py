"""Does success in the dream say anything about success? ``wmpo fidelity`` on finished runs, and what it found together.

    python benchmarks/fidelity.py runs/drawer-open-v3-seed0 runs/button-press-topdown-v3-seed0 [...]
    python benchmarks/fidelity.py --show

What each run's fidelity stage measured is kept in results/fidelity, with the outcomes of every episode.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import measure_and_show

from wmpo.evaluation.statistics import auroc, pearson

RESULTS = Path(__file__).parent / "results" / "fidelity"


def measure(run: Path) -> dict[str, Any]:
    config = json.loads((run / "config.json").read_text())
    wmpo = [sys.executable, "-m", "wmpo"]
    subprocess.run([*wmpo, "fidelity", config["recipe"], "--name", run.name, "--runs", str(run.parent)], check=True)
    found = json.loads((run / "stages" / "fidelity.json").read_text())
    task = config["config"]["env"]["task"]
    return {"task": task, "seed": config["seed"], **found}


def interval(statistic: Callable[[np.ndarray], float], count: int, draws: int = 1000) -> str:
    """95 % of a statistic of ``count`` units, when they are drawn again with replacement."""
    rng = np.random.default_rng(0)
    found = [statistic(rng.integers(count, size=count)) for _ in range(draws)]
    low, high = np.nanquantile(found, (0.025, 0.975))
    return f"[{low:.2f}, {high:.2f}]"


def correlation(row: dict[str, Any]) -> str:
    """Pearson's r over policies, and its interval over starts, which all policies share."""
    imagined, real = (np.array([p[side] for p in row["policies"]], float) for side in ("imagined", "real"))
    drawn = interval(lambda i: pearson(imagined[:, i].mean(1).tolist(), real[:, i].mean(1).tolist()), real.shape[1])
    return f"{_text(row['pearson'])} {drawn}"


def detection(row: dict[str, Any]) -> tuple[str, str, str]:
    """AUROC of all signs together with its interval over episodes, that of a chunk's number alone, and how many
    chunks had left reality."""
    chunks, areas = row["signs"]["chunks"], row["signs"]["areas"]
    episode, score, left = (np.array(chunks[name]) for name in ("episode", "combined", "left_reality"))
    units = [np.flatnonzero(episode == i) for i in np.unique(episode)]

    def again(drawn: np.ndarray) -> float:
        rows = np.concatenate([units[i] for i in drawn])
        return auroc(score[rows], left[rows])

    signs = f"{_text(areas['combined'])} {interval(again, len(units))}"
    return signs, _text(areas["chunk"]), f"{int(left.sum())} of {len(left)}"


def show(rows: list[dict[str, Any]]) -> str:
    """A line for each run, and their mean."""
    lines = [
        "| task | seed | policies | Pearson (95 %) | MMRV | too high by, points (95 %) | calibrated | J (n) "
        "| AUROC of the signs (95 %) | of the chunk's number | chunks that left reality |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        over = [
            f"{row[name]['points']:+.0f} [{row[name]['interval'][0]:+.0f}, {row[name]['interval'][1]:+.0f}]"
            for name in ("over_optimism", "calibrated")
        ]
        replays = row["rounds"][-1]["rates"]
        cells = [
            row["task"], row["seed"], len(row["policies"]), correlation(row), f"{row['mmrv']:.3f}", *over,
            f"{replays['j']:.2f} ({replays['n']})", *detection(row),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    means = {
        ".2f": [row["pearson"] for row in rows], ".3f": [row["mmrv"] for row in rows],
        "5.1f": [abs(row["over_optimism"]["points"]) for row in rows],
        "6.1f": [abs(row["calibrated"]["points"]) for row in rows],
        "5.2f": [row["rounds"][-1]["rates"]["j"] for row in rows],
        "6.2f": [row["signs"]["areas"]["combined"] for row in rows],
    }  # fmt: skip
    texts = [f"{_mean(values):{form}}".strip() for form, values in means.items()]
    lines.append(f"| **mean, of sizes** | | | {' | '.join(texts)} | | |")
    return "\n".join(lines)


def _mean(values: list[float | None]) -> float:
    """Of those that are defined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    measure_and_show(__doc__, RESULTS, measure, show)
