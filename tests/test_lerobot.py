"""LeRobot v3.0 folders: what we write comes back bit for bit, survives a crash, and bad folders end in one sentence."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wmpo.data import lerobot
from wmpo.data.episode import Episode
from wmpo.data.lerobot import DatasetError, append_episodes, num_episodes, read_episodes

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"
CAMERA, WRIST = "observation.images.main", "observation.images.wrist"
EXTRAS = ("solved_at", "start", "episode_id", "policy")


def episode(number: int, steps: int = 4, dims: int = 3, height: int = 10) -> Episode:
    generator = np.random.default_rng(number)
    return Episode(
        frames=generator.integers(0, 256, (steps + 1, height, 12, 3), dtype=np.uint8),
        actions=generator.normal(size=(steps, dims)).astype(np.float32),
        solved_at=steps - 1 if number % 2 else -1,
        instruction=f"push the {'red' if number % 3 else 'grün'} block",
        start=700 + number,
        episode_id=2**40 + number,
        policy="expert" if number % 2 else "base",
    )


def assert_same(found: list[Episode], expected: list[Episode]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.frames.dtype == np.uint8 and np.array_equal(a.frames, b.frames)
        assert a.actions.dtype == np.float32 and np.array_equal(a.actions, b.actions)
        names = ("solved_at", "instruction", "start", "episode_id", "policy", "views")
        assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]


def edit_info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_columns(path: Path, **changes: Any) -> None:
    """Replaces columns of a parquet file (``__`` stands for a dot or slash); None drops one."""
    table = pq.read_table(path)
    for name, values in changes.items():
        column = next(c for c in (name, name.replace("__", "."), name.replace("__", "/")) if c in table.column_names)
        place = table.column_names.index(column)
        table = table.remove_column(place) if values is None else table.set_column(place, column, values)
    pq.write_table(table, path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "dataset"
    append_episodes(root, [episode(0), episode(1)], fps=10)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of a dataset with episodes 0 and 1, to be damaged."""
    return Path(shutil.copytree(template, tmp_path / "dataset"))


# ---- what we write


@pytest.mark.parametrize("dims", [1, 4])
def test_round_trip_over_several_appends(tmp_path: Path, dims: int) -> None:
    episodes = [episode(i, steps=1 + i, dims=dims) for i in range(6)]
    assert num_episodes(tmp_path / "new") == 0
    for begin, end in ((0, 1), (1, 4), (4, 4), (4, 6)):  # also nothing at all
        append_episodes(tmp_path / "new", episodes[begin:end], fps=5)
        assert num_episodes(tmp_path / "new") == end
        assert_same(read_episodes(tmp_path / "new"), episodes[:end])
    assert len(list((tmp_path / "new/data/chunk-000").iterdir())) == 3


def test_files_follow_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot, "FILES_PER_CHUNK", 2)
    for i in range(5):
        append_episodes(tmp_path, [episode(i)], fps=5)
    assert (tmp_path / "data/chunk-002/file-000.parquet").exists()
    assert_same(read_episodes(tmp_path), [episode(i) for i in range(5)])


