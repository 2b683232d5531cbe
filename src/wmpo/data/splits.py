"""Start states: disjoint by construction, because each purpose owns a range of simulator seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from wmpo.rng import alternating
from wmpo.types import Starts

Split = Literal["demonstrations", "collection", "validation", "test", "throughput", "pretraining", "robot"]
_BLOCK = 10_000_000
_FIRST: dict[Split, int] = {
    "demonstrations": 1 * _BLOCK,
    "collection": 2 * _BLOCK,
    "validation": 4 * _BLOCK,
    "test": 5 * _BLOCK,
    "throughput": 6 * _BLOCK,
    "pretraining": 7 * _BLOCK,
    "robot": 8 * _BLOCK,  # no seeds of a simulator, but names of scenes that somebody laid out
}
_RUN = 100_000  # start states of one run


def start_seeds(split: Split, seed: int, first: int, count: int) -> list[int]:
    """Simulator seeds ``first .. first + count - 1`` of a split. Test starts are the same in runs of any seed.

    Raises ValueError when a run asks for more than 100,000 of a split, or has a seed outside 0..99.
    """
    if not 0 <= seed < _BLOCK // _RUN:
        raise ValueError(f"--seed must be in 0..{_BLOCK // _RUN - 1}, not {seed}")
    if first + count > _RUN:
        raise ValueError(f"{split}: only {_RUN} start states belong to a run, but {first + count} are asked for")
    begin = _FIRST[split] + (0 if split == "test" else seed * _RUN) + first
    return list(range(begin, begin + count))


def hold_out(success: Sequence[bool], count: int, instructions: Sequence[str] = ()) -> set[int]:
    """Which of a policy's episodes only measure: ``count`` of them, spread evenly over failures and successes, of each
    task where there are several."""
    told = instructions or [""] * len(success)
    order = sorted(range(len(success)), key=lambda i: (told[i], success[i]))  # stable: then in the order of playing
    return {order[(2 * k + 1) * len(order) // (2 * count)] for k in range(count)}


def simulator_starts(seeds: list[int], instructions: Sequence[str]) -> Starts:
    """One episode from each; a start's simulator seed is its identity too, and says which of the tasks it is of."""
    ids, told = torch.tensor(seeds), tuple(alternating(seed, instructions) for seed in seeds)
    return Starts(instruction=told, sim_seed=ids, episode_id=ids, group=torch.arange(len(seeds)))
