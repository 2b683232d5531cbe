"""Base against improved policy where something is disturbed, and where the policy itself went wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from wmpo.evaluation.policy import Outcomes, difference
from wmpo.evaluation.statistics import mean_interval, paired_difference, wilson


def compared(base: Outcomes, improved: Outcomes) -> dict[str, Any]:
    """Success of both from the same starts, and the paired difference in points."""
    return {"base": base.summary(), "improved": improved.summary(), "difference": difference(base, improved)}


def lengths(base: Outcomes, improved: Outcomes) -> dict[str, Any]:
    """Steps to success from the ``n`` starts that both solve: who corrects its own slips needs fewer.

    ``difference`` is improved less base, in steps. What does not exist is None: means without, intervals with less
    than two such starts.
    """
    both = base.success & improved.success
    before, after = base.num_steps[both].astype(float), improved.num_steps[both].astype(float)
    mean, interval = mean_interval(after - before)
    known = len(before) > 1
    return {
        "n": len(before),
        "base": float(before.mean()) if len(before) else None,
        "improved": float(after.mean()) if len(after) else None,
        "difference": {"steps": mean if known else None, "interval": list(interval) if known else None},
    }


def recovery(
    base: Outcomes, improved: Outcomes, *, undisturbed: tuple[Outcomes, Outcomes], step: int
) -> dict[str, Any]:
    """Success of the episodes that were pushed after ``step`` steps: those that were not over by then.

    ``undisturbed`` are the same starts without a push, of both policies. The paired difference is over the ``n`` starts
    from which both were pushed; None without any.
    """
    pushed = [outcomes.num_steps > step for outcomes in (base, improved)]
    both = pushed[0] & pushed[1]
    points, interval = paired_difference(base.success[both], improved.success[both]) if both.any() else (None, None)
    return {
        "base": _after(base, undisturbed[0], pushed[0]),
        "improved": _after(improved, undisturbed[1], pushed[1]),
        "difference": {"points": points, "interval": interval and list(interval), "n": int(both.sum())},
    }


def _after(outcomes: Outcomes, undisturbed: Outcomes, pushed: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    solved, count = int(outcomes.success[pushed].sum()), int(pushed.sum())
    return {
        "success": solved / count if count else None,
        "n": count,
        "interval": list(wilson(solved, count)),
        "without_push": float(undisturbed.success[pushed].mean()) if count else None,
    }