def test_layout_is_what_lerobot_expects(tmp_path: Path) -> None:
    episodes = [episode(0), episode(1), episode(2)]
    append_episodes(tmp_path, episodes[:2], fps=10)
    append_episodes(tmp_path, episodes[2:], fps=10)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["video_path"] is None and info["splits"] == {"train": "0:3"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (3, 15, 2, 10)

    table = pq.read_table(tmp_path / DATA)
    assert set(table.column_names) == set(info["features"])
    assert table.schema.field(CAMERA).type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert table.schema.field("action").type == pa.list_(pa.float32(), 3)
    known = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert known[CAMERA] == {"_type": "Image"}
    first = table.slice(5, 5).to_pydict()  # episode 1: solved after 3 of 4 actions
    assert first["next.success"] == [False, False, True, True, True]
    assert first["next.done"] == [False, False, False, True, True]
    assert first["action_is_pad"] == [False] * 4 + [True] and first["action"][4] == first["action"][3]
    assert first["index"] == [5, 6, 7, 8, 9] and first["task_index"] == [1] * 5
    assert first["timestamp"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert Image.open(io.BytesIO(first[CAMERA][0]["bytes"])).format == "PNG"

    tasks = pq.read_table(tmp_path / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    assert tasks["__index_level_0__"].to_pylist() == ["push the grün block", "push the red block"]


def test_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    episodes = [episode(i, steps=3 + 4 * i) for i in range(3)]
    append_episodes(tmp_path, episodes[:1], fps=10)
    append_episodes(tmp_path, episodes[1:], fps=10)
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    actions = np.concatenate([e.actions for e in episodes]).astype(float)
    pixels = np.concatenate([e.frames.reshape(-1, 3) for e in episodes]) / 255
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats["action"][name], getattr(actions, name)(axis=0), rtol=1e-6)
        assert np.shape(stats[CAMERA][name]) == (3, 1, 1)
        np.testing.assert_allclose(np.ravel(stats[CAMERA][name]), getattr(pixels, name)(axis=0), rtol=1e-6)
    assert stats["action"]["count"] == [21] and stats[CAMERA]["count"] == [24]


@pytest.mark.parametrize("other", [episode(2, dims=5), episode(2, height=11)], ids=["actions", "pictures"])
def test_other_shapes_are_refused(root: Path, other: Episode) -> None:
    with pytest.raises(DatasetError, match="append to a new folder"):
        append_episodes(root, [other], fps=10)
    with pytest.raises(DatasetError, match="share one shape"):
        append_episodes(root, [episode(2), other], fps=10)
    assert_same(read_episodes(root), [episode(0), episode(1)])


def test_unfit_episodes_are_refused(root: Path) -> None:
    with pytest.raises(DatasetError, match="fps"):
        append_episodes(root, [episode(2)], fps=11)
    with pytest.raises(DatasetError, match="no action"):
        append_episodes(root, [episode(2, steps=0)], fps=10)
    huge = episode(2)
    huge = Episode(**{n: getattr(huge, n) for n in Episode.__slots__} | {"actions": huge.actions.astype(float) * 1e39})
    with pytest.raises(DatasetError, match="too large"):
        append_episodes(root, [huge], fps=10)
    assert num_episodes(root) == 2


# ---- crashes


class Killed(BaseException):
    """Stands for ``kill -9``: nothing in the program catches it."""


@pytest.mark.parametrize("survived", range(5))
@pytest.mark.parametrize("existing", [0, 2])
def test_a_killed_append_leaves_the_old_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int, existing: int
) -> None:
    before = [episode(0), episode(1)][:existing]
    append_episodes(tmp_path, before, fps=10)
    real, calls = os.replace, iter(range(5))

    def replace(source: Path, target: Path) -> None:
        if next(calls) == survived:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace)
        append_episodes(tmp_path, [episode(5), episode(6), episode(7)], fps=10)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data/.file-001.parquet.99.tmp").write_bytes(b"half a file")
    assert num_episodes(tmp_path) == existing
    if existing:
        assert_same(read_episodes(tmp_path), before)
    append_episodes(tmp_path, [episode(8)], fps=10)  # takes the place of the orphans
    assert_same(read_episodes(tmp_path), [*before, episode(8)])
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    assert stats["action"]["count"] == [4 * (existing + 1)]
    tasks = pq.read_table(tmp_path / "meta/tasks.parquet")["__index_level_0__"].to_pylist()
    assert sorted(tasks) == sorted({e.instruction for e in [*before, episode(8)]})


