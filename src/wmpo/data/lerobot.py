"""Episodes on disk as a LeRobot v3.0 dataset: an appendable, crash-safe writer, and a reader for any such dataset.

We write lossless PNG inside parquet (*image mode*) and read image and video mode, also of LeRobot v2.0 and v2.1.
Unlike LeRobot's own recordings, an episode of S actions has S + 1 rows, as a world model needs the last frame; that row
repeats the last action and has ``action_is_pad``. Pictures of several cameras, which stand side by side in our frames,
are a feature each, in that order. An append makes a new pair of files; ``meta/info.json``, replaced last, is the
commit: what it does not count does not exist. One writer at a time. Nothing in a dataset can run code: no pickle, no
format strings from files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from wmpo.checkpoint import write_atomic
from wmpo.data.damage import DatasetError, choose, choose_all, reading, require
from wmpo.data.episode import Episode
from wmpo.data.pictures import decode, side_by_side, view_names
from wmpo.data.source import MOST_FPS, Keys, Source, solved_rows

_CAMERA = "observation.images."
FILES_PER_CHUNK = 1000
_CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA_PATH, _EPISODES_PATH = (f"{folder}/{_CHUNK_FILE}.parquet" for folder in ("data", "meta/episodes"))
_VIDEO_PATH = f"videos/{{video_key}}/{_CHUNK_FILE}.mp4"
_OLD_DATA_PATH = "data/chunk-{chunk_index:03d}/episode_{file_index:06d}.parquet"
_OLD_VIDEO_PATH = "videos/chunk-{chunk_index:03d}/{video_key}/episode_{file_index:06d}.mp4"
_SCALARS = dict.fromkeys(("next.success", "next.done", "action_is_pad"), "bool") | {"timestamp": "float32"}
_SCALARS |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
_COUNTS = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_to_index")


def append_episodes(root: Path, episodes: Sequence[Episode], *, fps: int) -> None:
    """Adds the episodes in one commit; a process killed in between leaves the dataset as it was.

    Actions are stored as float32. Raises DatasetError when the episodes do not fit each other or the dataset (size of
    pictures and actions, fps), and OSError, with the path, when the disk is full or the folder cannot be written.
    """
    if not episodes:
        return
    features, schema = _columns(episodes)
    info = _read_info(root) if (root / "meta/info.json").exists() else None
    if info and info["codebase_version"] != "v3.0":
        raise DatasetError(f"{root} is of LeRobot {info['codebase_version']}; append to a new folder")
    if info and ([*info["features"].items()], info["fps"]) != ([*features.items()], fps):
        raise DatasetError(f"{root} has other cameras, picture size, action size or fps; append to a new folder")
    old = _episode_rows(root, info) if info else []
    number = old[-1]["data/chunk_index"] * FILES_PER_CHUNK + old[-1]["data/file_index"] + 1 if old else 0
    place = {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}
    new = _new_rows(episodes, old, place)
    rows = old + new
    tasks = list(dict.fromkeys(row["tasks"][0] for row in rows))
    parts = [_frames(e, row, tasks, fps) for e, row in zip(episodes, new, strict=True)]
    columns = {key: [value for part in parts for value in part[key]] for key in features}
    with reading(root / "meta/episodes"):
        stats = {key: _total_stats(rows, key) for key in ("action", *_cameras(episodes[0].views))}
    _write(root / _DATA_PATH.format(**place), pa.table(columns, schema=schema))
    _write(root / _EPISODES_PATH.format(**place), pa.Table.from_pylist(new))
    _write(root / "meta/stats.json", stats)
    # LeRobot looks a task up in the index of a pandas table, which parquet keeps as this column and this metadata.
    name = "__index_level_0__"
    kind = {"name": None, "field_name": name, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    index = json.dumps({"index_columns": [name], "column_indexes": [], "columns": [kind], "pandas_version": "2.0.0"})
    table = pa.table({"task_index": range(len(tasks)), name: tasks}).replace_schema_metadata({"pandas": index})
    _write(root / "meta/tasks.parquet", table)
    _write(root / "meta/info.json", {
        "codebase_version": "v3.0", "robot_type": "unknown", "fps": fps, "splits": {"train": f"0:{len(rows)}"},
        "total_episodes": len(rows), "total_frames": new[-1]["dataset_to_index"], "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
        "data_path": _DATA_PATH, "video_path": None, "features": features,
    })  # fmt: skip


def _cameras(views: Sequence[str]) -> list[str]:
    return [_CAMERA + view for view in views]


def _columns(episodes: Sequence[Episode]) -> tuple[dict[str, Any], pa.Schema]:
    """The columns as LeRobot and as arrow describe them. Raises DatasetError when the episodes cannot share them."""
    shapes = {(e.frames.shape[1:], e.actions.shape[1:], e.frames.dtype.name, e.views) for e in episodes}
    (picture, action, dtype, views), *others = shapes
    if others or picture[2:] != (3,) or len(action) != 1 or dtype != "uint8":
        raise DatasetError(
            f"episodes must share one shape and their cameras, frames uint8 [L,h,w,3] and actions [S,A]; got {shapes}"
        )
    if bad := [e.episode_id for e in episodes if not e.actions.size or np.abs(e.actions).max() > 3e38]:
        raise DatasetError(f"episodes {bad} have no action, or one too large for float32; leave them out")
    shape = [picture[0], picture[1] // len(views), 3]
    features: dict[str, Any] = {
        key: {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]} for key in _cameras(views)
    }
    features["action"] = {"dtype": "float32", "shape": list(action), "names": None}
    features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in _SCALARS.items()}
    vector = pa.list_(pa.float32(), action[0]) if action != (1,) else pa.float32()  # LeRobot's rule for one number
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types: dict[str, pa.DataType] = dict.fromkeys(_cameras(views), image) | {"action": vector}
    types |= {name: pa.type_for_alias(kind) for name, kind in _SCALARS.items()}
    # The metadata is for the `datasets` library, which would else show pictures as bytes.
    images = {key: {"_type": "Image"} for key in _cameras(views)}
    return features, pa.schema(types, {"huggingface": json.dumps({"info": {"features": images}})})


def _new_rows(episodes: Sequence[Episode], old: list[dict[str, Any]], place: dict[str, int]) -> list[dict[str, Any]]:
    """The rows of meta/episodes, with the statistics that LeRobot's policies normalise by."""
    rows: list[dict[str, Any]] = []
    end = old[-1]["dataset_to_index"] if old else 0
    for e in episodes:
        begin, end = end, end + len(e.frames)
        row: dict[str, Any] = {
            "episode_index": len(old) + len(rows), "tasks": [e.instruction], "length": len(e.frames),
            **{f"{folder}/{name}": value for folder in ("data", "meta/episodes") for name, value in place.items()},
            "dataset_from_index": begin, "dataset_to_index": end, "solved_at": int(e.solved_at),
            "start": int(e.start), "episode_id": int(e.episode_id), "policy": e.policy,
            "stats/action/count": [len(e.actions)],
            **{f"stats/{key}/count": [len(e.frames)] for key in _cameras(e.views)},
        }  # fmt: skip
        pixels = ((key, view.reshape(-1, 3, 1, 1) / 255) for key, view in _views(e))
        for key, values in (("action", e.actions.astype(float)), *pixels):
            row |= {f"stats/{key}/{s}": getattr(values, s)(axis=0).tolist() for s in ("min", "max", "mean", "std")}
        rows.append(row)
    return rows


