"""From the folders of a comparison to ``comparison.json``: every outcome, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from wmpo.checkpoint import read_json, write_json
from wmpo.evaluation.compare import Trial, compare
from wmpo.stages.compare import METHODS, Plan, Step, steps_of, summary_of
from wmpo.stages.job import check_folder
from wmpo.stages.trial import WMPO


def tabulate(plan: Plan, path: Path) -> Path:
    """Writes what is there. Raises ValueError when folders do not belong together, or starts differ."""
    found: dict[Step, dict[str, Any]] = {}
    missing = []
    for step in steps_of(plan):
        file = summary_of(step, path)
        if not file.exists():
            missing.append(str(step))
            continue
        check_folder(step.folder(path), plan.recipe, step.experiment(plan), step.seed)
        found[step] = read_json(file)
    _check_starts(found, path)
    content = assemble(
        [_raw(step, summary, path) for step, summary in found.items()], missing,
        recipe=plan.recipe, tasks=plan.tasks, methods=plan.methods, budgets=plan.budgets, num_seeds=plan.num_seeds,
    )  # fmt: skip
    file = path / "comparison.json"
    write_json(file, content)
    return file


def assemble(
    trials: list[dict[str, Any]], missing: list[str], *,
    recipe: str, tasks: Sequence[str], methods: Sequence[str], budgets: Sequence[int], num_seeds: int,
) -> dict[str, Any]:  # fmt: skip
    """``comparison.json`` from its own ``trials``: what follows from them is computed anew."""
    references = [name for name in methods if METHODS[name].reference]
    rows = compare(
        list(map(_trial, trials)), tasks=tasks, budgets=budgets, methods=methods, references=references, variants=WMPO
    )
    return {
        "recipe": recipe, "tasks": tasks, "methods": methods, "references": references, "budgets": budgets,
        "num_seeds": num_seeds, "rows": [asdict(row) for row in rows], "missing": missing, "trials": trials,
    }  # fmt: skip


def _check_starts(found: dict[Step, dict[str, Any]], path: Path) -> None:
    """Paired differences mean something only on the same starts."""
    first: dict[str, Step] = {}
    for step, summary in found.items():
        if not isinstance(summary, dict) or not {"starts", "success"} <= summary.keys():
            raise ValueError(f"{summary_of(step, path)} is damaged; delete it and run wmpo compare again")
        like = first.setdefault(step.task, step)
        if summary["starts"] != found[like]["starts"] or len(summary["success"]) != len(summary["starts"]):
            raise ValueError(
                f"{summary_of(step, path)} has other test starts than {summary_of(like, path)}; delete the one that is "
                "out of date and run wmpo compare again"
            )


def _trial(raw: dict[str, Any]) -> Trial:
    success = np.array([solved == "1" for solved in raw["success"]])
    return Trial(**{key: raw[key] for key in ("task", "seed", "budget", "method")}, success=success)


def _raw(step: Step, summary: dict[str, Any], path: Path) -> dict[str, Any]:
    """Everything that is needed to compute the table again. Raises ValueError for a damaged summary."""
    try:
        return _found(step, summary, path)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        file = summary_of(step, path)
        raise ValueError(f"{file} is damaged ({error!r}); delete it and run wmpo compare again") from error


def _found(step: Step, summary: dict[str, Any], path: Path) -> dict[str, Any]:
    about = read_json(step.folder(path) / "config.json")
    return {
        "task": step.task,
        "seed": step.seed,
        "budget": step.budget or 0,
        "method": step.method,
        "temperature": summary["temperature"],
        "validation": summary["validation"],
        "handed_in": summary["handed_in"],
        "why": summary.get("why", ""),  # older ones do not say
        "real_episodes": summary["real_episodes"],
        "first_start": summary["starts"][0],
        "success": "".join("01"[solved] for solved in summary["success"]),
        "num_steps": summary["num_steps"],
        "seconds": summary["seconds"],
        "commit": summary.get("commit", about["commit"]),  # older ones have the folder's
        "machine": about["machine"],
    }
