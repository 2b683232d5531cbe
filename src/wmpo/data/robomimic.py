"""Episodes of robomimic, MimicGen, robosuite and LIBERO: one HDF5 file with a group for each demonstration.

Layout: ``data/demo_N`` holds ``actions`` [S,A], ``obs/CAMERA`` uint8 [S,h,w,3] (the frame *before* each action),
``rewards`` [S] and perhaps ``next_obs``, from which the last frame comes; without it the last action is dropped.
robomimic's ``dones`` are not read as success: they may also mark the end of a failed episode. Links to other files and
datasets stored outside the file are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from wmpo.data.damage import DatasetError, choose, choose_all, reading, require
from wmpo.data.episode import Episode
from wmpo.data.pictures import side_by_side, view_names
from wmpo.data.source import MOST_FPS, Keys, Source, solved_rows, to_episode

Group = Any
"""An ``h5py.Group``; h5py is imported only where a file is opened."""

LARGEST = 8 * 2**30
"""Bytes of one array: a damaged header can claim any size."""


def open_robomimic(path: Path, keys: Keys) -> Source:
    """Raises DatasetError that names the file, and ValueError when h5py is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise ValueError("HDF5 files need h5py; install it with: pip install 'wmpo[data]'") from error
    with reading(path), h5py.File(path, "r") as file:
        demos = _demos(file, keys.split, path)
        data = _group(file, "data", path)
        facts, first = _facts(data), _group(data, demos[0], path)
        success = keys.success or "rewards"
        labelled = keys.success is not None or success in first
        cameras = choose_all(_cameras(first, path), keys.camera, "cameras", path, "--camera")
    chosen = replace(keys, camera=cameras, action=keys.action or "actions", success=success if labelled else None)
    fps = facts.get("env_kwargs", {}).get("control_freq")
    return Source(
        path=path,
        kind="robomimic HDF5",
        fps=int(fps) if type(fps) in (int, float) and 0 < fps <= MOST_FPS and fps == int(fps) else None,
        labelled=labelled,
        episodes=_episodes(path, demos, chosen, _sentence(facts)),
    )


def _episodes(path: Path, demos: list[str], keys: Keys, sentence: str) -> Iterator[Episode]:
    import h5py

    assert keys.action is not None
    for number, name in enumerate(demos):
        where = path / "data" / name
        with reading(where), h5py.File(path, "r") as file:
            demo = _group(_group(file, "data", path), name, where)
            views = [_frames(demo, name, where) for name in keys.camera]
            parts = [_array(demo, key, where) for key in keys.action.split(",")]
            solved = None if keys.success is None else _array(demo, keys.success, where)
        rows = {len(part) for part in parts}
        require(len(rows) == 1, where, f"the actions {keys.action} have the lengths {sorted(rows)}")
        actions = np.concatenate([_flat(part) for part in parts], axis=1)
        labels = None if solved is None else solved_rows(solved, str(keys.success), where)
        frames = side_by_side(views, keys.camera, keys.image_size, where)
        yield to_episode(
            frames, actions, labels, instruction=sentence, number=number, path=where, views=view_names(keys.camera)
        )


def _frames(demo: Group, camera: str, path: Path) -> UInt8[np.ndarray, "L h w 3"]:
    frames = _array(_group(demo, "obs", path), camera, path)
    require(frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3, path, f"{camera!r} is no picture")
    if "next_obs" in demo and camera in (after := _group(demo, "next_obs", path)) and len(frames):
        following = _array(after, camera, path)
        require(following.shape == frames.shape, path, f"next_obs/{camera} differs from obs/{camera} in shape")
        frames = np.concatenate([frames, following[-1:]])
    return frames


def _demos(file: Group, split: str | None, path: Path) -> list[str]:
    """Names of the demonstrations in the order of their numbers."""
    require("data" in file, path, "it has no group 'data', so it is not of robomimic")
    names = list(_group(file, "data", path))
    if split is not None:
        masks = _group(file, "mask", path) if "mask" in file else {}
        chosen = _array(masks, choose(list(masks), split, "filter keys", path, "--split"), path)
        wanted = {name.decode() if isinstance(name, bytes) else str(name) for name in chosen.tolist()}
        missing = sorted(wanted - set(names))
        require(not missing, path, f"mask/{split} names demonstrations that are not there: {missing[:3]}")
        names = [name for name in names if name in wanted]
    require(bool(names), path, "it holds no demonstrations")
    return sorted(names, key=lambda name: (int(re.sub(r"\D", "", name) or 0), name))


def _cameras(demo: Group, path: Path) -> list[str]:
    require("obs" in demo, path, "it has no group 'obs'; make observations first (robomimic's dataset_states_to_obs)")
    group = _group(demo, "obs", path)
    shapes: dict[str, tuple[int, ...]] = {n: getattr(_member(group, n, path), "shape", ()) for n in group}
    return [name for name, shape in shapes.items() if len(shape) == 4 and shape[3] == 3]


def _group(parent: Group, name: str, path: Path) -> Group:
    import h5py

    found = _member(parent, name, path)
    require(isinstance(found, h5py.Group), path, f"{name!r} is not a group")
    return found


def _array(parent: Group, name: str, path: Path) -> np.ndarray:
    """A dataset as it is in this file, whole."""
    import h5py

    found = _member(parent, name, path)
    require(isinstance(found, h5py.Dataset) and found.ndim > 0, path, f"{name!r} is not an array")
    require(not found.is_virtual and not found.external, path, f"{name!r} is stored in another file")
    require(found.nbytes <= LARGEST, path, f"{name!r} claims {found.nbytes} bytes")
    return np.asarray(found[()])


def _flat(values: np.ndarray) -> Shaped[np.ndarray, "R A"]:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _member(parent: Group, name: str, path: Path) -> Any:
    """By one plain name at a time, and never through a link."""
    import h5py

    if name not in list(parent):
        raise DatasetError(f"{path} has no {name!r}, but {sorted(parent)}; choose another name, or copy the file again")
    link = parent.get(name, getlink=True)
    require(isinstance(link, h5py.HardLink), path, f"{name!r} is a link to elsewhere")
    return parent[name]


def _facts(data: Group) -> dict[str, Any]:
    """What the file says about its environment; nothing where it says nothing that can be read."""
    facts: dict[str, Any] = {}
    for name in ("problem_info", "env_args"):
        try:
            found = json.loads(data.attrs.get(name, "{}"))
        except (ValueError, TypeError):
            continue
        facts |= found if isinstance(found, dict) else {}
    if not isinstance(facts.get("env_kwargs", {}), dict):
        del facts["env_kwargs"]
    return facts


def _sentence(facts: dict[str, Any]) -> str:
    """The instruction, as far as the file has one; else the task's name in words: NutAssemblySquare, Stack_D0."""
    spoken = facts.get("language_instruction")
    if isinstance(spoken, list):
        spoken = "".join(map(str, spoken))
    if isinstance(spoken, str) and spoken.strip():
        return spoken.strip().strip('"')
    name = re.sub(r"_D\d+$", "", str(facts.get("env_name", "")))
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()