def _views(episode: Episode) -> Iterator[tuple[str, UInt8[np.ndarray, "L h w 3"]]]:
    """Each camera's column and pictures."""
    return zip(_cameras(episode.views), np.split(episode.frames, len(episode.views), axis=2), strict=True)


def _png(frames: UInt8[np.ndarray, "L h w 3"]) -> list[dict[str, Any]]:
    files = []
    for i, pixels in enumerate(frames):
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, format="png", compress_level=1)  # LeRobot's level
        files.append({"bytes": picture.getvalue(), "path": f"frame-{i:06d}.png"})
    return files


def _frames(episode: Episode, row: dict[str, Any], tasks: list[str], fps: int) -> dict[str, Sequence[Any]]:
    """The columns of one episode, S + 1 long. ``next.*`` tells what the action of the row leads to."""
    frame = np.arange(row["length"])
    # The last action once more, as LeRobot pads chunks that reach beyond the end; zeros would send joints somewhere.
    actions = np.concatenate([episode.actions, episode.actions[-1:]]).astype(np.float32)  # (S + 1, A)
    return {
        **{key: _png(view) for key, view in _views(episode)},
        "action": list(actions) if actions.shape[1] > 1 else actions[:, 0],
        "next.success": (frame + 1 >= episode.solved_at) & episode.success, "next.done": frame >= len(frame) - 2,
        "action_is_pad": frame == len(frame) - 1, "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame, "episode_index": np.full_like(frame, row["episode_index"]),
        "index": row["dataset_from_index"] + frame, "task_index": np.full_like(frame, tasks.index(row["tasks"][0])),
    }  # fmt: skip


