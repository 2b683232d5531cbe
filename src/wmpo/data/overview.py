"""What is in a dataset, at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from wmpo.data.episode import Episode
from wmpo.data.pictures import resize

THUMBNAIL = 96
"""Pixels of a picture in a contact sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Figures over all episodes; ``low``, ``mean``, ``high`` of each action dimension in the dataset's units."""

    lengths: tuple[int, ...]
    "Actions of each episode."
    solved_at: tuple[int, ...]
    "Of each episode; -1: not solved."
    picture: tuple[int, int]
    "Height and width of a camera's picture."
    views: tuple[str, ...]
    "Cameras, from the left."
    instructions: tuple[tuple[str, int], ...]
    "Sentences and how many episodes have them, the most frequent first."
    policies: tuple[tuple[str, int], ...]
    "Who acted, likewise."
    low: Float[np.ndarray, " A"]
    mean: Float[np.ndarray, " A"]
    high: Float[np.ndarray, " A"]
    rows: tuple[UInt8[np.ndarray, "C s w 3"], ...]
    "Frames of the first episodes, equally spaced in time, for a contact sheet; all cameras side by side."

    @property
    def num_solved(self) -> int:
        return sum(step > 0 for step in self.solved_at)

    def remarks(self, *, labelled: bool) -> list[str]:
        """What would make learning from these episodes fail or go astray."""
        found = []
        if still := [i for i in range(len(self.low)) if self.high[i] - self.low[i] < 1e-6]:
            found.append(f"action dimensions {still} never move")
        if not labelled:
            found.append("nothing says which episodes were solved: import with --labels")
        elif self.num_solved in (0, len(self.lengths)):
            kind = "no" if self.num_solved == 0 else "every"
            found.append(f"{kind} episode is solved: a success classifier needs both kinds")
        return found


def overview(episodes: Iterable[Episode], *, num_rows: int = 8, num_columns: int = 8) -> Overview | None:
    """Goes through the episodes once; None when there are none. Raises ValueError when their actions differ in size."""
    views: tuple[str, ...] = ()
    rows, kept = list[np.ndarray](), list[tuple[int, int]]()
    low = high = total = np.zeros(0)
    sentences, policies, picture = Counter[str](), Counter[str](), (0, 0)
    for episode in episodes:
        kept.append((len(episode.actions), episode.solved_at))
        sentences[episode.instruction] += 1
        policies[episode.policy] += 1
        actions = episode.actions.astype(np.float64)
        if len(kept) == 1:
            low, high, total = actions[0], actions[0], np.zeros(actions.shape[1])
            views = episode.views
            picture = (episode.frames.shape[1], episode.frames.shape[2] // len(views))
        if actions.shape[1] != len(low):
            raise ValueError(
                f"episode {len(kept) - 1} has {actions.shape[1]} action dimensions, the first one {len(low)}; "
                "keep them in separate datasets"
            )
        low, high = np.minimum(low, actions.min(axis=0)), np.maximum(high, actions.max(axis=0))
        total = total + actions.sum(axis=0)
        if len(rows) < num_rows:
            chosen = np.linspace(0, len(episode.frames) - 1, num_columns).round().astype(int)
            shown = np.split(episode.frames[chosen], len(views), axis=2)
            rows.append(np.concatenate([resize(view, THUMBNAIL) for view in shown], axis=2))
    if not kept:
        return None
    lengths = tuple(length for length, _ in kept)
    return Overview(
        lengths=lengths, solved_at=tuple(solved for _, solved in kept), picture=picture, views=views,
        instructions=tuple(sentences.most_common()), policies=tuple(policies.most_common()),
        low=low, mean=total / sum(lengths), high=high, rows=tuple(rows),
    )  # fmt: skip
