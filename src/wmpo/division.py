"""How the rows of a batch are divided: into parts that fit into memory, and among processes.

Indices and noise are drawn for the whole batch, whoever learns which rows of it, and each part's mean loss is weighted
with its share of the rows. So the gradients of all parts add up to that of the batch, whatever the division.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from wmpo.types import Minibatch


class Division(Protocol):
    """Of one training, as one of its processes sees it."""

    def take(self, network: nn.Module) -> None:
        """Leaves this process's part of the network in place; called before there is an optimiser."""

    def parts(self, count: int, most: int) -> list[tuple[slice, float]]:
        """Of a batch of ``count`` rows: those of each forward pass of this process, at most ``most`` (0: any number),
        and their share of the batch."""

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""


class Whole:
    """A :class:`Division` of one process: all is here."""

    def take(self, network: nn.Module) -> None:
        """Nothing to do."""

    def parts(self, count: int, most: int) -> list[tuple[slice, float]]:
        return cut(count, most)

    def total(self, value: Tensor) -> Tensor:
        return value


WHOLE = Whole()


def cut(count: int, most: int, rank: int = 0, size: int = 1) -> list[tuple[slice, float]]:
    """The parts of one of ``size`` processes, each as many and as nearly equal as possible: processes that divide a
    network meet in every forward pass. Where there are more parts than rows, one row is looked at with weight 0."""
    passes = -(-count // size)
    passes = -(-passes // most) if most else 1
    bounds = [count * i // (size * passes) for i in range(rank * passes, (rank + 1) * passes + 1)]
    rows = [slice(begin, end) for begin, end in pairwise(bounds)]
    return [(r, (r.stop - r.start) / count) if r.stop > r.start else (slice(0, 1), 0.0) for r in rows]


def split(minibatch: Minibatch, size: int) -> list[Minibatch]:
    """Equal parts, so that all ranks meet in every forward pass: the last ones are filled up with decisions that are
    masked and therefore teach nothing."""
    each = -(-len(minibatch) // size)
    parts = [minibatch.rows(slice(rank * each, (rank + 1) * each)) for rank in range(size)]
    return [_filled(part, minibatch, each) for part in parts]


def _filled(part: Minibatch, whole: Minibatch, count: int) -> Minibatch:
    missing = count - len(part)
    if missing == 0:
        return part

    def filled(name: str) -> Tensor:
        return torch.cat([getattr(part, name), *[getattr(whole, name)[:1]] * missing])

    mask = filled("mask")
    mask[len(part) :] = False
    return Minibatch(
        frame=filled("frame"),
        instruction=part.instruction + whole.instruction[:1] * missing,
        tokens=filled("tokens"),
        old_logprob=filled("old_logprob"),
        mask=mask,
        advantage=filled("advantage"),
        weight=filled("weight"),
        num_episodes=whole.num_episodes,
    )


def check_sizes(size: int, local_sizes: Sequence[int], shards: int) -> tuple[int, int]:
    """Copies and shards; 0 shards: as many as there are ranks on a machine (``local_sizes``, as each rank sees it).
    Raises ValueError when these do not divide the ranks, or machines have unequal numbers of them."""
    if not shards and len(set(local_sizes)) > 1:
        numbers = " and ".join(map(str, sorted(set(local_sizes))))
        raise ValueError(
            f"machines run {numbers} of the {size} processes; start as many on each, or name --execution.shards"
        )
    shards = shards or local_sizes[0]
    if size % shards:
        raise ValueError(f"execution.shards {shards} must divide the {size} processes")
    return size // shards, shards


def check_gpus(local_size: int, gpus: int) -> None:
    """Raises ValueError when the ranks of a machine would have to share a GPU, which NCCL cannot."""
    if gpus and local_size > gpus:
        raise ValueError(f"{local_size} processes on a machine need a GPU each, but it has {gpus}; start fewer")
