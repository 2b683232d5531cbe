"""Groups of siblings for GRPO: repeat each start, keep the groups that teach something, refill the rest, to a cap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from wmpo.protocols import Sampler
from wmpo.rng import keyed
from wmpo.types import Rollouts, Starts, concatenate


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """How many episodes an iteration imagines."""

    num_groups: int = 16
    "Groups (starts) wanted in an iteration."
    group_size: int = 8
    "Siblings from each start (G)."
    dynamic_sampling: bool = True
    "Groups whose siblings all succeed or all fail are replaced by others."
    max_rounds: int = 3
    "Times an iteration samples at most; the paper's code has no such cap and can loop for ever."


@dataclass(frozen=True, slots=True)
class GroupedRollouts:
    """``kept`` are the episodes to learn from (None: no group was mixed); the figures are over all that were played."""

    kept: Rollouts | None
    success: float
    mean_length: float
    num_episodes: int
    num_mixed: int
    num_groups: int


def sample_groups(
    sampler: Sampler, pool: Starts, config: GroupConfig, *, temperature: float, seed: int, iteration: int
) -> GroupedRollouts:
    """Plays rounds of groups until enough are mixed or the cap is reached; what is missing is then simply missing."""
    kept: list[Rollouts] = []
    played: list[Rollouts] = []
    wanted, total = config.num_groups, 0
    for round_ in range(config.max_rounds if config.dynamic_sampling else 1):
        starts = _repeat(pool, config, wanted, seed=seed, iteration=iteration, round_=round_)
        rollouts = sampler.run(starts, temperature, seed)
        played.append(rollouts)
        useful = mixed(rollouts.success, rollouts.group)
        total += int(useful.sum()) // config.group_size
        kept.append(rollouts.rows(useful.nonzero().squeeze(1)) if config.dynamic_sampling else rollouts)
        wanted = config.num_groups - total
        if wanted <= 0:
            break
    everything = torch.cat([r.success for r in played]).float()
    length = torch.cat([r.num_steps for r in played]).float()
    filled = [rollouts for rollouts in kept if len(rollouts)]
    return GroupedRollouts(
        kept=concatenate(filled) if filled else None,
        success=float(everything.mean()),
        mean_length=float(length.mean()),
        num_episodes=len(everything),
        num_mixed=total,
        num_groups=len(everything) // config.group_size,
    )


def _repeat(pool: Starts, config: GroupConfig, count: int, *, seed: int, iteration: int, round_: int) -> Starts:
    """``count`` starts from the pool, G times each; identities are unique over the whole training."""
    rng = keyed(seed, "improve/starts", iteration, round_)
    picked = torch.from_numpy(rng.choice(len(pool), size=count, replace=count > len(pool)))
    rows = picked.repeat_interleave(config.group_size)
    first = (iteration * 64 + round_) << 20
    group = first + torch.arange(count).repeat_interleave(config.group_size)
    return pool.rows(rows).with_ids(first + torch.arange(len(rows)), group)


def mixed(success: Bool[Tensor, " B"], group: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Rows whose group holds both successes and failures (dynamic sampling, arXiv 2503.14476)."""
    _, member, size = torch.unique(group, return_inverse=True, return_counts=True)
    wins = torch.zeros(len(size), dtype=torch.long).scatter_add(0, member, success.long())
    return ((wins > 0) & (wins < size))[member]
