"""Methods side by side at the same budget: means over tasks and seeds, with intervals over seeds and starts.

Test starts are the same for all seeds of a task, so chance has two crossed sources: which trainings and which starts.
Trainings are few, so their part is told by Student's t; a bootstrap over three of them would hold the truth in 76 to
88 % of cases instead of 95 (dev/LOG.md). With one seed the interval says nothing about seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

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
    "The best other method at that budget by its mean over tasks; references and variants of its own do not count."


def estimate(tables: Sequence[Float[np.ndarray, "_S _n"]], *, lowest: float = -100.0) -> Estimate:
    """Mean over tasks (a table each) of the mean over seeds (S rows) and starts (n columns), times 100.

    Tasks are fixed, not drawn: the interval is about these tasks. Its half width is Student's t times the root of the
    summed variances of seeds and starts, with the degrees of freedom of such a sum (Welch 1947). It is cut at
    ``lowest`` and 100.
    """
    parts = [part for table in tables for part in _variances(table)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / count for part, count in parts) if variance else math.inf
    value = 100 * float(np.mean([table.mean() for table in tables]))
    half = 100 * student(freedom) * math.sqrt(variance) / len(tables)
    interval = max(lowest, value - half), min(100.0, value + half)
    return Estimate(value=value, interval=interval, num_seeds=min(len(table) for table in tables))


def _variances(table: Float[np.ndarray, "S n"]) -> Iterator[tuple[float, int]]:
    """Of a table's mean: what comes of the choice of seeds and of starts, each with its degrees of freedom."""
    num_seeds, num_starts = table.shape
    over_seeds, over_starts = table.mean(axis=1), table.mean(axis=0)
    starts = over_starts.var(ddof=1) / num_starts
    if num_seeds > 1:
        yield float(over_seeds.var(ddof=1) / num_seeds), num_seeds - 1
        rest = table - over_starts - over_seeds[:, None] + table.mean()  # it is in both: once is enough
        starts -= rest.var() / ((num_seeds - 1) * (num_starts - 1))
    yield float(max(0.0, starts)), num_starts - 1


@lru_cache
def student(freedom: float) -> float:
    """Within how many standard errors 95 % of Student's t lie. With t = sqrt(freedom) tan(a) its density is that of a
    power of cos(a), which is summed up."""
    freedom = min(freedom, 10_000.0)
    angle = np.linspace(0, math.pi / 2, 20_000, endpoint=False)
    mass = np.cumsum(np.cos(angle) ** (freedom - 1)) - 0.5
    return math.sqrt(freedom) * math.tan(np.interp(0.95 * mass[-1], mass, angle))


def compare(
    trials: Sequence[Trial], *, tasks: Sequence[str], budgets: Sequence[int], methods: Sequence[str],
    references: Sequence[str] = (), variants: Sequence[str] = (),
) -> list[Row]:  # fmt: skip
    """Every method at every budget on every task, and its mean over tasks; differences are paired by seed and start.
    None of the ``variants`` of one method is a rival of another.

    Raises ValueError when the trials of a task have different numbers of starts.
    """
    for task in tasks:
        if len(sizes := {len(t.success) for t in trials if t.task == task}) > 1:
            raise ValueError(f"{task}: methods were tested on different numbers of starts {sorted(sizes)}")

    def rivals(name: str) -> list[str]:
        own = variants if name in variants else (name,)
        return [other for other in methods if other not in own and other not in references]

    found = {(t.task, t.budget, t.method, t.seed): t.success for t in trials}
    rows = []
    for budget in budgets:
        best_of = {BASE: ""} | {name: _best_other(found, tasks, budget, name, rivals(name)) for name in methods}
        for task in [*tasks, MEAN]:
            some = tasks if task == MEAN else [task]
            for name, best in best_of.items():
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


def _best_other(
    found: dict[tuple[str, int, str, int], Bool[np.ndarray, " n"]],
    tasks: Sequence[str],
    budget: int,
    method: str,
    rivals: Sequence[str],
) -> str:
    """The rival that comes off best against a method, over the seeds that both have; "" where none is measured."""
    against = {rival: _estimate(found, tasks, budget, method, rival) for rival in rivals}
    return min(((each.value, rival) for rival, each in against.items() if each), default=(0.0, ""))[1]


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
    return estimate(tables, lowest=-100.0 if other else 0.0)


def _paid(method: str | None, budget: int) -> int:
    return 0 if method == BASE else budget
