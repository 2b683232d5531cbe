"""Importers against files that each format's own library has just written, our exports against lerobot's reader, and
OpenVLA's vision towers against timm.

``pytest -m external tests/test_external.py`` in an environment that has the library; CONTRIBUTING.md says how. A
library that is not there skips its tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from finished_run import finished_run
from test_lerobot import episode, smooth

from wmpo.cli import main
from wmpo.data.damage import DatasetError
from wmpo.data.episode import Episode
from wmpo.data.importing import Conversion, import_dataset, open_source, write_new
from wmpo.data.lerobot import read_episodes
from wmpo.data.source import Keys
from wmpo.hf import WeightFolder

pytestmark = pytest.mark.external

LENGTHS = (5, 9, 6)
"""Rows of three episodes; the second is solved by its third action, the others never."""
DIMS = 7
SENTENCES = ("push the block", "schiebe den grünen Block", "push the block")
SOLVED = [-1, 3, -1]


def solved(number: int, row: int) -> bool:
    return number == 1 and row >= 2


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Decibels of the worst frame."""
    errors = ((found.astype(float) - expected) ** 2).mean(axis=(1, 2, 3))
    return float(10 * np.log10(255**2 / errors.max()))


# ---- LeRobot


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module of LeRobotDataset, which must not look for anything on the hub."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "HF_LEROBOT_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    pytest.importorskip("lerobot")
    return importlib.import_module("lerobot.datasets.lerobot_dataset")


def is_old(lerobot: ModuleType) -> bool:
    """Whether this lerobot is of v2.1."""
    return not hasattr(lerobot.LeRobotDataset, "finalize")


