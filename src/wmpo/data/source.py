"""What every importer gives: a dataset of another program as a stream of our episodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from wmpo.data.damage import require
from wmpo.data.episode import Episode
from wmpo.views import ONE_VIEW

MOST_FPS = 4096
"""Frames a second that a dataset may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Which parts of a dataset are meant; None: the usual one of its format, or the only one there is."""

    camera: tuple[str, ...] = ()
    "Names of the pictures, needed when there are several. Those of several cameras stand side by side, from the left."
    action: str | None = None
    "Name of the actions; several, with commas between them, are put one behind the other."
    success: str | None = None
    "Name of what is 1 (or true) from the step on that solved the task: a reward or a flag."
    split: str | None = None
    "Split (RLDS) or filter key (robomimic)."
    image_size: int | None = None
    "Pictures become squares of so many pixels; by default they stay as they are."


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An opened dataset. Its episodes are read while they are asked for, and raise DatasetError where it is damaged."""

    path: Path
    kind: str
    "Its format, in words."
    fps: int | None
    "Frames (= actions) a second; None where the format does not say."
    labelled: bool
    "Whether the dataset says which episodes were solved; where not, all ``solved_at`` are -1."
    episodes: Iterable[Episode]


def solved_rows(labels: Shaped[np.ndarray, "R ..."], name: str, path: Path) -> Bool[np.ndarray, " R"]:
    """Where the (first) number of a row says that the task is solved: 1 or more, or true. Raises DatasetError for what
    is no number, NaN too: it would count as a failure."""
    require(labels.dtype.kind in "biuf", path, f"the labels {name!r} are {labels.dtype}, not numbers")
    require(labels.size > 0 or not len(labels), path, f"the labels {name!r} are empty")
    first = labels.reshape(len(labels), -1)[:, 0] if len(labels) else np.zeros(0)
    require(not np.isnan(first.astype(float)).any(), path, f"the labels {name!r} contain NaN")
    return first >= 1


def to_episode(
    frames: UInt8[np.ndarray, "L h w 3"],
    actions: Shaped[np.ndarray, "R A"],
    solved: Bool[np.ndarray, " Q"] | None,
    *,
    instruction: str,
    number: int,
    path: Path,
    views: tuple[str, ...] = ONE_VIEW,
) -> Episode:
    """An episode of another program, which has as many frames as rows (L = R) or one more (the last one).

    Where no frame follows the last action, that action is dropped. ``solved`` tells for each row whether the task is
    solved after its action; success by a dropped action counts at the last frame. Raises DatasetError about ``path``.
    """
    name, rows, steps = f"episode {number}", len(actions), min(len(actions), len(frames) - 1)
    require(actions.dtype.kind in "fiu", path, f"the actions of {name} are {actions.dtype}, not numbers")
    require(actions.shape[1] > 0, path, f"the actions of {name} have no dimension")
    require(len(frames) in (rows, rows + 1), path, f"{name} has {len(frames)} frames for {rows} actions")
    require(steps > 0, path, f"{name} has no action that a frame follows: its length is {rows}")
    fits = bool((np.abs(actions[:steps]) <= 3e38).all())
    require(fits, path, f"the actions of {name} contain NaN, infinity or numbers too large for float32")
    require(solved is None or len(solved) == rows, path, f"{name} does not have one success label for each action")
    hit = solved is not None and bool(solved.any())
    return Episode(
        frames=frames[: steps + 1],
        actions=actions[:steps].astype(np.float32),
        solved_at=min(int(solved.argmax()) + 1, steps) if solved is not None and hit else -1,
        instruction=instruction,
        start=-1,
        episode_id=number,
        policy="unknown",
        views=views,
    )
