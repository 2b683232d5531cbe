"""Datasets of other programs become one of ours: found out by what they look like, checked whole, then put in place."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wmpo.checkpoint import write_atomic, write_json
from wmpo.data.damage import DatasetError, reading, require
from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes, open_lerobot
from wmpo.data.rlds import open_rlds
from wmpo.data.robomimic import open_robomimic
from wmpo.data.source import Keys, Source

SHARD, SHARD_BYTES = 64, 2**28
"""Episodes in memory at once: so many, or so many bytes of pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What an import changes. ``fps`` replaces what the dataset says, but resamples nothing. ``instruction`` replaces
    every sentence. ``labels`` is a file with the columns episode, success and perhaps solved_at, or ``solved`` or
    ``failed`` for all."""

    fps: int | None = None
    instruction: str | None = None
    labels: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import wrote."""

    kind: str
    num_episodes: int
    num_solved: int
    num_actions: int
    fps: int


def open_source(path: Path, keys: Keys) -> Source:
    """A LeRobot folder, a TFDS version folder with RLDS episodes, or a robomimic HDF5 file.

    Raises DatasetError for anything else, and where a file that must be there is damaged.
    """
    if (path / "meta/info.json").exists():
        return open_lerobot(path, keys)
    if (path / "features.json").exists():
        return open_rlds(path, keys)
    if path.is_file():
        return open_robomimic(path, keys)
    patterns = ((1, "*/features.json"), (2, "*/meta/info.json"), (2, "data/*/meta/info.json"))  # the last: of a run
    near = sorted(str(found.parents[depth - 1]) for depth, pattern in patterns for found in path.glob(pattern))
    hint = f"; did you mean {near[0]}?" if near else ""
    what = "is neither a LeRobot folder (meta/info.json), an RLDS folder (features.json) nor an HDF5 file"
    raise DatasetError(f"{path} {what if path.exists() else 'does not exist'}{hint}; choose another source")


def import_dataset(path: Path, target: Path, keys: Keys, conversion: Conversion) -> Imported:
    """Reads all of ``path`` and writes it as the new dataset ``target``, which appears only when it is whole.

    Raises DatasetError when the source is damaged or lacks something that ``conversion`` does not give, or when the
    target exists; OSError when it cannot be written.
    """
    source = open_source(path, keys)
    fps = conversion.fps or source.fps
    if fps is None:
        raise DatasetError(f"{path} does not say how many frames a second has; give --fps")
    if not source.labelled and conversion.labels is None:
        raise DatasetError(
            f"{path} does not say which episodes were solved; give --labels FILE.csv, or --labels solved or failed"
        )
    steps, solved = list[int](), list[bool]()

    def counted() -> Iterator[Episode]:
        for episode in convert(source, conversion):
            steps.append(len(episode.actions))
            solved.append(episode.success)
            yield episode

    read = {"camera": list(keys.camera), "image_size": keys.image_size}
    origin = {"source": path.name, "kind": source.kind, **read, **asdict(conversion)}
    write_new(target, counted(), fps=fps, origin=origin)
    return Imported(kind=source.kind, num_episodes=len(steps), num_solved=sum(solved), num_actions=sum(steps), fps=fps)


def convert(source: Source, conversion: Conversion) -> Iterator[Episode]:
    """The source's episodes with what ``conversion`` changes. Raises DatasetError where they do not fit each other."""
    labels = read_labels(Path(conversion.labels)) if conversion.labels not in (None, "solved", "failed") else None
    count, first = 0, None
    for count, episode in enumerate(source.episodes, start=1):
        sentence = conversion.instruction if conversion.instruction is not None else episode.instruction
        if not sentence.strip():
            raise DatasetError(f"{source.path} has no sentence for episode {count - 1}; give --instruction")
        solved_at = {"solved": len(episode.actions), "failed": -1}.get(conversion.labels or "", episode.solved_at)
        if labels is not None:
            solved_at = _labelled(labels, count - 1, len(episode.actions), Path(str(conversion.labels)))
        shapes = f"pictures {episode.frames.shape[1:3]} and {episode.actions.shape[1]} action dimensions"
        first = first or shapes
        if shapes != first:
            fix = "import them apart, or give --image-size"
            raise DatasetError(f"{source.path}: episode {count - 1} has {shapes}, but the first one {first}; {fix}")
        yield replace(episode, instruction=sentence, solved_at=solved_at)
    require(count > 0, source.path, "it holds no episodes")
    if labels is not None and (unknown := sorted(set(labels) - set(range(count)))):
        raise DatasetError(f"{conversion.labels} labels episodes {unknown[:3]}, but {source.path} has 0..{count - 1}")


