"""Every method at the same budget of real episodes, from one or several comparisons: raw outcomes kept, one table.

    wmpo compare quickstart --name c --tasks drawer-open-v3 plate-slide-v3 button-press-topdown-v3 \\
        --methods rft dpo grpo-real more-demos wmpo-rft --evaluate.num-test 256
    python benchmarks/comparison.py runs/c/comparison.json     # keeps every outcome in results/comparison
    python benchmarks/comparison.py                            # the table of what is there
    python benchmarks/comparison.py --beside comparison_bfloat16   # of both folders, the others' seeds as further ones

The same command given twice shares the work between two cores. Tasks with settings of their own are compared in another
folder and join the others here. A file of results/comparison holds one task and seed; base policies of another machine
are others, and have a folder of their own (``--to comparison_bfloat16``).
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from wmpo.evaluation.compare import BASE
from wmpo.report.comparison import table
from wmpo.stages.compare import METHODS
from wmpo.stages.tabulate import assemble

RESULTS = Path(__file__).parent / "results"


def keep(file: Path, results: Path) -> None:
    """A file for each task and seed, with every trial that is there. Methods that this comparison lacks stay as another
    one has left them; settings are kept for each commit."""
    found = json.loads(file.read_text())
    config = json.loads((file.parent / "compare.json").read_text())["config"]
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for trial in found["trials"]:
        cells.setdefault((trial["task"], trial["seed"]), []).append(trial)
    for (task, seed), trials in cells.items():
        if len(trials) == 1:
            continue  # a base policy alone
        path = results / f"{task}-seed{seed}.json"
        before = json.loads(path.read_text()) if path.exists() else {"trials": [], "configs": {}}
        known = {(trial["budget"], trial["method"]): trial for trial in before["trials"]}
        for trial in trials:
            old = known.get((0, BASE), trial)
            if trial["method"] == BASE and trial["success"] != old["success"]:
                raise SystemExit(f"{path}: the base policy of {file} is another one")
            known[trial["budget"], trial["method"]] = trial
        configs = before["configs"] | {trial["commit"]: config for trial in trials}
        kept = {"task": task, "seed": seed, "recipe": found["recipe"], "trials": list(known.values())}
        used = {trial["commit"] for trial in known.values()}
        kept["configs"] = {commit: settings for commit, settings in configs.items() if commit in used}
        path.write_text(json.dumps(kept, indent=1) + "\n")


def joined(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """As ``comparison.json``; tasks, methods and budgets are those that occur."""
    trials = [trial for cell in cells for trial in cell["trials"]]
    methods = [name for name in METHODS if any(trial["method"] == name for trial in trials)]
    budgets = sorted({trial["budget"] for trial in trials if trial["method"] != BASE})
    had = {(trial["task"], trial["seed"], trial["budget"], trial["method"]) for trial in trials}
    missing = [
        f"{cell['task']} seed {cell['seed']} P = {budget} {name}"
        for cell, budget, name in product(cells, budgets, methods)
        if (cell["task"], cell["seed"], budget, name) not in had
    ]
    return assemble(
        trials, missing, recipe=cells[0]["recipe"], tasks=list(dict.fromkeys(cell["task"] for cell in cells)),
        methods=methods, budgets=budgets, num_seeds=len({cell["seed"] for cell in cells}),
    )  # fmt: skip


def cells_of(folder: Path, first: int = 0) -> list[dict[str, Any]]:
    """A folder's cells, with seeds from ``first`` on: base policies of another machine are those of other seeds."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for cell in cells:
        cell["seed"] += first
        cell["trials"] = [trial | {"seed": trial["seed"] + first} for trial in cell["trials"]]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", type=Path)
    parser.add_argument("--to", default="comparison", help="folder under results")
    parser.add_argument("--beside", default="", help="a further one, for the table alone")
    asked = parser.parse_args()
    results = RESULTS / asked.to
    results.mkdir(parents=True, exist_ok=True)
    for file in asked.comparisons:
        keep(file, results)
    cells = cells_of(results)
    if asked.beside:
        cells += cells_of(RESULTS / asked.beside, 1 + max((cell["seed"] for cell in cells), default=-1))
    print(table(joined(cells)) if cells else "nothing is there yet")


if __name__ == "__main__":
    main()
