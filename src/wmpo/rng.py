"""Random numbers keyed by what they are for, never by when they are drawn.

Every draw is a pure function of (seed, purpose, keys), through the counter-based Philox generator. So results do not
depend on batching, on how rows are split over workers, or on where an interrupted run went on.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_MASK = (1 << 64) - 1
_Choice = TypeVar("_Choice")


def keyed(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A generator for one purpose, e.g. ``keyed(0, "sft/batch", step)``."""
    # Two 64-bit words key Philox: one mixes seed and purpose, the other (splitmix64) folds the keys together.
    low = ((seed & 0xFFFFFFFF) << 32) | zlib.crc32(purpose.encode())
    high = 0x9E3779B97F4A7C15
    for key in keys:
        high = (high ^ (key & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        high = (high ^ (high >> 27)) * 0x94D049BB133111EB & _MASK
        high ^= high >> 31
    return np.random.Generator(np.random.Philox(key=np.array([low, high], dtype=np.uint64)))


def alternating(seed: int, choices: Sequence[_Choice]) -> _Choice:
    """What a start state's seed chooses, such as its task: consecutive seeds take turns."""
    return choices[seed % len(choices)]
