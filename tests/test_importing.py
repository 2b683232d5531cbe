"""Importers: what other programs wrote becomes ours unchanged, and what is damaged ends in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_lerobot import assert_same, edit_columns, edit_info, episode, smooth, write_video

from wmpo.data import importing
from wmpo.data.damage import DatasetError
from wmpo.data.importing import Conversion, import_dataset, open_source
from wmpo.data.lerobot import append_episodes, read_episodes
from wmpo.data.source import Keys
from wmpo.data.tfrecord import crc32c, parse_example, read_records

ACTION = Keys(action=foreign.RLDS_ACTION)
KEYS = {"lerobot": Keys(success="next.reward"), "robomimic": Keys(), "rlds": ACTION}


def make(kind: str, place: Path, **changes: Any) -> Path:
    if kind == "lerobot":
        return foreign.lerobot_v21(place / "source", **changes)
    if kind == "rlds":
        return foreign.rlds(place / "source", **changes)
    pytest.importorskip("h5py")
    return foreign.robomimic(place / "source.hdf5", **changes)


def take(source: Path, target: Path, keys: Keys, **changes: Any) -> list[Any]:
    keys = replace(keys, image_size=changes.pop("image_size", None))
    import_dataset(source, target, keys, Conversion(**{"fps": 10} | changes))
    return read_episodes(target)


# ---- what is right


@pytest.mark.parametrize("kind", KEYS)
def test_actions_and_frames_come_unchanged(kind: str, tmp_path: Path) -> None:
    found = take(make(kind, tmp_path), tmp_path / "new", KEYS[kind])
    for i, (e, length) in enumerate(zip(found, (5, 4), strict=True)):  # the last action has no frame after it
        assert np.array_equal(e.actions, foreign.actions(i, length)[:-1])
        assert np.array_equal(e.frames, foreign.pictures(i, length + (kind == "robomimic"))[:length])
    assert [e.solved_at for e in found] == [-1, 2]
    assert {e.instruction for e in found} == {"nut assembly square" if kind == "robomimic" else "push"}
    assert [(e.start, e.episode_id, e.policy) for e in found] == [(-1, 0, "unknown"), (-1, 1, "unknown")]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", KEYS)
def test_import_again_is_lossless(kind: str, tmp_path: Path) -> None:
    first = take(make(kind, tmp_path), tmp_path / "new", KEYS[kind])
    assert_same(take(tmp_path / "new", tmp_path / "again", Keys()), first)


@pytest.mark.parametrize(("name", "limit", "files"), [("SHARD", 7, 6), ("SHARD_BYTES", 3000, 20)])
def test_our_own_episodes_keep_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int, files: int
) -> None:
    monkeypatch.setattr(importing, name, limit)
    episodes = [episode(i, steps=5) for i in range(40)]  # of 2160 bytes, more than are held in memory at once
    append_episodes(tmp_path / "ours", episodes, fps=7)
    done = import_dataset(tmp_path / "ours", tmp_path / "new", Keys(), Conversion())
    assert (done.num_episodes, done.num_solved, done.fps) == (40, 20, 7)
    assert_same(read_episodes(tmp_path / "new"), episodes)
    assert len(list((tmp_path / "new/data/chunk-000").iterdir())) == files


def test_lerobot_v21_with_videos(tmp_path: Path) -> None:
    root = foreign.lerobot_v21(tmp_path / "source", video=True)
    expected = [smooth(length, 30 * i) for i, length in enumerate((5, 4))]
    for i, frames in enumerate(expected):
        write_video(root / foreign.V21_VIDEO.replace("0001.mp4", f"000{i}.mp4"), frames, 10)
        shutil.move(root / "videos", root / f"videos{i}")
    shutil.copytree(root / "videos0", root / "videos")
    shutil.copytree(root / "videos1", root / "videos", dirs_exist_ok=True)
    for found, frames in zip(take(root, tmp_path / "new", KEYS["lerobot"]), expected, strict=True):
        errors = ((found.frames.astype(float) - frames) ** 2).mean(axis=(1, 2, 3))
        assert (10 * np.log10(255**2 / errors)).min() > 35  # dB


def test_a_version_21_dataset_is_not_appended_to(tmp_path: Path) -> None:
    root = foreign.lerobot_v21(tmp_path / "source")
    with pytest.raises(DatasetError, match="append to a new folder"):
        append_episodes(root, [episode(0)], fps=10)


def test_robomimic_with_next_observations_keeps_the_last_action(tmp_path: Path) -> None:
    found = take(make("robomimic", tmp_path, next_obs=True), tmp_path / "new", Keys())
    assert [len(e.actions) for e in found] == [5, 4]
    assert np.array_equal(found[1].frames, foreign.pictures(1, 5))
    assert np.array_equal(found[1].actions, foreign.actions(1, 4))


def test_robomimic_filter_keys_rate_and_sentence(tmp_path: Path) -> None:
    path = make("robomimic", tmp_path)
    source = open_source(path, Keys(split="valid"))
    assert source.fps == 20 and source.labelled
    assert [e.solved_at for e in source.episodes] == [2]
    import h5py

    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": ["close ", "the drawer"]})
    assert next(iter(open_source(path, Keys()).episodes)).instruction == "close the drawer"


def test_several_action_keys_are_put_one_behind_the_other(tmp_path: Path) -> None:
    keys = Keys(action=f"{foreign.RLDS_ACTION},steps/action/open_gripper")
    found = take(foreign.rlds(tmp_path / "source"), tmp_path / "new", keys)
    assert np.array_equal(found[0].actions[:, 3], [0, 1, 0, 1])
    root = foreign.lerobot_v21(tmp_path / "old")
    both = take(root, tmp_path / "both", Keys(action="action,next.reward"), labels="failed")
    assert np.array_equal(both[1].actions[:, 3], [0, 1, 1])


def test_picture_sizes(tmp_path: Path) -> None:
    append_episodes(tmp_path / "ours", [episode(0)], fps=7)  # 10 x 12 pixels
    (small,) = take(tmp_path / "ours", tmp_path / "small", Keys(), image_size=6)
    assert small.frames.shape == (5, 6, 6, 3)
    assert abs(small.frames.mean() - episode(0).frames.mean()) < 3
    flat = episode(0).frames * 0 + np.array([10, 100, 200], dtype=np.uint8)
    append_episodes(tmp_path / "flat", [type(small)(**{n: getattr(small, n) for n in type(small).__slots__}
                                                    | {"frames": flat})], fps=7)  # fmt: skip
    assert (take(tmp_path / "flat", tmp_path / "large", Keys(), image_size=16)[0].frames == [10, 100, 200]).all()


# ---- labels


def test_labels_from_a_file(tmp_path: Path) -> None:
    source, labels = make("rlds", tmp_path), tmp_path / "labels.csv"
    labels.write_text("episode,success,solved_at\n1,no,\n0,TRUE,3\n")
    found = take(source, tmp_path / "new", ACTION, labels=str(labels))
    assert [e.solved_at for e in found] == [3, -1]
    labels.write_text("\ufeffepisode,success\n0,1\n1,0\n")  # as spreadsheets write it
    assert [e.solved_at for e in take(source, tmp_path / "two", ACTION, labels=str(labels))] == [4, -1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("0,1\n1,0\n", "first line"),
        ("", "first line"),
        ("episode,success\n0,1\n", "no label for episode 1"),
        ("episode,success\n0,1\n1,1\n2,1\n", r"episodes \[2\]"),
        ("episode,success\n0,1\n0,0\n", "line 3.*already"),
        ("episode,success\n0,perhaps\n", "line 2"),
        ("episode,success\n-1,1\n", "line 2"),
        ("episode,success\n0\n", "line 2"),
        ("episode,success,solved_at\n0,1,99\n1,0,\n", "cannot be 99"),
        ("episode,success,solved_at\n0,1,0\n1,0,\n", "cannot be 0"),
        ("episode,success\n\xff\xfe", "labels.csv"),
    ],
)
def test_bad_labels_are_explained(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DatasetError, match=says):
        take(make("rlds", tmp_path), tmp_path / "new", ACTION, labels=str(tmp_path / "labels.csv"))
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


def test_labels_of_a_folder_are_refused(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(DatasetError, match=r"--labels .* is no file"):
            take(make("rlds", tmp_path / name.stem), tmp_path / "new", ACTION, labels=str(name))


def test_unlabelled_datasets_need_labels(tmp_path: Path) -> None:
    root = foreign.lerobot_v21(tmp_path / "source")
    with pytest.raises(DatasetError, match="--labels"):
        take(root, tmp_path / "new", Keys())
    assert [e.solved_at for e in take(root, tmp_path / "yes", Keys(), labels="solved")] == [4, 3]
    assert [e.solved_at for e in take(root, tmp_path / "no", KEYS["lerobot"], labels="failed")] == [-1, -1]


def test_a_named_label_counts_more_than_our_own(tmp_path: Path) -> None:
    append_episodes(tmp_path / "ours", [episode(1)], fps=7)  # solved by its third action
    assert [e.solved_at for e in take(tmp_path / "ours", tmp_path / "a", Keys())] == [3]
    named = take(tmp_path / "ours", tmp_path / "b", Keys(success="next.done"))
    assert [e.solved_at for e in named] == [4]


# ---- what the user must say


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("part", ["camera", "action", "success", "split"])
def test_wrong_names_list_the_right_ones(kind: str, part: str, tmp_path: Path) -> None:
    if (kind, part) == ("lerobot", "split"):
        pytest.skip("all episodes of a LeRobot folder are taken")
    keys = Keys(**{"action": KEYS[kind].action, part: ("nothing",) if part == "camera" else "nothing"})
    with pytest.raises(DatasetError, match=r"nothing.*\[|\[.*nothing") as caught:
        take(make(kind, tmp_path), tmp_path / "new", keys)
    assert "source" in str(caught.value)


def test_rlds_says_no_rate(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--fps"):
        take(make("rlds", tmp_path), tmp_path / "new", ACTION, fps=None)


def test_no_sentence(tmp_path: Path) -> None:
    root = make("rlds", tmp_path)
    (root / "features.json").write_text((root / "features.json").read_text().replace('"text": {}', '"other": {}'))
    with pytest.raises(DatasetError, match="--instruction"):
        take(root, tmp_path / "new", ACTION)
    assert take(root, tmp_path / "new", ACTION, instruction="push it")[0].instruction == "push it"


def test_neither_format(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no dataset")
    pytest.importorskip("h5py")
    for path, says in ((tmp_path / "text", "text"), (tmp_path / "none", "does not exist"), (tmp_path, "neither")):
        with pytest.raises(DatasetError, match=says):
            open_source(path, Keys())
    foreign.rlds(tmp_path / "toy/1.0.0")
    with pytest.raises(DatasetError, match=r"did you mean .*toy/1\.0\.0"):
        open_source(tmp_path / "toy", Keys())
    append_episodes(tmp_path / "run/data/collected", [episode(0)], fps=7)
    with pytest.raises(DatasetError, match=r"did you mean .*run/data/collected"):
        open_source(tmp_path / "run", Keys())


def test_targets_are_not_overwritten(tmp_path: Path) -> None:
    source = make("rlds", tmp_path)
    (tmp_path / "new").mkdir()
    take(source, tmp_path / "new", ACTION)
    before = sorted(tmp_path.rglob("*"))
    for target in (tmp_path / "new", source / "features.json"):
        with pytest.raises(DatasetError, match="--to"):
            take(source, target, ACTION)
    assert sorted(tmp_path.rglob("*")) == before


# ---- TFRecord and protobuf


def test_the_checksum_is_the_textbook_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    for length in (0, 3, 255, 256, 257, 511, 512, 513, 1999):
        content = np.random.default_rng(length).bytes(length)
        assert crc32c(content) == foreign.crc32c(content), length


@pytest.mark.parametrize("packed", [True, False])
def test_examples_of_every_type(packed: bool) -> None:
    numbers = np.array([0, 1, -1, 127, 128, 2**62, -(2**63)])
    floats = np.array([0, -1.5, np.inf, 1e-30], dtype=np.float32)
    found = parse_example(foreign.example({"a": numbers, "ü": floats, "c": [b"", b"x" * 300]}, packed))
    assert found["a"].tolist() == numbers.tolist() and found["ü"].tolist() == floats.tolist()  # type: ignore[union-attr]
    assert found["c"] == [b"", b"x" * 300]
    assert parse_example(b"") == {}


def test_sentences_may_be_tensors_and_depth_is_no_camera(tmp_path: Path) -> None:
    root = foreign.rlds(tmp_path / "source")
    schema = json.loads(
        json.dumps(foreign.SCHEMA).replace(json.dumps(foreign.TEXT), json.dumps(foreign.tensor("string")))
    )
    steps = schema["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    depth = json.loads(json.dumps(foreign.IMAGE).replace('"3"', '"1"'))
    steps["observation"]["featuresDict"]["features"]["depth"] = depth
    (root / "features.json").write_text(json.dumps(schema))
    assert take(root, tmp_path / "new", ACTION)[0].instruction == "push"


@pytest.mark.parametrize("packed", [True, False])
def test_pictures_may_be_numbers(packed: bool, tmp_path: Path) -> None:
    root = tmp_path / "source"
    foreign.rlds(root)
    schema = json.dumps(foreign.SCHEMA).replace(
        json.dumps(foreign.IMAGE), json.dumps(foreign.tensor("uint8", *(foreign.SIZE,) * 2, 3))
    )
    (root / "features.json").write_text(schema)
    for i, path in enumerate(sorted(root.glob("*tfrecord*"))):
        values = foreign.rlds_episode(i, 5) | {"steps/observation/image": foreign.pictures(i, 5).astype(int)}
        path.write_bytes(foreign.framed(foreign.example(values, packed)))
    assert np.array_equal(take(root, tmp_path / "new", ACTION)[1].frames, foreign.pictures(1, 5))


def test_several_records_in_a_file(tmp_path: Path) -> None:
    contents = [b"", b"a", bytes(1000)]
    (tmp_path / "file").write_bytes(b"".join(map(foreign.framed, contents)))
    assert list(read_records(tmp_path / "file")) == contents


# ---- what is damaged: (how, which file the message must name)

Damage = tuple[Callable[[Path], Any], str]


def half(name: str) -> Damage:
    return lambda root: os.truncate(root / name, (root / name).stat().st_size // 2), name


def gone(name: str) -> Damage:
    return lambda root: (root / name).unlink(), name


def text(name: str, content: str) -> Damage:
    return lambda root: (root / name).write_text(content), name


def columns(**changes: Any) -> Damage:
    return lambda root: edit_columns(root / foreign.V21_DATA, **changes), foreign.V21_DATA


def info(**changes: Any) -> Damage:
    return lambda root: edit_info(root, **changes), "meta/info.json"


LISTED = "meta/episodes.jsonl"
NAN = pa.array([[0.0, float("nan"), 0.0]] * 4, type=pa.list_(pa.float32(), 3))
LEROBOT: dict[str, Damage] = {
    "data cut": half(foreign.V21_DATA),
    "no data": gone(foreign.V21_DATA),
    "no list": gone(LISTED),
    "list cut": half(LISTED),
    "list of lists": text(LISTED, "[]\n[]\n"),
    "length 0": text(LISTED, '{"episode_index": 0, "tasks": ["push"], "length": 0}\n'),
    "length is text": text(LISTED, '{"episode_index": 0, "tasks": ["push"], "length": "5"}\n'),
    "index is a path": text(LISTED, '{"episode_index": "../x", "tasks": ["push"], "length": 5}\n'),
    "an episode is not listed": (lambda root: edit_info(root, total_episodes=3), LISTED),
    "episodes of the other length": (
        lambda root: (root / LISTED).write_text((root / LISTED).read_text().replace("4", "5")),
        foreign.V21_DATA,
    ),
    "action nan": columns(action=NAN),
    "action text": columns(action=pa.array(["x"] * 4)),
    "no action": columns(action=None),
    "reward text": columns(next__reward=pa.array(["x"] * 4)),
    "pictures elsewhere": columns(**{foreign.KEY: pa.array([{"bytes": None, "path": "/etc/passwd"}] * 4)}),
    "data outside": info(data_path="../{episode_chunk}/{episode_index}.parquet"),
    "data of version 3": info(data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"),
    "video outside": info(video_path="/etc/{video_key}"),
    "chunks of nothing": (lambda root: edit_info(root, chunks_size=0), LISTED),
    "version 1": info(codebase_version="v1.6"),
}


@pytest.mark.parametrize("name", LEROBOT)
def test_damaged_lerobot_folders(name: str, tmp_path: Path) -> None:
    refuse(foreign.lerobot_v21(tmp_path / "source"), KEYS["lerobot"], LEROBOT[name], tmp_path)


@pytest.mark.parametrize("name", [foreign.V21_VIDEO])
def test_missing_videos(name: str, tmp_path: Path) -> None:
    root = foreign.lerobot_v21(tmp_path / "source", video=True)
    write_video(root / name.replace("0001.mp4", "0000.mp4"), smooth(5, 0), 10)
    refuse(root, KEYS["lerobot"], (lambda root: None, name), tmp_path)
    (root / name).write_text("#EXTM3U\nfile:///etc/passwd\n")
    refuse(root, KEYS["lerobot"], (lambda root: None, name), tmp_path)


def refuse(source: Path, keys: Keys, damage: Damage, place: Path) -> None:
    damage[0](source)
    before = sorted(place.rglob("*"))
    with pytest.raises(DatasetError) as caught:
        take(source, place / "new", keys)
    message = str(caught.value)
    assert damage[1] in message and "\n" not in message
    assert sorted(place.rglob("*")) == before  # nothing is written, also no half of it


def shard(**changes: Any) -> Damage:
    """Another second episode."""
    name = "toy-train.tfrecord-00001-of-00002"

    def change(root: Path) -> None:
        values = {n: v for n, v in (foreign.rlds_episode(1, 4) | changes).items() if v is not None}
        (root / name).write_bytes(foreign.framed(foreign.example(values)))

    return change, name


def flipped(place: int) -> Damage:
    name = "toy-train.tfrecord-00001-of-00002"

    def change(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[place] ^= 1
        (root / name).write_bytes(content)

    return change, name


def claiming(width: int, height: int) -> bytes:
    """The head of a PNG of that size, with a right checksum, and nothing behind it."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