def test_a_full_disk_is_an_os_error_with_the_path(root: Path) -> None:
    """A limit on file sizes fails in the middle of a write, as a full disk does."""
    large = episode(2, steps=200)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            append_episodes(root, [large], fps=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and str(caught.value.filename).startswith(str(root))
    assert sorted(p.name for p in (root / "data/chunk-000").iterdir()) == ["file-000.parquet"]
    assert_same(read_episodes(root), [episode(0), episode(1)])
    append_episodes(root, [large], fps=10)
    assert_same(read_episodes(root), [episode(0), episode(1), large])


def test_an_unwritable_folder_is_an_os_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file/dataset"):
        append_episodes(tmp_path / "file/dataset", [episode(0)], fps=10)


# ---- datasets of other programs


def as_foreign(root: Path, *dropped: str) -> None:
    """Removes what only we write, and ``dropped`` columns of the data."""
    edit_columns(root / EPISODES, **dict.fromkeys(EXTRAS))
    edit_columns(root / DATA, **dict.fromkeys(("action_is_pad", *dropped)))


def test_without_our_columns(root: Path) -> None:
    as_foreign(root)
    first, second = read_episodes(root)
    assert np.array_equal(second.frames, episode(1).frames) and np.array_equal(second.actions, episode(1).actions)
    assert (first.solved_at, second.solved_at) == (-1, 3)
    assert (second.start, second.episode_id, second.policy) == (-1, 1, "unknown")
    assert second.instruction == episode(1).instruction


def test_success_by_the_last_action_counts_at_the_last_frame(root: Path) -> None:
    as_foreign(root)
    edit_columns(root / DATA, next__success=pa.array([False] * 4 + [True] + [False] * 5))
    assert [e.solved_at for e in read_episodes(root)] == [4, -1]


def test_without_success(root: Path) -> None:
    as_foreign(root, "next.success", "next.done")
    assert [e.solved_at for e in read_episodes(root)] == [-1, -1]


def add_camera(root: Path) -> None:
    table = pq.read_table(root / DATA)
    pictures = table[CAMERA].to_pylist()[::-1]
    wrist = pa.array(pictures, type=table.schema.field(CAMERA).type)
    pq.write_table(table.append_column(WRIST, wrist), root / DATA)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features=features | {WRIST: features[CAMERA]})


def test_several_cameras_of_another_program_need_a_choice(root: Path) -> None:
    add_camera(root)
    as_foreign(root)
    for camera in ((), ("front",), (CAMERA, "front")):
        with pytest.raises(DatasetError, match=r"observation\.images\.main.*observation\.images\.wrist"):
            read_episodes(root, camera=camera)
    with pytest.raises(DatasetError, match="names one of the cameras twice"):
        read_episodes(root, camera=(WRIST, WRIST))
    for number, found in enumerate(read_episodes(root, camera=(CAMERA,))):
        assert np.array_equal(found.frames, episode(number).frames) and found.views == ("main",)
    (wrist, _) = read_episodes(root, camera=(WRIST,))
    assert np.array_equal(wrist.frames, episode(1).frames[::-1]) and wrist.views == ("wrist",)
    (both, _) = read_episodes(root, camera=(WRIST, CAMERA))
    assert np.array_equal(both.frames, np.concatenate([wrist.frames, episode(0).frames], axis=2))
    assert both.views == ("wrist", "main")


def test_several_cameras_of_ours_keep_names_order_and_every_bit(tmp_path: Path) -> None:
    """Each is a feature of its own, as LeRobot has it; appended episodes must have the same ones."""
    two = [dataclasses.replace(episode(i), views=("top", "wrist")) for i in range(3)]
    append_episodes(tmp_path, two[:2], fps=10)
    append_episodes(tmp_path, two[2:], fps=10)
    assert_same(read_episodes(tmp_path), two)
    features = json.loads((tmp_path / "meta/info.json").read_text())["features"]
    pictures = {name: f["shape"] for name, f in features.items() if f["dtype"] == "image"}
    assert pictures == {"observation.images.top": [10, 6, 3], WRIST: [10, 6, 3]}
    (wrist, *_) = read_episodes(tmp_path, camera=(WRIST,))
    assert np.array_equal(wrist.frames, two[0].frames[:, :, 6:])
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    half = np.concatenate([e.frames[:, :, 6:] for e in two]).reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(stats[WRIST]["mean"]), half.mean(axis=0), rtol=1e-6)
    for other in (episode(3), dataclasses.replace(episode(3), views=("wrist", "top"))):
        with pytest.raises(DatasetError, match="append to a new folder"):
            append_episodes(tmp_path, [other], fps=10)
    with pytest.raises(DatasetError, match="their cameras"):
        append_episodes(tmp_path / "new", [two[0], episode(1)], fps=10)


