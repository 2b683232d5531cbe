"""Datasets of other programs, written by hand or by the format's own library, never by the code that reads them."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = 12
KEY = "observation.images.top"
V21_DATA = "data/chunk-000/episode_000001.parquet"
V21_VIDEO = f"videos/chunk-000/{KEY}/episode_000001.mp4"


def pictures(number: int, length: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (length, size, size, 3), dtype=np.uint8)


def actions(number: int, length: int, dims: int = 3) -> np.ndarray:
    return np.random.default_rng(1000 + number).normal(size=(length, dims)).astype(np.float32)


def png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="png")
    return file.getvalue()


# ---- LeRobot v2.1: a parquet file for each episode, lists as JSON lines


def lerobot_v21(root: Path, lengths: Sequence[int] = (5, 4), video: bool = False) -> Path:
    """The second episode is solved by its second action."""
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    scalar = {"shape": [1], "names": None}
    features = {
        KEY: {"dtype": "video" if video else "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "rgb"]},
        "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
        "next.reward": {"dtype": "float32"} | scalar, "timestamp": {"dtype": "float32"} | scalar,
        **{n: {"dtype": "int64"} | scalar for n in ("frame_index", "episode_index", "index", "task_index")},
    }  # fmt: skip
    info = {
        "codebase_version": "v2.1", "robot_type": "so100", "total_episodes": len(lengths),
        "total_frames": sum(lengths), "total_tasks": 1, "total_videos": len(lengths) * video, "total_chunks": 1,
        "chunks_size": 1000, "fps": 10, "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4" if video else None,
        "features": features,
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "push"}) + "\n")
    listed = [{"episode_index": i, "tasks": ["push"], "length": n} for i, n in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    for i, length in enumerate(lengths):
        columns: dict[str, Any] = {
            "action": pa.array(list(actions(i, length)), type=pa.list_(pa.float32(), 3)),
            "next.reward": pa.array([float(i == 1 and t >= 1) for t in range(length)], type=pa.float32()),
            "timestamp": pa.array([t / 10 for t in range(length)], type=pa.float32()),
            "frame_index": list(range(length)), "episode_index": [i] * length,
            "index": list(range(length)), "task_index": [0] * length,
        }  # fmt: skip
        if not video:
            kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            columns[KEY] = pa.array([{"bytes": png(f), "path": "x"} for f in pictures(i, length)], type=kind)
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{i:06d}.parquet")
    return root


# ---- robomimic


def robomimic(path: Path, lengths: Sequence[int] = (5, 4), next_obs: bool = False, dtype: Any = np.float32) -> Path:
    """By h5py, in the layout of robomimic's documentation. Demonstrations 2 and 10; the second is solved in step 2."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        env = {"env_name": "NutAssemblySquare_D0", "env_type": 1, "env_kwargs": {"control_freq": 20}}
        data.attrs["env_args"] = json.dumps(env)
        for i, length in reversed(list(enumerate(lengths))):  # HDF5 lists demo_10 before demo_2 anyway
            demo = data.create_group(f"demo_{(2, 10, 11)[i]}")
            demo.attrs["num_samples"] = length
            frames = pictures(i, length + 1)
            demo.create_dataset("actions", data=actions(i, length).astype(dtype))
            demo.create_dataset("rewards", data=np.array([float(i == 1 and t >= 1) for t in range(length)]))
            demo.create_dataset("dones", data=np.arange(length) == length - 1)
            demo.create_dataset("obs/agentview_image", data=frames[:-1], compression="gzip")
            demo.create_dataset("obs/robot0_eef_pos", data=np.zeros((length, 3)))
            if next_obs:
                demo.create_dataset("next_obs/agentview_image", data=frames[1:])
        file.create_dataset("mask/valid", data=np.array([b"demo_10"]))
    return path


# ---- RLDS: TFRecord framing and protobuf, byte by byte


def crc32c(content: bytes) -> int:
    """The textbook way: one bit after the other."""
    state = 0xFFFFFFFF
    for byte in content:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def framed(content: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)

    head = struct.pack("<Q", len(content))
    return head + masked(head) + content + masked(content)


def varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features: dict[str, Any], packed: bool = True) -> bytes:
    """A serialised tf.train.Example of lists of bytes, float32 or int64 arrays."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            body = message(1, b"".join(message(1, item) for item in values))
        elif values.dtype.kind == "f":
            numbers = [struct.pack("<f", v) for v in values.ravel()]
            plain = b"".join(varint(1 << 3 | 5) + n for n in numbers)
            body = message(2, message(1, b"".join(numbers)) if packed else plain)
        else:
            numbers = [varint(int(v)) for v in values.ravel()]
            plain = b"".join(varint(1 << 3 | 0) + n for n in numbers)
            body = message(3, message(1, b"".join(numbers)) if packed else plain)
        entries += message(1, message(1, name.encode()) + message(2, body))
    return message(1, entries)


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    dims = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {"pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
            "tensor": {"shape": dims, "dtype": dtype, "encoding": "none"}}  # fmt: skip


def features_dict(**features: Any) -> dict[str, Any]:
    return {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": features}}  # fmt: skip


IMAGE = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
         "image": {"shape": {"dimensions": [str(SIZE), str(SIZE), "3"]},
                   "dtype": "uint8", "encodingFormat": "png"}}  # fmt: skip
TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
SCHEMA = features_dict(
    episode_metadata=features_dict(file_path=TEXT),
    steps={"pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset",
           "sequence": {"length": "-1", "feature": features_dict(
               observation=features_dict(image=IMAGE, state=tensor("float32", 2)),
               action=features_dict(world_vector=tensor("float32", 3), open_gripper=tensor("bool")),
               reward=tensor("float32"), is_last=tensor("bool"), language_instruction=TEXT)}},
)  # fmt: skip


def rlds_episode(number: int, length: int) -> dict[str, Any]:
    """The second is solved by its second action."""
    return {
        "episode_metadata/file_path": [b"/somewhere"],
        "steps/observation/image": [png(frame) for frame in pictures(number, length)],
        "steps/observation/state": np.zeros((length, 2), dtype=np.float32),
        "steps/action/world_vector": actions(number, length),
        "steps/action/open_gripper": np.arange(length) % 2,
        "steps/reward": np.array([number == 1 and t >= 1 for t in range(length)], dtype=np.float32),
        "steps/is_last": (np.arange(length) == length - 1).astype(int),
        "steps/language_instruction": [b"push"] * length,
    }


def rlds(root: Path, lengths: Sequence[int] = (5, 4), packed: bool = True) -> Path:
    """Two shards of the split train, one episode each."""
    root.mkdir(parents=True)
    (root / "features.json").write_text(json.dumps(SCHEMA))
    for i, length in enumerate(lengths):
        content = framed(example(rlds_episode(i, length), packed))
        (root / f"toy-train.tfrecord-{i:05d}-of-{len(lengths):05d}").write_bytes(content)
    return root


RLDS_ACTION = "steps/action/world_vector"
