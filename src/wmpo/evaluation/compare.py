"""Methods side by side at the same budget: means over tasks and seeds, with intervals over seeds and starts.

Test starts are the same for all seeds of a task, so both are drawn again, crossed: a bootstrap sample takes some seeds
and some starts with replacement, and every chosen seed with every chosen start. With one seed the interval says nothing
about seeds; with few it is somewhat too narrow, as every bootstrap is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from wmpo.rng import keyed

BASE = "base"
MEAN = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The test episodes of one method after one training. The base policy's have budget 0 and serve every budget."""

    task: str
    seed: int
    budget: int
    method: str
    success: Bool[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A success rate in percent, or a difference in points, with its 95 % interval."""

    value: float
    interval: tuple[float, float]
    num_seeds: int
    "The fewest seeds of any task in it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method at one budget on one task, or (``task`` is "mean") the mean over tasks. None: not measured yet, or
    nothing to compare with."""

    task: str
    budget: int
    method: str
    success: Estimate | None
    against_base: Estimate | None
    against_best: Estimate | None
    best: str
    "The best other method at that budget by its mean over tasks; the references do not count."


def estimate(tables: Sequence[Float[np.ndarray, "_S _n"]], *, draws: int = 10_000) -> Estimate:
    """Mean over tasks (a table each) of the mean over seeds (S rows) and starts (n columns), times 100.

    Tasks are fixed, not drawn: the interval is about these tasks. Seeds of different tasks are drawn apart, because
    nothing ties their trainings together.
    """
    means = np.zeros(draws)
    for number, table in enumerate(tables):
        rows, columns = (_drawn(kind, number, count, draws) for kind, count in zip(_KINDS, table.shape, strict=True))
        means += ((rows @ table) * columns).sum(axis=1) / (table.size * len(tables))
    low, high = 100 * np.quantile(means, [0.025, 0.975])
    value = 100 * float(np.mean([table.mean() for table in tables]))
    return Estimate(value=value, interval=(float(low), float(high)), num_seeds=min(len(table) for table in tables))


_KINDS = ("bootstrap/seeds", "bootstrap/starts")


@lru_cache(maxsize=32)  # all estimates of a task share them, and they take longer than the rest
def _drawn(kind: str, number: int, count: int, draws: int) -> Int[np.ndarray, "draws count"]:
    """How often each of ``count`` seeds or starts is in each bootstrap sample."""
    return keyed(0, kind, number).multinomial(count, np.full(count, 1 / count), size=draws)


def compare(
    trials: Sequence[Trial], *, tasks: Sequence[str], budgets: Sequence[int], methods: Sequence[str],
    references: Sequence[str] = (),
) -> list[Row]:  # fmt: skip
    """Every method at every budget on every task, and its mean over tasks; differences are paired by seed and start.

    Raises ValueError when the trials of a task have different numbers of starts.
    """
    for task in tasks:
        if len(sizes := {len(t.success) for t in trials if t.task == task}) > 1:
            raise ValueError(f"{task}: methods were tested on different numbers of starts {sorted(sizes)}")
    found = {(t.task, t.budget, t.method, t.seed): t.success for t in trials}
    rows = []
    for budget in budgets:
        means = {name: _estimate(found, tasks, budget, name, None) for name in methods}
        ranked = sorted((-e.value, name) for name, e in means.items() if e and name not in references)
        for task in [*tasks, MEAN]:
            some = tasks if task == MEAN else [task]
            for name in [BASE, *methods]:
                best = next((other for _, other in ranked if other != name), "") if name != BASE else ""
                rows.append(
                    Row(
                        task=task,
                        budget=budget,
                        method=name,
                        success=_estimate(found, some, budget, name, None),
                        against_base=_estimate(found, some, budget, name, BASE) if name != BASE else None,
                        against_best=_estimate(found, some, budget, name, best) if best else None,
                        best=best,
                    )
                )
    return rows


def _estimate(
    found: dict[tuple[str, int, str, int], Bool[np.ndarray, " n"]],
    tasks: Sequence[str],
    budget: int,
    method: str,
    other: str | None,
) -> Estimate | None:
    """Over the seeds that both have; None when a task has none."""
    tables = []
    for task in tasks:
        mine, theirs = (
            {seed: success for (t, b, name, seed), success in found.items() if (t, b, name) == (task, paid, who)}
            for who, paid in ((method, _paid(method, budget)), (other, _paid(other, budget)))
        )
        seeds = sorted(mine.keys() if other is None else mine.keys() & theirs.keys())
        if not seeds:
            return None
        less = [theirs[seed] if other else np.zeros(len(mine[seed])) for seed in seeds]
        tables.append(np.stack([mine[seed].astype(float) for seed in seeds]) - np.stack(less))
    return estimate(tables)


def _paid(method: str | None, budget: int) -> int:
    return 0 if method == BASE else budget