def test_names_of_cameras_are_checked() -> None:
    for views in ((), ("top", "top"), ("",), ("a/b",)):
        with pytest.raises(ValueError, match="names of cameras"):
            dataclasses.replace(episode(0), views=views)
    with pytest.raises(ValueError, match="12 pixels wide are not the pictures of 5 cameras"):
        dataclasses.replace(episode(0), views=tuple("abcde"))


def smooth(length: int, phase: int) -> np.ndarray:
    """Pictures that a video codec keeps well: (length, 48, 64, 3)."""
    y, x = np.mgrid[:48, :64]
    frames = [np.stack([x * 3 + t * 4, y * 4 + phase, 0 * x + 8 * t + phase], axis=-1) for t in range(length)]
    return np.clip(frames, 0, 255).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def video_template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """Two episodes in one video, by hand, with none of our own columns."""
    root, key, lengths, fps = tmp_path_factory.mktemp("video") / "dataset", "observation.images.top", (9, 7), 10
    frames = [smooth(length, 30 * i) for i, length in enumerate(lengths)]
    write_video(root / VIDEO, np.concatenate(frames), fps)
    rows, listed = [], []
    for i, n in enumerate(lengths):
        rows += [{
            "action": [t / 7, float(i)], "next.success": i == 1 and t >= 4, "timestamp": t / fps, "frame_index": t,
            "episode_index": i, "index": t + 9 * i, "task_index": 0,
        } for t in range(n)]  # fmt: skip
        listed.append({
            "episode_index": i, "tasks": ["push"], "length": n, "data/chunk_index": 0, "data/file_index": 0,
            "dataset_from_index": 9 * i, "dataset_to_index": 9 * i + n, f"videos/{key}/chunk_index": 0,
            f"videos/{key}/file_index": 0, f"videos/{key}/from_timestamp": 0.9 * i,
            f"videos/{key}/to_timestamp": 0.9 * i + n / fps,
        })  # fmt: skip
    for name, table in ((DATA, rows), (EPISODES, listed)):
        (root / name).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(table), root / name)
    info = {"codebase_version": "v3.0", "fps": fps, "total_episodes": 2, "data_path": lerobot._DATA_PATH,
            "video_path": lerobot._VIDEO_PATH, "features": {key: {"dtype": "video", "shape": [48, 64, 3]}}}  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info))
    return root, frames


