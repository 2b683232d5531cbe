"""Every method at the same budget of real episodes, from one or several comparisons: raw outcomes kept, one table.

    wmpo compare quickstart --name c --tasks drawer-open-v3 plate-slide-v3 button-press-topdown-v3 \\
        --methods rft dpo grpo-real more-demos wmpo-rft --evaluate.num-test 256
    python benchmarks/comparison.py runs/c/comparison.json     # keeps what is complete in results/comparison
    python benchmarks/comparison.py                            # the table of what is there

The same command given twice shares the work between two cores. Tasks with settings of their own are compared in another
folder and join the others here. A file of results/comparison holds one task and seed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from wmpo.evaluation.compare import BASE, Trial, compare
from wmpo.report.comparison import table
from wmpo.stages.compare import METHODS

RESULTS = Path(__file__).parent / "results" / "comparison"


def keep(file: Path) -> None:
    """A file for each task and seed, with every trial that is there."""
    found = json.loads(file.read_text())
    config = json.loads((file.parent / "compare.json").read_text())["config"]
    about = {"recipe": found["recipe"], "config": config}
    for (task, seed), trials in groupby(found["trials"], key=lambda trial: (trial["task"], trial["seed"])):
        path = RESULTS / f"{task}-seed{seed}.json"
        path.write_text(json.dumps({"task": task, "seed": seed, **about, "trials": list(trials)}, indent=1) + "\n")


def merged(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """As ``comparison.json``; tasks, methods and budgets are those that occur."""
    trials = [trial for cell in cells for trial in cell["trials"]]
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    methods = [name for name in METHODS if any(trial["method"] == name for trial in trials)]
    budgets = sorted({trial["budget"] for trial in trials if trial["method"] != BASE})
    references = [name for name in methods if METHODS[name].reference]
    rows = compare(
        [
            Trial(success=np.array([c == "1" for c in trial["success"]]), **{k: trial[k] for k in _KEYS})
            for trial in trials
        ],
        tasks=tasks, budgets=budgets, methods=methods, references=references,
    )  # fmt: skip
    had = {(trial["task"], trial["seed"], trial["method"]) for trial in trials}
    missing = [
        f"{cell['task']} seed {cell['seed']} {name}"
        for cell in cells
        for name in methods
        if (cell["task"], cell["seed"], name) not in had
    ]
    return {
        "recipe": cells[0]["recipe"], "tasks": tasks, "methods": methods, "references": references, "budgets": budgets,
        "num_seeds": len({cell["seed"] for cell in cells}), "rows": [asdict(row) for row in rows], "missing": missing,
        "trials": trials,
    }  # fmt: skip


_KEYS = ("task", "seed", "budget", "method")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", type=Path)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for file in parser.parse_args().comparisons:
        keep(file)
    cells = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    print(table(merged(cells)) if cells else "nothing is there yet")


if __name__ == "__main__":
    main()