def record(lerobot: ModuleType, root: Path, kind: str) -> Path:
    """As lerobot records: v2.1 by 0.3, v3.0 since 0.4."""
    features = {
        foreign.KEY: {"dtype": kind, "shape": (48, 64, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (DIMS,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    made = lerobot.LeRobotDataset.create("wmpo/test", 15, features, root=root, use_videos=kind == "video")
    for number, (length, sentence) in enumerate(zip(LENGTHS, SENTENCES, strict=True)):
        frames, actions = smooth(length, 30 * number), foreign.actions(number, length, DIMS)
        for row in range(length):
            frame = {
                foreign.KEY: frames[row], "action": actions[row], "next.success": np.array([solved(number, row)]),
            }  # fmt: skip
            if is_old(lerobot):
                made.add_frame(frame, task=sentence)
            else:
                made.add_frame(frame | {"task": sentence})
        made.save_episode()
    if not is_old(lerobot):
        made.finalize()
    return root


@pytest.mark.parametrize("kind", ["image", "video"])
def test_lerobots_recordings_are_imported(lerobot: ModuleType, tmp_path: Path, kind: str) -> None:
    done = import_dataset(record(lerobot, tmp_path / "source", kind), tmp_path / "new", Keys(), Conversion())
    assert (done.kind, done.num_episodes, done.num_solved) == (f"LeRobot {'v2.1' if is_old(lerobot) else 'v3.0'}", 3, 1)
    assert done.fps == 15 and done.num_actions == sum(LENGTHS) - 3
    for number, e in enumerate(read_episodes(tmp_path / "new")):
        frames = smooth(LENGTHS[number], 30 * number)
        assert np.array_equal(e.actions, foreign.actions(number, LENGTHS[number], DIMS)[:-1])
        if kind == "image":
            assert np.array_equal(e.frames, frames)
        else:  # 41 to 44 dB as lerobot compresses, but 34 against the frame before and 32 against the one after
            assert psnr(e.frames, frames) > 40
        assert (e.instruction, e.solved_at, e.views) == (SENTENCES[number], SOLVED[number], ("top",))


@pytest.fixture
def reader(lerobot: ModuleType) -> ModuleType:
    """A lerobot that reads the version we write."""
    if is_old(lerobot):
        pytest.skip("this lerobot does not read v3.0")
    return lerobot


def assert_opened(reader: ModuleType, root: Path, episodes: list[Episode]) -> None:
    """lerobot's reader gives what the episodes hold, row by row, and chunks of two actions."""
    found = reader.LeRobotDataset("wmpo/out", root=root)
    fps, dims = found.fps, episodes[0].actions.shape[1]
    chunks = reader.LeRobotDataset("wmpo/out", root=root, delta_timestamps={"action": [0, 1 / fps]})
    assert (found.num_episodes, found.num_frames) == (len(episodes), sum(len(e.frames) for e in episodes))
    index = 0
    for e in episodes:
        padded = np.concatenate([e.actions, e.actions[-1:], e.actions[-1:]])
        for row in range(len(e.frames)):
            item, last = found[index], row == len(e.actions)
            assert np.array_equal(np.reshape(item["action"], dims), padded[row])
            assert np.array_equal(np.reshape(chunks[index]["action"], (2, dims)), padded[row : row + 2])
            pictures = [item[f"observation.images.{view}"].numpy().transpose(1, 2, 0) * 255 for view in e.views]
            assert np.array_equal(np.concatenate(pictures, axis=1).round().astype(np.uint8), e.frames[row])
            assert (item["task"], bool(item["action_is_pad"])) == (e.instruction, last)
            assert bool(item["next.success"]) == (e.success and row + 1 >= e.solved_at)
            # lerobot's chunks bring a mask of the same name, which only knows where the episode's rows end.
            assert chunks[index]["action_is_pad"].tolist() == [False, last]
            index += 1
    actions = np.concatenate([e.actions for e in episodes]).astype(float)
    np.testing.assert_allclose(np.ravel(found.meta.stats["action"]["mean"]), actions.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("dims", [1, 4])
@pytest.mark.parametrize("views", [("main",), ("top", "wrist")], ids=len)
def test_lerobot_opens_what_we_write(
    reader: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dims: int, views: tuple[str, ...]
) -> None:
    monkeypatch.setattr("wmpo.data.importing.SHARD", 2)  # several files
    episodes = [replace(episode(i, steps=3 + i, dims=dims), views=views) for i in range(5)]
    write_new(tmp_path / "out", iter(episodes), fps=10, origin={})
    assert_opened(reader, tmp_path / "out", episodes)


@pytest.mark.parametrize("what", ["collected", "imagined"])
def test_lerobot_opens_what_the_command_exports(reader: ModuleType, tmp_path: Path, what: str) -> None:
    pytest.importorskip("metaworld")
    finished_run(tmp_path / "run")
    main(["data", "export", str(tmp_path / "run"), "--to", str(tmp_path / "out"), "--what", what])
    assert_opened(reader, tmp_path / "out", read_episodes(tmp_path / "out"))


# ---- RLDS by TensorFlow Datasets


@pytest.fixture(scope="module")
def rlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder with the splits train and val, in several shards and in the order that TFDS shuffles to."""
    tfds = pytest.importorskip("tensorflow_datasets")
    length = {"train": LENGTHS, "val": LENGTHS[:2]}

    class WmpoToy(tfds.core.GeneratorBasedBuilder):  # type: ignore[name-defined, misc]
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path_factory.mktemp("package")  # where it would look for descriptions and citations

        def _info(self) -> Any:
            kinds = tfds.features
            step = {
                "observation": {"image": kinds.Image(shape=(48, 64, 3), encoding_format="png"),
                                "state": kinds.Tensor(shape=(2,), dtype=np.float64)},
                "action": {"arm": kinds.Tensor(shape=(DIMS,), dtype=np.float32), "gripper": kinds.Scalar(np.bool_)},
                "reward": kinds.Scalar(np.float32), "discount": kinds.Scalar(np.float32),
                "is_first": kinds.Scalar(np.bool_), "is_last": kinds.Scalar(np.bool_),
                "is_terminal": kinds.Scalar(np.bool_), "language_instruction": kinds.Text(),
            }  # fmt: skip
            whole = {"steps": kinds.Dataset(step), "episode_metadata": {"number": kinds.Scalar(np.int64)}}
            return self.dataset_info_from_configs(features=kinds.FeaturesDict(whole))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in length}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for number, rows in enumerate(length[split]):
                frames, actions = smooth(rows, 30 * number), foreign.actions(number, rows, DIMS)
                steps = [
                    {
                        "observation": {"image": frames[row], "state": np.zeros(2)},
                        "action": {"arm": actions[row], "gripper": row % 2 == 1},
                        "reward": float(solved(number, row)), "discount": 1.0, "is_first": row == 0,
                        "is_last": row == rows - 1, "is_terminal": row == rows - 1,
                        "language_instruction": f"episode {number}",
                    }
                    for row in range(rows)
                ]  # fmt: skip
                yield f"{split}_{number}", {"steps": steps, "episode_metadata": {"number": number}}

    builder = WmpoToy(data_dir=tmp_path_factory.mktemp("tfds"))
    settings = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=2)
    builder.download_and_prepare(download_config=settings)
    return Path(builder.data_dir)


ACTION = "steps/action/arm,steps/action/gripper"
NO_TENSORFLOW = """
import sys
sys.modules.update(tensorflow=None, tensorflow_datasets=None)  # importing them is an error from here on
from wmpo.cli import main
main(sys.argv[1:])
"""


def test_records_of_tensorflow_datasets_are_imported_without_it(rlds: Path, tmp_path: Path) -> None:
    words = ["data", "import", rlds, "--to", tmp_path / "new", "--fps", "10", "--split", "train", "--action", ACTION]
    command = [sys.executable, "-c", NO_TENSORFLOW, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    found = {int(e.instruction.split()[1]): e for e in read_episodes(tmp_path / "new")}
    assert len(list(rlds.glob("*-train.tfrecord-*"))) == 2 and sorted(found) == [0, 1, 2]
    for number, e in found.items():
        rows = LENGTHS[number]
        gripper = (np.arange(rows) % 2)[:, None]
        wanted = np.concatenate([foreign.actions(number, rows, DIMS), gripper], axis=1).astype(np.float32)
        assert np.array_equal(e.actions, wanted[:-1]) and np.array_equal(e.frames, smooth(rows, 30 * number))
        assert e.solved_at == SOLVED[number]


def test_splits_of_tensorflow_datasets_are_asked_for_by_name(rlds: Path) -> None:
    with pytest.raises(DatasetError, match=r"train.*val"):
        open_source(rlds, Keys(action=ACTION))
    assert len(list(open_source(rlds, Keys(action=ACTION, split="val")).episodes)) == 2


# ---- robomimic


def robomimic_env(base: ModuleType) -> Any:
    """An environment for robomimic to replay. Its state is (number of the episode, frame)."""

    class Toy(base.EnvBase):  # type: ignore[name-defined, misc]
        name, action_dimension, rollout_exceptions, type = "NutAssemblySquare_D0", DIMS, (), base.EnvType.GYM_TYPE
        state = (0, 0)

        def __init__(self) -> None:
            pass

        def reset(self) -> Any:
            return self.get_observation()

        def reset_to(self, state: Any) -> Any:
            self.state = tuple(int(part) for part in state["states"])
            return self.get_observation()

        def step(self, action: Any) -> Any:
            self.state = (self.state[0], self.state[1] + 1)
            return self.get_observation(), self.get_reward(), self.is_done(), {}

        def get_observation(self) -> Any:
            number, row = self.state
            frame = smooth(LENGTHS[number] + 1, 30 * number)[row]
            return {"agentview_image": frame, "robot0_eef_pos": np.zeros(3)}

        def get_state(self) -> Any:
            return {"states": np.array(self.state, dtype=float)}

        def get_reward(self) -> float:
            return float(solved(self.state[0], self.state[1] - 1))

        def is_success(self) -> Any:
            return {"task": self.get_reward() > 0}

        def is_done(self) -> bool:
            return False

        def serialize(self) -> Any:
            return {"env_name": self.name, "type": self.type, "env_kwargs": {"control_freq": 20}}

    Toy.__abstractmethods__ = frozenset()  # the rest, which differs between versions, is not called
    return Toy()


@pytest.fixture(scope="module")
def robomimic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files by robomimic's ``dataset_states_to_obs``, with and without ``next_obs``, and its train/valid masks.

    What it replays is ours: a file of states and actions, and an environment whose pictures are known.
    """
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("robomimic")
    writer = importlib.import_module("robomimic.scripts.dataset_states_to_obs")
    masks = importlib.import_module("robomimic.scripts.split_train_val")
    env = robomimic_env(importlib.import_module("robomimic.envs.env_base"))
    root = tmp_path_factory.mktemp("robomimic")
    with h5py.File(root / "raw.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(env.serialize())
        for number, rows in enumerate(LENGTHS):
            demo = file.create_group(f"data/demo_{number}")
            demo.create_dataset("states", data=np.array([(number, row) for row in range(rows)], dtype=float))
            demo.create_dataset("actions", data=foreign.actions(number, rows, DIMS).astype(float))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer.EnvUtils, "create_env_for_data_processing", lambda **_: env)
        for name, without in (("whole", False), ("short", True)):
            writer.dataset_states_to_obs(argparse.Namespace(
                dataset=str(root / "raw.hdf5"), output_name=f"{name}.hdf5", n=None, shaped=False, depth=False,
                camera_names=["agentview"], camera_height=48, camera_width=64, done_mode=2, copy_rewards=False,
                copy_dones=False, exclude_next_obs=without, compress=without,
            ))  # fmt: skip
            masks.split_train_val_from_hdf5(str(root / f"{name}.hdf5"), val_ratio=0.34)
    return root


@pytest.mark.parametrize(("name", "dropped"), [("whole", 0), ("short", 1)])
def test_robomimics_files_are_imported(robomimic: Path, tmp_path: Path, name: str, dropped: int) -> None:
    done = import_dataset(robomimic / f"{name}.hdf5", tmp_path / "new", Keys(), Conversion())
    assert (done.kind, done.num_episodes, done.num_solved, done.fps) == ("robomimic HDF5", 3, 1, 20)
    for number, e in enumerate(read_episodes(tmp_path / "new")):
        rows = LENGTHS[number]
        assert np.array_equal(e.actions, foreign.actions(number, rows, DIMS)[: rows - dropped])
        assert np.array_equal(e.frames, smooth(rows + 1, 30 * number)[: rows + 1 - dropped])
        assert (e.instruction, e.solved_at) == ("nut assembly square", SOLVED[number])


def test_robomimics_masks_are_splits(robomimic: Path) -> None:
    found = {s: [*open_source(robomimic / "whole.hdf5", Keys(split=s)).episodes] for s in ("train", "valid")}
    assert [len(episodes) for episodes in found.values()] == [2, 1]
    assert sorted(len(e.actions) for episodes in found.values() for e in episodes) == sorted(LENGTHS)


# ---- OpenVLA's vision towers by timm


def timm_tower(timm: ModuleType, name: str, **sizes: int) -> Any:
    """As timm defines it, but small and with random weights; the heads are the published ones."""
    tower = timm.create_model(name, pretrained=False, num_classes=0, img_size=28, **sizes).eval().requires_grad_(False)
    for parameter in tower.parameters():  # also LayerScale, which timm begins near zero
        parameter.copy_(0.3 * torch.randn_like(parameter))
    return tower


def test_openvlas_towers_give_the_features_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second-to-last block, as Prismatic takes them, from timm's weights under the published names."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("transformers", reason="needs the extra hf: pip install 'wmpo[hf]'")
    miniature = importlib.import_module("openvla_miniature")
    prismatic = importlib.import_module("wmpo.policy.prismatic")
    tensors = miniature.published_tensors()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("vision_backbone.")}
    dino, siglip = prismatic.NUM_HEADS
    towers = {
        prismatic.DINO: timm_tower(timm, dino, embed_dim=32, depth=3),
        prismatic.SIGLIP: timm_tower(timm, siglip, embed_dim=48, depth=4),
    }
    for prefix, tower in towers.items():
        tensors |= {prefix + n.replace(".gamma", ".scale_factor"): t for n, t in tower.state_dict().items()}
    assert any(name.endswith("ls2.scale_factor") for name in tensors) and prismatic.DINO + "reg_token" in tensors
    monkeypatch.setattr(miniature, "published_tensors", lambda: tensors)
    folder = WeightFolder(miniature.write_checkpoint(tmp_path))
    net = prismatic.load(folder, folder.json("config.json"), torch.float32)
    pixels = torch.randn(3, 6, 28, 28)
    with torch.no_grad():
        found = net.features(pixels)
        expected = [
            tower.get_intermediate_layers(half, n={len(tower.blocks) - 2})[0]
            for tower, half in zip(towers.values(), pixels.chunk(2, dim=1), strict=True)
        ]
    assert expected[0].std() > 0.1 and expected[1].std() > 0.1
    torch.testing.assert_close(found, torch.cat(expected, dim=2), atol=1e-5, rtol=1e-5)