def check_new(target: Path) -> None:
    """Raises DatasetError unless ``target`` is an empty folder or nothing yet."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DatasetError(f"{target} exists and is not an empty folder; choose another --to")


def write_new(target: Path, episodes: Iterator[Episode], *, fps: int, origin: dict[str, object]) -> None:
    """Writes a dataset that appears under its name only when it is whole, and where it is from (``meta/origin.json``).

    Raises DatasetError when the target exists.
    """
    check_new(target)
    unfinished = target.parent / f".{target.name}.{os.getpid()}.unfinished"
    try:
        for shard in _shards(episodes):
            append_episodes(unfinished, shard, fps=fps)
        write_json(unfinished / "meta/origin.json", origin)
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _shards(episodes: Iterator[Episode]) -> Iterator[list[Episode]]:
    shard: list[Episode] = []
    for episode in episodes:
        shard.append(episode)
        if len(shard) == SHARD or sum(e.frames.nbytes for e in shard) > SHARD_BYTES:
            yield shard
            shard = []
    if shard:
        yield shard


def read_labels(path: Path) -> dict[int, tuple[bool, int | None]]:
    """Success of each episode, and after how many actions where the file says so.

    The file has a line of names, ``episode,success`` and perhaps ``solved_at``; episodes count from 0 in the order of
    the dataset, success is 1 or 0 (or true, false, yes, no). Raises DatasetError that names file and line.
    """
    if not path.is_file():
        raise DatasetError(
            f"--labels {path} is no file; name one with the columns episode,success, or solved or failed"
        )
    labels: dict[int, tuple[bool, int | None]] = {}
    with reading(path), open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        named = {"episode", "success"} <= set(rows.fieldnames or [])
        require(named, path, f"its first line is {rows.fieldnames}, not episode,success or episode,success,solved_at")
        for row in rows:
            word, when = (row["success"] or "").strip().lower(), (row.get("solved_at") or "").strip()
            if word not in _WORDS or not (row["episode"] or "").strip().isdecimal() or not (when or "1").isdecimal():
                raise DatasetError(f"{path}, line {rows.line_num}: {row} is no label, as 3,1 or 3,1,25; correct it")
            if (episode := int(row["episode"])) in labels:
                raise DatasetError(f"{path}, line {rows.line_num}: episode {episode} has a label already; correct it")
            labels[episode] = _WORDS[word], int(when) if when else None
    return labels


def write_labels(path: Path, labels: Mapping[int, tuple[bool, int | None]]) -> None:
    """The file that :func:`read_labels` reads, in the order of ``labels``; it appears or changes as a whole."""
    rows = [f"{episode},{int(success)},{when or ''}\n" for episode, (success, when) in labels.items()]
    write_atomic(path, "".join(["episode,success,solved_at\n", *rows]).encode())


_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _labelled(labels: dict[int, tuple[bool, int | None]], episode: int, steps: int, path: Path) -> int:
    """``solved_at`` of an episode; a solved one without it counts as solved by its last action."""
    if episode not in labels:
        raise DatasetError(f"{path} has no label for episode {episode}; add a line")
    success, when = labels[episode]
    if when is not None and success and not 1 <= when <= steps:
        raise DatasetError(f"{path}: episode {episode} has {steps} actions, so solved_at cannot be {when}; correct it")
    return (when or steps) if success else -1
