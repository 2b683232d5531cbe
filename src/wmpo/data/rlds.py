"""Episodes in the RLDS layout as TensorFlow Datasets stores them (Open X-Embodiment, DROID, ...), without TensorFlow.

A version folder holds ``features.json``, which says what each name means, and one record an episode in
``NAME-SPLIT.tfrecord-00000-of-00004``. Names are paths: ``steps/observation/image``, ``steps/action``. The action of a
step with ``is_last`` is meaningless, so an episode of L steps has L - 1 actions. Shards are found by their names in the
folder, never by what a file says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from wmpo.data.damage import DatasetError, choose, choose_all, reading, require
from wmpo.data.episode import Episode
from wmpo.data.pictures import decode, side_by_side, view_names
from wmpo.data.source import Keys, Source, solved_rows, to_episode
from wmpo.data.tfrecord import Values, parse_example, read_records

_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
_DEPTH = 20  # of nested features; a deeper file is no schema


@dataclass(frozen=True, slots=True)
class Feature:
    """What ``features.json`` says of a name: ``image``, ``tensor`` or ``text``, and the shape of one step."""

    kind: str
    shape: tuple[int, ...]
    is_raw: bool
    "Whether its numbers are stored as they are, not packed or compressed in bytes."


def open_rlds(root: Path, keys: Keys) -> Source:
    """Raises DatasetError that names the file."""
    path = root / "features.json"
    with reading(path):
        features = dict(_flatten(json.loads(path.read_bytes()), "", 0))
    require(any(name.startswith("steps/") for name in features), path, "it describes no steps, so it is not of RLDS")
    coloured = {n: f for n, f in features.items() if f.shape[2:] == (3,) or (f.kind == "image" and not f.shape)}
    pictures = [n for n, f in coloured.items() if f.kind in ("image", "tensor")]  # a depth map has another last size
    cameras = choose_all([n for n in pictures if n.startswith("steps/")], keys.camera, "cameras", root, "--camera")
    for name in (keys.action or "steps/action").split(","):
        numbers = [n for n, f in features.items() if n.startswith("steps/") and f.kind == "tensor" and f.is_raw]
        choose(numbers, name, "numbers", root, "--action")
    if keys.success is not None:
        choose([*features], keys.success, "features", root, "--success")
    success = keys.success or ("steps/reward" if "steps/reward" in features else None)
    texts = [n for n, f in features.items() if f.kind == "text" and re.search("instruction|language", n)]
    chosen = replace(keys, camera=cameras, action=keys.action or "steps/action", success=success)
    shards = _shards(root, keys.split)
    return Source(
        path=root, kind="RLDS records", fps=None, labelled=success is not None,
        episodes=_episodes(shards, features, chosen, min(texts, key=len, default=None)),
    )  # fmt: skip


def _shards(root: Path, split: str | None) -> list[Path]:
    """The files of the split, in order, all of them. Raises DatasetError when one is missing."""
    found = {path: match for path in root.iterdir() if (match := _SHARD.fullmatch(path.name))}
    if not found:
        raise DatasetError(f"{root} holds no NAME-SPLIT.tfrecord-00000-of-00001 files; download the dataset again")
    splits = sorted({match["split"] for match in found.values()})
    chosen = choose(splits, split, "splits", root, "--split")
    shards = {int(match["number"]): path for path, match in found.items() if match["split"] == chosen}
    count = int(next(match["count"] for match in found.values() if match["split"] == chosen))
    missing = sorted(set(range(count)) - set(shards))
    require(not missing and len(shards) == count, root, f"of split {chosen} the shards {missing[:5]} are missing")
    return [shards[number] for number in sorted(shards)]


def _flatten(node: Any, prefix: str, depth: int) -> Iterator[tuple[str, Feature]]:
    """Names and features of a schema; kinds that no importer needs are left out."""
    if depth > _DEPTH or not isinstance(node, dict):
        raise ValueError("no schema of TensorFlow Datasets")
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _flatten(child, f"{prefix}/{name}" if prefix else name, depth + 1)
    elif "sequence" in node and prefix == "steps":
        yield from _flatten(node["sequence"]["feature"], prefix, depth + 1)
    for kind in ("image", "tensor", "text"):
        if kind in node:
            about = node[kind] or {}
            shape = tuple(int(size) for size in about.get("shape", {}).get("dimensions", []))
            is_text = kind == "tensor" and about.get("dtype") in ("string", "object")
            is_raw = about.get("encoding", "none") in ("none", "ENCODING_UNSPECIFIED")
            yield prefix, Feature("text" if is_text else kind, shape, is_raw)


def _episodes(shards: list[Path], features: dict[str, Feature], keys: Keys, sentence: str | None) -> Iterator[Episode]:
    number = 0
    for path in shards:
        with reading(path):
            for record in read_records(path):
                yield _episode(parse_example(record), features, keys, sentence, number, path)
                number += 1


def _episode(
    example: dict[str, Values], features: dict[str, Feature], keys: Keys, sentence: str | None, number: int, path: Path
) -> Episode:
    assert keys.action is not None
    views = [_pictures(_values(example, name, path), features[name], path) for name in keys.camera]
    frames = side_by_side(views, keys.camera, keys.image_size, path)
    parts = [_numbers(_values(example, name, path), features[name], len(frames), path, name)
             for name in keys.action.split(",")]  # fmt: skip
    actions = np.concatenate(parts, axis=1)
    solved = None
    if keys.success is not None:
        flags = np.asarray(_values(example, keys.success, path))
        require(flags.dtype.kind in "fi" and len(flags) > 0, path, f"{keys.success!r} holds no numbers")
        solved = solved_rows(flags, keys.success, path)
        if not keys.success.startswith("steps/"):  # one flag for the whole episode: solved by its last action
            solved = np.arange(len(frames)) >= np.where(solved[0], len(frames) - 2, len(frames))
    text = _values(example, sentence, path) if sentence is not None else []
    instruction = text[0].decode() if isinstance(text, list) and text else ""
    return to_episode(
        frames, actions, solved, instruction=instruction, number=number, path=path, views=view_names(keys.camera)
    )


def _values(example: dict[str, Values], name: str, path: Path) -> Values:
    require(name in example, path, f"an episode has no {name!r}, which features.json promises")
    return example[name]


def _pictures(values: Values, feature: Feature, path: Path) -> UInt8[np.ndarray, "L h w 3"]:
    if isinstance(values, list):
        require(len(values) > 0, path, "an episode of length 0")
        return decode(values)
    h, w, _ = feature.shape
    require(h > 0 and w > 0 and values.dtype == np.int64, path, "pictures that are neither PNG, JPEG nor numbers")
    require(bool(((values >= 0) & (values <= 255)).all()), path, "pictures with numbers outside 0..255")
    return values.astype(np.uint8).reshape(-1, h, w, 3)


def _numbers(values: Values, feature: Feature, rows: int, path: Path, name: str) -> Shaped[np.ndarray, "R A"]:
    """A number or vector for each step."""
    size = int(np.prod(feature.shape, dtype=np.int64))
    require(isinstance(values, np.ndarray) and size > 0, path, f"{name!r} holds no numbers of a fixed size")
    found = np.asarray(values)
    require(len(found) == rows * size, path, f"{name!r} has {len(found)} numbers for {rows} steps of {size}")
    return found.reshape(rows, size)
