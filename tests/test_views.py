"""Several cameras: from other programs' datasets to networks and back, and what must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import foreign
import numpy as np
import pytest

from wmpo.data.damage import DatasetError
from wmpo.data.importing import Conversion, import_dataset, open_source
from wmpo.data.lerobot import read_episodes
from wmpo.data.pictures import resize, view_names
from wmpo.data.source import Keys

WRIST = 8
"""Pixels of a wrist camera in the datasets here; the other one has ``foreign.SIZE``."""


def two_cameras(kind: str, place: Path) -> tuple[Path, Keys]:
    """A dataset of another program with a second, smaller camera."""
    if kind == "robomimic":
        h5py = pytest.importorskip("h5py")
        path = foreign.robomimic(place / "source.hdf5")
        with h5py.File(path, "a") as file:
            for i, demo in enumerate((file["data/demo_2"], file["data/demo_10"])):
                demo["obs/wrist"] = foreign.pictures(50 + i, len(demo["actions"]), WRIST)
        return path, Keys(camera=("obs/wrist".removeprefix("obs/"), "agentview_image"))
    root = place / "source"
    root.mkdir()
    schema = json.loads(json.dumps(foreign.SCHEMA))
    steps = schema["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    images = steps["observation"]["featuresDict"]["features"]
    images["wrist"] = images["image"]
    (root / "features.json").write_text(json.dumps(schema))
    for i, length in enumerate((5, 4)):
        pictures = [foreign.png(frame) for frame in foreign.pictures(50 + i, length, WRIST)]
        record = foreign.rlds_episode(i, length) | {"steps/observation/wrist": pictures}
        (root / f"toy-train.tfrecord-{i:05d}-of-00002").write_bytes(foreign.framed(foreign.example(record, True)))
    cameras = ("steps/observation/wrist", "steps/observation/image")
    return root, Keys(camera=cameras, action=foreign.RLDS_ACTION)


@pytest.mark.parametrize("kind", ["robomimic", "rlds"])
def test_cameras_stand_side_by_side_in_the_order_given(kind: str, tmp_path: Path) -> None:
    source, keys = two_cameras(kind, tmp_path)
    with pytest.raises(DatasetError, match=r"give 8x8, 12x12 pixels; give --image-size"):
        next(iter(open_source(source, keys).episodes))
    with pytest.raises(DatasetError, match="--camera"):
        open_source(source, Keys(action=keys.action))
    keys = Keys(camera=keys.camera, action=keys.action, image_size=foreign.SIZE)
    import_dataset(source, tmp_path / "new", keys, Conversion(fps=7))
    for i, episode in enumerate(read_episodes(tmp_path / "new")):
        length = len(episode.frames)
        wrist = resize(foreign.pictures(50 + i, 9, WRIST)[:length], foreign.SIZE)
        assert np.array_equal(episode.frames[:, :, : foreign.SIZE], wrist)
        assert np.array_equal(episode.frames[:, :, foreign.SIZE :], foreign.pictures(i, 9)[:length])
        assert episode.views == (("wrist", "agentview_image") if kind == "robomimic" else ("wrist", "image"))
    origin = json.loads((tmp_path / "new/meta/origin.json").read_text())
    assert origin["camera"] == list(keys.camera) and origin["image_size"] == foreign.SIZE


def test_names_of_cameras_stay_apart() -> None:
    assert view_names(["observation.images.top"]) == ("top",) and view_names(["observation.image"]) == ("image",)
    assert view_names(["steps/a/image", "steps/b/image"]) == ("steps_a_image", "steps_b_image")
