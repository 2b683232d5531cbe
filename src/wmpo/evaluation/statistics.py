"""Intervals for success rates: small numbers of episodes are all anyone has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from wmpo.rng import keyed

Z = 1.959964  # 95 %


def wilson(successes: int, count: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); (0, 1) without observations."""
    if count == 0:
        return 0.0, 1.0
    p, z2 = successes / count, Z * Z
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """95 % interval of p1 - p2 for two independent (successes, count) (Newcombe 1998, method 10)."""
    (low1, high1), (low2, high2) = wilson(*first), wilson(*second)
    p1, p2 = (k / n if n else 0.5 for k, n in (first, second))
    low = p1 - p2 - math.hypot(p1 - low1, high2 - p2)
    high = p1 - p2 + math.hypot(high1 - p1, p2 - low2)
    return max(-1.0, low), min(1.0, high)


def paired_difference(
    base: Bool[np.ndarray, " n"], improved: Bool[np.ndarray, " n"], *, draws: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Mean of improved - base over the same starts, in points, with a 95 % bootstrap interval over starts."""
    if len(base) != len(improved):
        raise ValueError(f"paired outcomes need the same starts: {len(base)} and {len(improved)} episodes")
    difference = improved.astype(float) - base.astype(float)
    # Only three values occur, so resampling starts is drawing three counts.
    values, counts = np.unique(difference, return_counts=True)
    resampled = keyed(0, "bootstrap").multinomial(len(difference), counts / len(difference), size=draws)
    means = resampled @ values / len(difference)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(100 * difference.mean()), (float(100 * low), float(100 * high))


def mean_interval(
    values: Float[np.ndarray, " n"], *, less: Sequence[Float[np.ndarray, " _"]] = (), draws: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Mean with a 95 % bootstrap interval, in the unit of the values; NaN for less than two of them. ``less``: samples
    of their own, the mean of whose means is taken off; they are drawn anew too."""
    if len(values) < 2:
        return math.nan, (math.nan, math.nan)
    rng = keyed(0, "bootstrap/mean")

    def means(sample: Float[np.ndarray, " m"]) -> Float[np.ndarray, " draws"]:
        return sample[rng.integers(len(sample), size=(draws, len(sample)))].mean(axis=1)

    mean, drawn = values.mean(), means(values)
    for sample in less:
        mean, drawn = mean - sample.mean() / len(less), drawn - means(sample) / len(less)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(mean), (float(low), float(high))


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How well scores tell successes from failures at a threshold. J = TPR - FPR (Youden); GRPO learns only if it is
    positive (arXiv 2601.04411)."""

    tpr: float
    tpr_interval: tuple[float, float]
    fpr: float
    fpr_interval: tuple[float, float]
    j: float
    j_interval: tuple[float, float]
    f1: float
    f1_interval: tuple[float, float]
    n: int
    positives: int


def rates(predicted: Bool[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> Rates:
    """With 95 % intervals: Wilson's of TPR and FPR, Newcombe's of J, and Wilson's of F1 by the share of hits among hits
    and errors.

    Without any success (or failure) TPR (or FPR) is not defined: then it is NaN and so is J.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    hits, alarms = int((predicted & truth).sum()), int((predicted & ~truth).sum())
    tpr = hits / positives if positives else math.nan
    fpr = alarms / negatives if negatives else math.nan
    wrong = alarms + positives - hits
    return Rates(
        tpr=tpr,
        tpr_interval=wilson(hits, positives),
        fpr=fpr,
        fpr_interval=wilson(alarms, negatives),
        j=tpr - fpr,
        j_interval=newcombe((hits, positives), (alarms, negatives)),
        f1=2 * hits / (2 * hits + wrong) if hits + wrong else math.nan,
        f1_interval=_f1_interval(hits, wrong),
        n=len(truth),
        positives=positives,
    )


def _f1_interval(hits: int, wrong: int) -> tuple[float, float]:
    """F1 is 2 q / (1 + q) of the share q of hits among hits and errors; Wilson's of that."""
    low, high = wilson(hits, hits + wrong)
    return 2 * low / (1 + low), 2 * high / (1 + high)


Target = Literal["balanced", "j", "f1", "fpr"]


def best_threshold(
    score: Float[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    target: Target = "balanced",
    max_fpr: float = 0.05,
) -> float:
    """The threshold that is best for ``target``, in the middle of the widest gap between scores that reaches it.

    "j": TPR - FPR. "balanced": J less half the error of the success rate, because J alone is flat near its maximum, and
    there calls twice as many episodes solved as are, or half as many. "f1": F1. "fpr": the most successes found with at
    most ``max_fpr`` false alarms. Raises ValueError when there are only successes or only failures.
    """
    if truth.all() or not truth.any():
        raise ValueError(
            f"the threshold needs held-out successes and failures, but all {len(truth)} are of one kind; "
            "collect more episodes (--collect.num-episodes) or change the base policy (--sft.fit.num-steps)"
        )
    levels = np.unique(np.concatenate([score, [-20.0, 20.0]]))
    middles = (levels[1:] + levels[:-1]) / 2
    called = score > middles[:, None]
    tpr, fpr = called[:, truth].mean(axis=1), called[:, ~truth].mean(axis=1)
    if target == "f1":
        worth = 2 * tpr * truth.sum() / (called.sum(axis=1) + truth.sum())
    elif target == "fpr":
        worth = np.where(fpr <= max_fpr, tpr, -1.0)
    else:
        worth = tpr - fpr - (0.5 * np.abs(called.mean(axis=1) - truth.mean()) if target == "balanced" else 0.0)
    best = np.flatnonzero(worth >= worth.max() - 1e-9)
    widest = best[np.argmax(np.minimum(levels[best + 1] - levels[best], 8.0))]
    return float(middles[widest])


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Linear correlation; NaN where one side does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def mean_max_rank_violation(imagined: Sequence[float], real: Sequence[float]) -> float:
    """MMRV (SIMPLER, arXiv 2405.05941): for each policy the largest real difference to one that imagination ranks the
    other way round, averaged; 0 when every ranking is right. In units of ``real``."""
    dreamt, found = np.asarray(imagined), np.asarray(real)
    gap = np.abs(found[:, None] - found)
    violated = (dreamt[:, None] < dreamt) != (found[:, None] < found)
    return float((gap * violated).max(axis=1).mean())


def auroc(score: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Chance that a true case scores higher than a false one, ties half; NaN when there is only one kind."""
    high, low = score[truth], score[~truth]
    if not len(high) or not len(low):
        return math.nan
    greater = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    return float(greater)