SHARD = "toy-train.tfrecord-00001-of-00002"
IMAGES, MOVES = "steps/observation/image", foreign.RLDS_ACTION
DEEP = '{"featuresDict": {"features": {"a": ' * 500 + "{}" + "}}}" * 500
RLDS: dict[str, Damage] = {
    "shard cut": half(SHARD),
    "no shard": (gone(SHARD)[0], "[1]"),
    "shard empty of episodes": (lambda root: [p.write_bytes(b"") for p in root.glob("*tfrecord*")], "no episodes"),
    "head cut": (lambda root: os.truncate(root / SHARD, 7), SHARD),
    "length wrong": flipped(0),
    "length enormous": flipped(6),
    "content wrong": flipped(200),
    "check wrong": flipped(-1),
    "not an example": (lambda root: (root / SHARD).write_bytes(foreign.framed(b"\xff" * 30)), SHARD),
    "schema cut": half("features.json"),
    "schema a list": text("features.json", "[]"),
    "schema deep": text("features.json", DEEP),
    "schema of no steps": text("features.json", json.dumps(foreign.features_dict(image=foreign.IMAGE))),
    "action nan": shard(**{MOVES: np.full((4, 3), np.nan)}),
    "action text": shard(**{MOVES: [b"x"] * 12}),
    "action short": shard(**{MOVES: np.zeros((3, 3), dtype=np.float32)}),
    "no action": shard(**{MOVES: None}),
    "no pictures": shard(**{IMAGES: None}),
    "picture enormous": shard(**{IMAGES: [claiming(60_000, 60_000)] * 4}),
    "picture broken": shard(**{IMAGES: [b"\x89PNG\r\n\x1a\n"] * 4}),
    "pictures of two sizes": shard(**{IMAGES: [foreign.png(foreign.pictures(0, 1, s)[0]) for s in (8, 9, 8, 8)]}),
    "pictures of another size": (
        shard(**{IMAGES: [foreign.png(foreign.pictures(0, 1, 8)[0])] * 4})[0], "episode 1 has pictures (8, 8)",
    ),
    "length 0": shard(**{IMAGES: [], MOVES: np.zeros((0, 3), dtype=np.float32)}),
    "length 1": shard(**{n: v[:1] for n, v in foreign.rlds_episode(1, 4).items()}),
    "rewards short": shard(**{"steps/reward": np.zeros(3, dtype=np.float32)}),
    "sentence is no text": shard(**{"steps/language_instruction": [b"\xff\xfe"] * 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", RLDS)
def test_damaged_rlds_folders(name: str, tmp_path: Path) -> None:
    refuse(foreign.rlds(tmp_path / "source"), ACTION, RLDS[name], tmp_path)


def hdf5(change: Callable[[Any], Any], name: str = "demo_10") -> Damage:
    def edit(path: Path) -> None:
        import h5py

        with h5py.File(path, "r+") as file:
            change(file["data/demo_10"])

    return edit, name


def replaced(name: str, values: Any) -> Damage:
    def change(demo: Any) -> None:
        del demo[name]
        if values is not None:
            demo[name] = values

    return hdf5(change)


def linked(name: str, target: str) -> Damage:
    import_name = "obs/agentview_image" if name == "camera" else name

    def change(demo: Any) -> None:
        import h5py

        del demo[import_name]
        demo[import_name] = h5py.ExternalLink(target, "/x")

    return hdf5(change)


def outside(demo: Any) -> None:
    """The bytes of any file of the machine as actions."""
    del demo["actions"]
    demo.create_dataset("actions", (4, 3), dtype="u1", external=[("/etc/passwd", 0, 12)])


def virtual(demo: Any) -> None:
    import h5py

    layout = h5py.VirtualLayout(shape=(4, 3), dtype="f4")
    layout[:] = h5py.VirtualSource("/elsewhere.h5", "actions", shape=(4, 3))
    del demo["actions"]
    demo.create_virtual_dataset("actions", layout)


def emptied(group: Any) -> None:
    for name in list(group):
        del group[name]


def enormous(demo: Any) -> None:
    del demo["obs/agentview_image"]
    demo.create_dataset("obs/agentview_image", (10**9, 84, 84, 3), dtype="u1", chunks=(1, 84, 84, 3))


HDF5: dict[str, Damage] = {
    "cut": (lambda path: os.truncate(path, path.stat().st_size // 2), "source.hdf5"),
    "empty": (lambda path: os.truncate(path, 0), "source.hdf5"),
    "no data": hdf5(lambda demo: demo.file.move("data", "date"), "source.hdf5"),
    "no demonstrations": hdf5(lambda demo: emptied(demo.file["data"]), "source.hdf5"),
    "a demonstration is an array": hdf5(lambda demo: demo.file.__setitem__("data/demo_11", [1.0])),
    "no actions": replaced("actions", None),
    "action nan": replaced("actions", np.full((4, 3), np.nan)),
    "action infinite in float32": replaced("actions", np.full((4, 3), 1e39)),
    "action text": replaced("actions", np.array([[b"x"] * 3] * 4)),
    "action a number": replaced("actions", 3.0),
    "action of 0 dimensions": replaced("actions", np.zeros((4, 0))),
    "action short": replaced("actions", np.zeros((3, 3))),
    "length 0": hdf5(lambda demo: [shrink(demo, name, 0) for name in ("actions", "rewards", "obs/agentview_image")]),
    "length 1": hdf5(lambda demo: [shrink(demo, name, 1) for name in ("actions", "rewards", "obs/agentview_image")]),
    "rewards short": replaced("rewards", np.zeros(3)),
    "no pictures": replaced("obs/agentview_image", None),
    "no observations": replaced("obs", None),
    "pictures are floats": replaced("obs/agentview_image", np.zeros((4, 12, 12, 3))),
    "pictures channel first": replaced("obs/agentview_image", np.zeros((4, 3, 12, 12), dtype=np.uint8)),
    "other dimensions": (replaced("actions", np.zeros((4, 2)))[0], "episode 1"),
    "actions in another file": linked("actions", "/etc/passwd"),
    "pictures in another file": linked("camera", "../x.h5"),
    "bytes of another file": hdf5(outside),
    "virtual": hdf5(virtual),
    "enormous": hdf5(enormous),
}


def shrink(demo: Any, name: str, length: int) -> None:
    values = demo[name][:length]
    del demo[name]
    demo[name] = values


@pytest.mark.parametrize("name", HDF5)
def test_damaged_hdf5_files(name: str, tmp_path: Path) -> None:
    path = make("robomimic", tmp_path)
    how, says = HDF5[name]
    if name == "a demonstration is an array":
        says = "demo_11"
    refuse(path, Keys(), (how, says), tmp_path)


@pytest.mark.parametrize("kind", KEYS)
def test_random_damage_never_gives_another_error(kind: str, tmp_path: Path) -> None:
    source, generator = make(kind, tmp_path), np.random.default_rng(0)
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    refused = 0
    for i in range(80):
        path = files[i % len(files)]
        content = path.read_bytes()
        damaged = np.frombuffer(content, dtype=np.uint8).copy()
        damaged[generator.integers(0, len(damaged), size=3)] = generator.integers(0, 256, size=3)
        path.write_bytes(damaged.tobytes())
        try:
            for _ in open_source(source, KEYS[kind]).episodes:
                pass
        except DatasetError as error:
            refused += str(tmp_path) in str(error)
        path.write_bytes(content)
    assert refused > 5
    list(open_source(source, KEYS[kind]).episodes)  # the last one was put back


def test_parquet_of_other_types_is_read(tmp_path: Path) -> None:
    """float64 actions, as some converters write them."""
    root = foreign.lerobot_v21(tmp_path / "source")
    table = pq.read_table(root / foreign.V21_DATA)
    wide = pa.array([a.astype(float).tolist() for a in foreign.actions(1, 4)], type=pa.list_(pa.float64()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", wide), root / foreign.V21_DATA)
    assert np.array_equal(take(root, tmp_path / "new", KEYS["lerobot"])[1].actions, foreign.actions(1, 4)[:-1])


@pytest.mark.parametrize(
    ("rate", "known"), [(20, 20), (20.0, 20), (4096, 4096), (2_000_000, None), (1e300, None), (0, None), (2.5, None),
                        (float("inf"), None), (float("nan"), None), ("20", None), (True, None)],
)  # fmt: skip
def test_a_rate_that_nothing_has_counts_as_unknown(rate: Any, known: int | None, tmp_path: Path) -> None:
    import h5py

    path = make("robomimic", tmp_path)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": rate}})
    assert open_source(path, Keys()).fps == known


@pytest.mark.parametrize("kind", KEYS)
def test_labels_that_are_no_numbers_are_no_failures(kind: str, tmp_path: Path) -> None:
    source, nan = make(kind, tmp_path), float("nan")
    if kind == "lerobot":
        for path in source.rglob("episode_*.parquet"):
            table = pq.read_table(path)
            column = table.column_names.index("next.reward")
            values = pa.array([nan] * len(table), pa.float32())
            pq.write_table(table.set_column(column, "next.reward", values), path)
    elif kind == "robomimic":
        import h5py

        with h5py.File(source, "r+") as file:
            file["data/demo_2/rewards"][0] = nan
    else:
        found = foreign.rlds_episode(0, 5)
        found["steps/reward"][3] = nan
        (source / "toy-train.tfrecord-00000-of-00002").write_bytes(foreign.framed(foreign.example(found)))
    with pytest.raises(DatasetError, match=r"source.*: the labels '.*' contain NaN"):
        take(source, tmp_path / "new", KEYS[kind])
    assert not (tmp_path / "new").exists()


def test_labels_without_a_number_are_refused(tmp_path: Path) -> None:
    source = make("lerobot", tmp_path)
    for path in source.rglob("episode_*.parquet"):
        table = pq.read_table(path)
        empty = pa.array([[]] * len(table), pa.list_(pa.float32()))
        pq.write_table(table.set_column(table.column_names.index("next.reward"), "next.reward", empty), path)
    with pytest.raises(DatasetError, match="parquet"):
        take(source, tmp_path / "new", KEYS["lerobot"])