@pytest.fixture
def video_root(video_template: tuple[Path, list[np.ndarray]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(video_template[0], tmp_path / "dataset"))


def test_video_mode(video_template: tuple[Path, list[np.ndarray]]) -> None:
    root, expected = video_template
    episodes = read_episodes(root)
    for found, frames in zip(episodes, expected, strict=True):
        assert found.frames.shape == frames.shape
        errors = ((found.frames.astype(float) - frames) ** 2).mean(axis=(1, 2, 3))
        assert (10 * np.log10(255**2 / errors)).min() > 35  # dB of every frame; its neighbour would be below 30
    assert [e.solved_at for e in episodes] == [-1, 5]
    assert episodes[0].actions.shape == (8, 2) and episodes[1].actions[2] == pytest.approx([2 / 7, 1])


# ---- bad datasets: (how to damage it, which file the message must name)

Damage = tuple[Callable[[Path], Any], str]


def truncate(name: str) -> Callable[[Path], Any]:
    """Half of the file: a copy that broke off."""
    return lambda root: os.truncate(root / name, (root / name).stat().st_size // 2)


def garble(name: str) -> Callable[[Path], Any]:
    """Changes bytes in the middle, which parquet's page checksums must notice."""

    def change(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[600:640] = bytes(40)
        (root / name).write_bytes(content)

    return change


def info(**changes: Any) -> Damage:
    return lambda root: edit_info(root, **changes), "meta/info.json"


def column(file: str, **changes: Any) -> Damage:
    return lambda root: edit_columns(root / file, **changes), file


def text(content: str) -> Damage:
    return lambda root: (root / "meta/info.json").write_text(content), "meta/info.json"


NAN = pa.array([[float("nan"), 0.0, 0.0]] * 10, type=pa.list_(pa.float32(), 3))
PNG = pa.struct({"bytes": pa.binary(), "path": pa.string()})
DAMAGES: dict[str, Damage] = {
    "no folder": (shutil.rmtree, "meta/info.json"),
    "no info": (lambda root: (root / "meta/info.json").unlink(), "meta/info.json"),
    "info cut": text('{"codebase_version": "v3.0", '),
    "info is a list": text("[]"),
    "info is deep": text("[" * 100_000),
    "info is binary": (lambda root: (root / "meta/info.json").write_bytes(b"\xff\xfe\x00"), "meta/info.json"),
    "old version": info(codebase_version="v2.1"),
    "no version": info(codebase_version=None),
    "count is text": info(total_episodes="2"),
    "count is negative": info(total_episodes=-1),
    "count too high": (lambda root: edit_info(root, total_episodes=10**12), "meta/episodes"),
    "fps zero": info(fps=0),
    "fps nan": info(fps=float("nan")),
    "features a list": info(features=[]),
    "features broken": info(features={"action": None}),
    "data outside": info(data_path="../{chunk_index}/{file_index}.parquet"),
    "data absolute": info(data_path="/etc/passwd"),
    "data a trick": info(data_path="{chunk_index.__class__}"),
    "data of another type": info(data_path=3),
    "video outside": info(video_path="../../{video_key}.mp4"),
    "camera outside": info(features={"../../../x": {"dtype": "video"}}),
    "no camera": (lambda root: edit_info(root, features={"action": {"dtype": "float32"}}), "cameras []"),
    "no episodes file": (lambda root: (root / EPISODES).unlink(), "meta/episodes"),
    "episodes cut": (truncate(EPISODES), EPISODES),
    "no length": column(EPISODES, length=None),
    "length wrong": (column(EPISODES, length=pa.array([5, 6]))[0], DATA),
    "length enormous": (column(EPISODES, length=pa.array([5, 2**60]))[0], DATA),
    "length is text": column(EPISODES, length=pa.array(["5", "5"])),
    "zero length": column(EPISODES, length=pa.array([5, 0])),
    "no tasks": column(EPISODES, tasks=pa.array([[], []], type=pa.list_(pa.string()))),
    "tasks are numbers": column(EPISODES, tasks=pa.array([[1], [2]])),
    "episodes unordered": (column(EPISODES, episode_index=pa.array([1, 0]))[0], "meta/episodes"),
    "file is text": column(EPISODES, data__file_index=pa.array(["../x", "../x"])),
    "file elsewhere": (column(EPISODES, data__file_index=pa.array([4, 4]))[0], "data/chunk-000/file-004.parquet"),
    "solved too late": (column(EPISODES, solved_at=pa.array([9, 9]))[0], DATA),
    "solved is text": (column(EPISODES, solved_at=pa.array(["a", "b"]))[0], DATA),
    "policy is a number": (column(EPISODES, policy=pa.array([1, 2]))[0], DATA),
    "no data file": (lambda root: (root / DATA).unlink(), DATA),
    "data cut": (truncate(DATA), DATA),
    "data garbled": (garble(DATA), DATA),
    "data empty": (lambda root: (root / DATA).write_bytes(b""), DATA),
    "rows missing": (lambda root: pq.write_table(pq.read_table(root / DATA).slice(0, 9), root / DATA), DATA),
    "no rows": (lambda root: pq.write_table(pq.read_table(root / DATA).slice(0, 0), root / DATA), DATA),
    "rows unordered": column(DATA, frame_index=pa.array([1, 0, 2, 3, 4] * 2)),
    "no episode_index": column(DATA, episode_index=None),
    "no frame_index": column(DATA, frame_index=None),
    "no action": column(DATA, action=None),
    "action nan": column(DATA, action=NAN),
    "action text": column(DATA, action=pa.array(["1.0"] * 10)),
    "action integer": column(DATA, action=pa.array([[1, 2]] * 10)),
    "action ragged": column(DATA, action=pa.array([[1.0], [1.0, 2.0]] * 5)),
    "action empty": column(DATA, action=pa.array([[]] * 10, type=pa.list_(pa.float32()))),
    "action gaps": column(DATA, action=pa.array([None, [1.0, 2.0]] * 5)),
    "pad in the middle": column(DATA, action_is_pad=pa.array([False, True, False, False, True] * 2)),
    "all pad": column(DATA, action_is_pad=pa.array([True] * 10)),
    "success is text": column(DATA, next__success=pa.array(["yes"] * 10)),
    "no pictures": column(DATA, observation__images__main=None),
    "pictures are text": column(DATA, observation__images__main=pa.array(["x.png"] * 10)),
    "pictures elsewhere": column(DATA, observation__images__main=pa.array([{"bytes": None, "path": "x"}] * 10, PNG)),
    "pictures broken": column(
        DATA, observation__images__main=pa.array([{"bytes": b"\x89PNG\r\n\x1a\n", "path": "x"}] * 10, PNG)
    ),
}


def check(root: Path, damage: Damage) -> None:
    damage[0](root)
    with pytest.raises(DatasetError) as caught:
        read_episodes(root)
    message = str(caught.value)
    assert damage[1] in message and message.count("\n") == 0
    assert any(word in message for word in ("copy", "choose"))  # what to do


@pytest.mark.parametrize("name", DAMAGES)
def test_bad_datasets_end_in_one_sentence(root: Path, name: str) -> None:
    check(root, DAMAGES[name])


def playlist(root: Path) -> None:
    (root / VIDEO).write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")


BEGIN = "videos__observation.images.top__from_timestamp"
VIDEO_DAMAGES: dict[str, Damage] = {
    "no video": (lambda root: (root / VIDEO).unlink(), VIDEO),
    "video cut": (truncate(VIDEO), VIDEO),
    "video empty": (lambda root: (root / VIDEO).write_bytes(b""), VIDEO),
    "a playlist": (playlist, VIDEO),
    "video too short": (column(EPISODES, **{BEGIN: pa.array([0.0, 1.2])})[0], VIDEO),
    "begin nan": (column(EPISODES, **{BEGIN: pa.array([0.0, float("nan")])})[0], VIDEO),
    "begin text": (column(EPISODES, **{BEGIN: pa.array(["a", "b"])})[0], "meta/episodes"),
    "no begin": (column(EPISODES, **{BEGIN: None})[0], "meta/episodes"),
    "two ends": (
        column(EPISODES, **{BEGIN.replace("from", "to"): pa.array([0.4, 1.6])})[0],
        VIDEO,
    ),
}


@pytest.mark.parametrize("name", VIDEO_DAMAGES)
def test_bad_videos_end_in_one_sentence(video_root: Path, name: str) -> None:
    check(video_root, VIDEO_DAMAGES[name])


@pytest.mark.parametrize("name", [DATA, EPISODES, "meta/info.json"])
def test_random_damage_never_gives_another_error(root: Path, name: str) -> None:
    generator, content = np.random.default_rng(0), (root / name).read_bytes()
    for _ in range(40):
        damaged = np.frombuffer(content, dtype=np.uint8).copy()
        damaged[generator.integers(0, len(damaged), size=3)] = generator.integers(0, 256, size=3)
        (root / name).write_bytes(damaged.tobytes())
        try:
            read_episodes(root)
        except DatasetError:
            continue


def test_appending_to_a_damaged_dataset_changes_nothing(root: Path) -> None:
    edit_columns(root / EPISODES, stats__action__mean=None)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(DatasetError, match="meta/episodes"):
        append_episodes(root, [episode(2)], fps=10)
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
