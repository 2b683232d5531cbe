"""Is the dream lying? A few real validation episodes, replayed in the world model and judged by the reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wmpo.data.episode import Episode
from wmpo.evaluation.statistics import rates, wilson
from wmpo.evaluation.world_model import replay
from wmpo.protocols import RewardModel, WorldModel
from wmpo.reward.detector import score_video


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How often and how dearly real episodes watch the dream."""

    every: int = 4
    "Iterations between audits."
    num_episodes: int = 16
    "Real episodes in an audit."
    max_episodes: int = 64
    "Real episodes in all audits together; 0: no audits."

    @property
    def max_audits(self) -> int:
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
    verdict: str = ""


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
    imagined = np.array([bool((score_video(reward_model, v) > reward_model.threshold).any()) for v in videos])
    truth = np.array([episode.success for episode in episodes])
    found = rates(imagined, truth)
    return Audit(
        iteration=iteration,
        real=float(truth.mean()),
        imagined=float(imagined.mean()),
        j=None if math.isnan(found.j) else found.j,
        j_interval=found.j_interval,
        n=len(episodes),
    )


def parted(found: Audit, earlier: Sequence[Audit]) -> str:
    """Why training must stop, or nothing.

    It stops when real success is lower than the best so far by more than chance allows (two standard errors of
    the audit), or when the dream's verdicts are no better than chance and above the interval of real success.
    """
    best = max(audit.real for audit in (found, *earlier))
    spread = math.sqrt(max(best * (1 - best), 0.05) / found.n)
    if found.real < best - 2 * spread:
        return f"real success fell from {100 * best:.0f} to {100 * found.real:.0f} %"
    highest = wilson(round(found.real * found.n), found.n)[1]
    if (found.j is None or found.j <= 0) and found.imagined > highest:
        return f"imagination calls {100 * found.imagined:.0f} % solved where {100 * found.real:.0f} % are"
    return ""


def better(found: Audit, earlier: Sequence[Audit]) -> bool:
    """At least as much real success as every earlier audit; ties go to the later policy."""
    return all(found.real >= audit.real for audit in earlier)