def _total_stats(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """The statistics of all frames from those of the episodes, so that an append need not read old frames."""
    names = ("min", "max", "mean", "std", "count")
    low, high, mean, std, count = (np.array([row[f"stats/{key}/{name}"] for row in rows]) for name in names)
    center = np.average(mean, axis=0, weights=count[:, 0])
    spread = np.sqrt(np.average(std**2 + (mean - center) ** 2, axis=0, weights=count[:, 0]))
    whole = (low.min(axis=0), high.max(axis=0), center, spread, count.sum(axis=0))
    return {name: value.tolist() for name, value in zip(names, whole, strict=True)}


def _write(path: Path, content: pa.Table | dict[str, Any]) -> None:
    buffer = io.BytesIO()
    if isinstance(content, pa.Table):
        pq.write_table(content, buffer, write_page_checksum=True)
    else:
        buffer.write(json.dumps(content, indent=4).encode())
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:  # a failed write on a full disk does not say where
        raise OSError(error.errno, error.strerror, str(path)) from error


def num_episodes(root: Path) -> int:
    """How many episodes the dataset holds; 0 when there is none yet. Raises DatasetError when info.json is damaged."""
    return _read_info(root)["total_episodes"] if (root / "meta/info.json").exists() else 0


def read_episodes(root: Path, *, camera: Sequence[str] = ()) -> list[Episode]:
    """All episodes, frames decoded to uint8 [L,h,w,3], from our own or any other LeRobot folder (v2.0, v2.1, v3.0).

    ``camera``: keys of the pictures, which then stand side by side; without it all of our own, and the only one of
    another program. In a dataset of another program an episode
    loses its last action, as no frame follows it; ``solved_at`` is from ``next.success`` (success by that action counts
    at the last frame) or -1, ``start`` -1, ``policy`` "unknown". Raises DatasetError that names the file.
    """
    return list(open_lerobot(root, Keys(camera=tuple(camera))).episodes)


@dataclass(frozen=True, slots=True)
class Listed:
    """What ``meta/episodes`` says of one of our episodes."""

    num_actions: int
    solved_at: int
    policy: str
    instruction: str
    start: int

    @property
    def success(self) -> bool:
        return self.solved_at > 0


def list_episodes(root: Path) -> list[Listed]:
    """Our own episodes without their frames, in order; none where there is no dataset yet. Raises DatasetError for a
    dataset of another program."""
    rows = _episode_rows(root, _read_info(root)) if (root / "meta/info.json").exists() else []
    if any("policy" not in row for row in rows):
        raise DatasetError(f"{root} is a dataset of another program; wmpo data import makes one of ours of it")
    with reading(root / "meta/episodes"):
        return [Listed(r["length"] - 1, r["solved_at"], r["policy"], r["tasks"][0], r["start"]) for r in rows]


def open_lerobot(root: Path, keys: Keys, *, first: int = 0) -> Source:
    """The same, with other keys, without all episodes in memory at once and without those before number ``first``."""
    info = _read_info(root)
    action, success = keys.action or "action", keys.success or "next.success"
    for names, flag in ((keys.action, "--action"), (keys.success, "--success")):
        for key in names.split(",") if names is not None else ():
            choose([*info["features"]], key, "features", root, flag)
    rows = _episode_rows(root, info)
    ours = any("policy" in row for row in rows[:1])  # whose cameras have an order already
    cameras = choose_all(info["cameras"], keys.camera or (info["cameras"] if ours else ()), "cameras", root, "--camera")
    if keys.success is not None:  # what the user names counts more than what we once wrote
        rows = [{name: value for name, value in row.items() if name != "solved_at"} for row in rows]
    return Source(
        path=root,
        kind=f"LeRobot {info['codebase_version']}",
        fps=int(info["fps"]) if info["fps"] == int(info["fps"]) else None,
        labelled=success in info["features"] or any("solved_at" in row for row in rows[:1]),
        episodes=_episodes(root, info, rows[first:], replace(keys, camera=cameras, action=action, success=success)),
    )


def _episodes(root: Path, info: dict[str, Any], rows: list[dict[str, Any]], keys: Keys) -> Iterator[Episode]:
    action, success = str(keys.action), str(keys.success)
    tables = dict[Path, pa.Table]()
    for row in rows:
        i = row["episode_index"]
        path = root / info["data"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        if path not in tables:  # only the latest is kept: the episodes of a file follow each other
            tables = {path: _table(path, {*keys.camera, *action.split(","), success, *_SCALARS})}
        with reading(path):
            part = tables[path].filter(pc.field("episode_index") == i)
        order = _column(part, "frame_index", "i", path).tolist()
        in_order = len(order) == row["length"] and order == list(range(len(order)))
        require(in_order, path, f"{len(order)} rows are not the {row['length']} frames of episode {i}")
        is_video = [info["features"][key]["dtype"] == "video" for key in keys.camera]
        views = [
            _video(root, info, row, key) if video else _pictures(part, key, path)
            for key, video in zip(keys.camera, is_video, strict=True)
        ]
        yield _episode(row, part, side_by_side(views, keys.camera, keys.image_size, path), path, keys)


def _episode(
    row: dict[str, Any], part: pa.Table, frames: UInt8[np.ndarray, "L h w 3"], path: Path, keys: Keys
) -> Episode:
    action, success = str(keys.action), str(keys.success)
    no = np.zeros(len(part), dtype=bool)
    pad = _column(part, "action_is_pad", "b", path) if "action_is_pad" in part.column_names else no
    solved = no
    if success in part.column_names:
        labels = _column(part, success, "b" if success == "next.success" else "bif", path)
        solved = solved_rows(labels, success, path)
    columns = [_column(part, name, "f", path).reshape(len(part), -1) for name in action.split(",")]
    actions = np.concatenate(columns, axis=1).astype(np.float32)
    steps = min(len(part) - 1, int((~pad).sum()))
    require(steps > 0 and actions.size > 0 and not pad[:steps].any(), path, "no action, or one after 'action_is_pad'")
    first = min(int(solved.argmax()) + 1, steps) if solved.any() else -1
    ours = {"solved_at": first, "start": -1, "episode_id": row["episode_index"], "policy": "unknown"}
    for name in ours.keys() & row.keys():
        require(type(row[name]) is type(ours[name]), path, f"meta/episodes says {name} = {row[name]!r}")
        ours[name] = row[name]
    with reading(path):
        return Episode(
            frames=frames[: steps + 1], actions=actions[:steps], instruction=row["tasks"][0],
            views=view_names(keys.camera), **ours,
        )  # fmt: skip


def _pictures(part: pa.Table, key: str, path: Path) -> UInt8[np.ndarray, "L h w 3"]:
    with reading(path):
        found = part[key].to_pylist()
        require(all(isinstance(p, dict) and p.get("bytes") for p in found), path, f"no pictures inside column {key!r}")
        return decode([p["bytes"] for p in found])


def _video(root: Path, info: dict[str, Any], row: dict[str, Any], key: str) -> UInt8[np.ndarray, "L h w 3"]:
    """The frames of one episode, from a file that may hold many; frame i is the one at from_timestamp + i / fps."""
    fps, frames = info["fps"], list[np.ndarray]()
    with reading(root / "meta/episodes"):
        place = {name: int(row[f"videos/{key}/{name}"]) for name in ("chunk_index", "file_index")}
        begin, end = (float(row[f"videos/{key}/{name}"]) for name in ("from_timestamp", "to_timestamp"))
    path = root / info["video"].format(video_key=key, **place)
    # An open file and a fixed format, because a name or a playlist could make the decoder fetch something else.
    with reading(path), open(path, "rb") as content, av.open(content, "r", format="mp4") as container:
        stream = container.streams.video[0]
        container.seek(max(0, int((begin - 0.5 / fps) / stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            position = (frame.time - begin) * fps
            if position > min(len(frames) + 0.5, (end - begin) * fps) or len(frames) == row["length"]:
                break
            if position > -0.5:  # a seek lands on the key frame before
                frames.append(frame.to_ndarray(format="rgb24"))
        require(len(frames) == row["length"], path, f"{len(frames)} of the frames of episode {row['episode_index']}")
        return np.stack(frames)


def _read_info(root: Path) -> dict[str, Any]:
    """meta/info.json, checked, and besides the names of the ``cameras`` and the paths of ``data`` and ``video``."""
    path = root / "meta/info.json"
    with reading(path):
        info = json.loads(path.read_bytes())
        version, fps, total, features = (info[n] for n in ("codebase_version", "fps", "total_episodes", "features"))
        known = version in ("v2.0", "v2.1", "v3.0")
        require(known, path, f"version {version!r} is not 'v2.0', 'v2.1' or 'v3.0'; convert it with LeRobot's script")
        counts = type(fps) in (int, float) and 0 < fps <= MOST_FPS and type(total) is int and total >= 0
        require(counts, path, f"fps {fps!r} or total_episodes {total!r} is not a sensible number")
        # Paths that lead elsewhere are refused: LeRobot itself writes only these, and no slash in a name.
        info["data"], info["video"] = ours = (
            (_DATA_PATH, _VIDEO_PATH) if version == "v3.0" else (_OLD_DATA_PATH, _OLD_VIDEO_PATH)
        )
        names = ("chunk_index", "file_index") if version == "v3.0" else ("episode_chunk", "episode_index")
        data, video = (p.replace("chunk_index", names[0]).replace("file_index", names[1]) for p in ours)
        require(info["data_path"] == data, path, f"data_path is not {data!r}")
        require(info["video_path"] in (video, None), path, f"video_path is not {video!r}")
        info["cameras"] = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
        require(not set("".join(info["cameras"])) & set("/\\\0"), path, "a camera has a slash in its name")
    return info


def _episode_rows(root: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of meta/episodes that info.json counts."""
    rows: list[dict[str, Any]] = []
    total, is_new = info["total_episodes"], info["codebase_version"] == "v3.0"
    listed = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")) if is_new else [_old_list(root)]
    for path in listed:
        if len(rows) >= total:
            break  # the rest is of an append that was killed
        with reading(path):
            found = _table(path).to_pylist() if is_new else _old_rows(root, info)
        for row in found:
            wrong = [name for name in _COUNTS if type(row.get(name)) is not int]
            require(not wrong, path, f"columns {wrong} are missing or of another type")
            has_task = type(row.get("tasks")) is list and [type(task) for task in row["tasks"][:1]] == [str]
            require(row["length"] >= 2 and has_task, path, f"episode {row['episode_index']} has no action or no task")
        rows += found
    in_order = all(row["episode_index"] == i for i, row in enumerate(rows))
    where = root / "meta/episodes" if is_new else _old_list(root)
    require(in_order and len(rows) >= total, where, f"not the {total} episodes of meta/info.json")
    return rows[:total]


def _old_list(root: Path) -> Path:
    return root / "meta/episodes.jsonl"


def _old_rows(root: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The list of v2.0 and v2.1, which have a file for each episode, as rows of v3.0."""
    rows, end = [], 0
    for line in _old_list(root).read_text().splitlines():
        row = {key: value for key, value in json.loads(line).items() if key in ("episode_index", "tasks", "length")}
        index, end = row["episode_index"], end + row["length"]
        place = {"chunk_index": index // info["chunks_size"], "file_index": index}
        span = {"from_timestamp": 0.0, "to_timestamp": row["length"] / info["fps"]}
        row |= {f"data/{name}": value for name, value in place.items()} | {"dataset_to_index": end}
        for camera in info["cameras"]:
            row |= {f"videos/{camera}/{name}": value for name, value in (place | span).items()}
        rows.append(row)
    return rows


def _table(path: Path, wanted: set[str] | None = None) -> pa.Table:
    with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=[name for name in file.schema_arrow.names if not wanted or name in wanted])


def _column(part: pa.Table, name: str, kinds: str, path: Path) -> np.ndarray:
    """A column as [L] or [L,A]; ``kinds`` are NumPy's letters for its type, which gaps would turn into objects."""
    with reading(path):
        values = np.array(part[name].to_pylist())
    require(values.dtype.kind in kinds or not len(part), path, f"column {name!r} holds {part[name].type}, or has gaps")
    return values
