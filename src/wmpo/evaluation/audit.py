"""Is the dream lying? A few real validation episodes, replayed in the world model and judged by the reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wmpo.data.episode import Episode
from wmpo.evaluation.statistics import Rates, newcombe, rates, wilson
from wmpo.evaluation.world_model import replay
from wmpo.protocols import RewardModel, WorldModel
from wmpo.reward.detector import show_success


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How often and how dearly real episodes watch the dream."""

    every: int = 8
    """Iterations of the last round between audits; the policies that it begins and ends with are audited in any case,
    or the latter alone where ``max_episodes`` pay for one audit. Rounds before have none: the next round's episodes are
    their audit."""
    num_episodes: int = 32
    "Real episodes in an audit; they begin where as many held-out episodes began, and are compared with those."
    max_episodes: int = 64
    "Real episodes in all audits together, that of the policy to begin with included; 0: no audits."

    @property
    def max_audits(self) -> int:
        """Of a training."""
        return self.max_episodes // self.num_episodes


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Real success, and success that imagination ascribes to the same actions. J is TPR - FPR of those verdicts."""

    iteration: int
    real: float
    imagined: float
    j: float | None
    "None when all episodes ended alike: then there is nothing to tell apart."
    j_interval: tuple[float, float]
    n: int
    solved: tuple[bool, ...]
    "Real outcomes. Audits that are compared with each other play the same starts in the same order."
    verdict: str = ""
    warning: str = ""
    "Whether the dream may be lying, and what to do about it."


def signed(j: float | None) -> str:
    """J as text."""
    return "undefined" if j is None else f"{j:+.2f}"


def judge(
    episodes: Sequence[Episode],
    world_model: WorldModel,
    reward_model: RewardModel,
    *,
    chunk_size: int,
    seed: int,
    iteration: int,
) -> Audit:
    """Replays the recorded actions and compares the reward model's verdict with what happened."""
    videos = replay(world_model, episodes, chunk_size, seed=seed)
    imagined = show_success(reward_model, videos, [episode.instruction for episode in episodes])
    truth = np.array([episode.success for episode in episodes])
    found = rates(imagined, truth)
    return Audit(
        iteration=iteration,
        real=float(truth.mean()),
        imagined=float(imagined.mean()),
        j=None if math.isnan(found.j) else found.j,
        j_interval=found.j_interval,
        n=len(episodes),
        solved=tuple(truth.tolist()),
        warning=warning(found, float(imagined.mean())),
    )


REMEDY = (
    "align longer (--world-model-training.fit.num-steps), collect more (--collect.num-episodes), in more rounds "
    "(--num-rounds), or look at the replays in the report"
)

FEW = 4
"""Successes, or failures, below which an interval of J that holds 0 says more about the audit than about the dream."""


def warning(found: Rates, imagined: float) -> str:
    """What to say when the interval of J reaches 0, or the dream is rosier than chance explains; else nothing."""
    if math.isnan(found.j):
        return ""
    rosy, failures = imagined > wilson(found.positives, found.n)[1], found.n - found.positives
    if found.j <= 0 and rosy and failures >= FEW:
        return f"the dream lies: it calls failures successes, and its verdicts are no better than chance; {REMEDY}"
    if found.j_interval[0] <= 0:
        chance = f"the dream's verdicts may be chance (J from {found.j_interval[0]:+.2f})"
        count, ended = min((found.positives, "succeeded"), (failures, "failed"))
        few = f"{chance}: only {count} of {found.n} episodes {ended}, too few to tell"
        return few if count < FEW else f"{chance}; {REMEDY}"
    return f"the dream is too rosy: {100 * imagined:.0f} % imagined; {REMEDY}" if rosy else ""


def parted(found: Audit, earlier: Sequence[Audit]) -> str:
    """Why training must stop, or nothing.

    It stops when more starts were lost since the best audit than chance allows (two standard errors of the paired
    difference), or when real success has not risen and imagined success is above its interval, while the dream's
    verdicts are no better than chance or imagined success has risen more than chance explains.
    """
    best = _best([found, *earlier])
    if loss(best.solved, found.solved) > 2:
        return f"real success fell from {100 * best.real:.0f} to {100 * found.real:.0f} %"
    highest = wilson(round(found.real * found.n), found.n)[1]
    if found.imagined <= highest or (earlier and found.real > earlier[0].real):
        return ""
    if found.j is None or found.j <= 0:
        return f"imagination calls {100 * found.imagined:.0f} % solved where {100 * found.real:.0f} % are"
    if earlier and found.imagined > wilson(round(earlier[0].imagined * found.n), found.n)[1]:
        rose = f"imagined success rose from {100 * earlier[0].imagined:.0f} to {100 * found.imagined:.0f} %"
        return f"{rose} while real success did not ({100 * earlier[0].real:.0f} to {100 * found.real:.0f} %)"
    return ""


def better(found: Audit, earlier: Sequence[Audit]) -> bool:
    """Whether to prefer this policy to all before it. An audit is small, and a policy that trained on in a dream which
    follows reality is more likely better than worse: it must not have lost more than one standard error."""
    return loss(_best([found, *earlier]).solved, found.solved) <= 1


def fallen(earlier: Sequence[tuple[int, int]], now: tuple[int, int]) -> int | None:
    """Which earlier policy to return to when the present one solves fewer of other starts than chance explains (95 %
    interval of the difference to the best); None: none. Policies are (solved, played)."""
    best = max(range(len(earlier)), key=lambda i: earlier[i][0] / earlier[i][1])
    return best if newcombe(earlier[best], now)[0] > 0 else None


def _best(audits: Sequence[Audit]) -> Audit:
    """The one with the greatest real success, the latest of equals."""
    return max(audits, key=lambda audit: (audit.real, audit.iteration))


def loss(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Starts lost less starts won, in standard errors; outcomes from the same starts in the same order."""
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    won = sum(b and not a for a, b in zip(before, after, strict=True))
    return (lost - won) / math.sqrt(max(lost + won, 1))
