"""Several cameras: from other programs' datasets to networks and back, and what must be refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from miniatures import ACTIONS, BINS, CHUNK, SIZE
from torch import Tensor, nn
from toy_arm import AXES, ToyArm

import wmpo
from wmpo.data.clips import shift
from wmpo.data.damage import DatasetError
from wmpo.data.importing import Conversion, import_dataset, open_source
from wmpo.data.lerobot import read_episodes
from wmpo.data.pictures import resize, view_names
from wmpo.data.source import Keys
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.robosuite import RobosuiteConfig
from wmpo.nn import cut_views, join_views
from wmpo.policy.codec import ActionCodec
from wmpo.policy.small import SmallPolicy, SmallPolicyConfig
from wmpo.protocols import PolicyNet
from wmpo.recipes import recipe
from wmpo.report.run import RunFolder
from wmpo.reward.small import SmallRewardConfig
from wmpo.robots.env import check_policy
from wmpo.robots.lerobot import LeRobotRobot
from wmpo.robots.protocol import RobotError, Setup
from wmpo.stages import models
from wmpo.stages.plan import Hardware, plan
from wmpo.stages.pretrained import check_pretrained
from wmpo.types import Observation
from wmpo.world_model.opensora import OpenSoraWorldModelConfig
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.stdit import Sizes
from wmpo.world_model.tokenizer import TokenizerConfig
from wmpo.world_model.warp import MOTION_CHANNELS

VIEWS = ("top", "wrist")
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


# ---- networks


def some_frames(count: int, num_views: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, SIZE, num_views * SIZE, 3), dtype=torch.uint8, generator=generator)


def two_view_policy() -> SmallPolicy:
    torch.manual_seed(0)
    codec = ActionCodec((-1.0,) * ACTIONS, (1.0,) * ACTIONS, CHUNK, BINS)
    sizes = SmallPolicyConfig(dim=16, depth=1, num_heads=2, num_bins=BINS, chunk_size=CHUNK)
    return sizes.build(codec, SIZE, VIEWS).eval()


def two_view_dream() -> SmallWorldModel:
    torch.manual_seed(0)
    sizes = SmallWorldModelConfig(channels=(8, 8), condition=16, frame_stride=2)
    tokenizer = TokenizerConfig(channels=8, latent_channels=3).build()
    model = sizes.build(tokenizer, -torch.ones(ACTIONS), torch.ones(ACTIONS), SIZE // 4, VIEWS)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def logits(policy: PolicyNet, frames: Tensor) -> Tensor:
    seen = policy.prepare(Observation(frame=frames, instruction=("open",) * len(frames)))
    return policy(**seen)


@torch.no_grad()
def test_a_policy_sees_every_camera_and_refuses_other_numbers(tmp_path: Path) -> None:
    policy, frames = two_view_policy(), some_frames(1)
    before = logits(policy, frames)
    for place in (slice(None, SIZE), slice(SIZE, None)):
        changed = frames.clone()
        changed[:, :, place] = 255 - changed[:, :, place]
        assert not torch.allclose(logits(policy, changed), before, atol=1e-4)
    with pytest.raises(ValueError, match="frames are 16x16, but this policy was built for 16x32: top, wrist side by"):
        logits(policy, some_frames(1, num_views=1))
    folder = RunFolder(tmp_path)
    models.save_policy(folder, "base", policy, ("open",))
    again = models.load_policy(folder, "base")
    assert again.views == VIEWS and torch.equal(logits(again, frames), before)


def test_files_from_before_there_were_views_have_one() -> None:
    about = two_view_policy().about()
    del about["views"]
    assert SmallPolicyConfig(dim=16, depth=1, num_heads=2, num_bins=BINS).restore(about).views == ("main",)
    dream = two_view_dream().about()
    del dream["views"]
    assert SmallWorldModelConfig(channels=(8, 8), condition=16, frame_stride=2).restore(dream).views == ("main",)


def test_cut_and_join_are_inverse() -> None:
    images = torch.randn(3, 5, 4, 12)
    assert torch.equal(join_views(cut_views(images, 3), 3), images)
    assert torch.equal(cut_views(images, 3)[4], images[1, :, :, 4:8]), "the views of a row follow each other"
    assert cut_views(images, 1).data_ptr() == images.data_ptr(), "one view costs nothing"


@torch.no_grad()
def test_a_dream_of_two_cameras_is_kept_and_moves_no_pixel_across(tmp_path: Path) -> None:
    model, frames = two_view_dream(), some_frames(2).unsqueeze(1)
    chunk, noise = torch.rand(2, CHUNK, ACTIONS), torch.randn(2, *model.noise_shape(CHUNK))
    shown, context = model.imagine(model.begin(frames), chunk, noise)
    assert shown.shape == (2, 2, SIZE, 2 * SIZE, 3) and model.latent_shape == (3, SIZE // 4, SIZE // 2)
    models.save_world_model(RunFolder(tmp_path), model)
    again = models.load_world_model(RunFolder(tmp_path))
    assert torch.equal(again.imagine(again.begin(frames), chunk, noise)[0], shown) and again.views == VIEWS
    # all weight on the moved last frame, which is fetched from far to the right: the border of the own view repeats
    motion = torch.zeros(2, MOTION_CHANNELS, SIZE, 2 * SIZE)
    motion[:, 0], motion[:, 4] = 100.0, 100.0
    moved = model._compose(context, context.latents, motion, torch.zeros(2, 4, SIZE, 2 * SIZE))
    for begin in (0, SIZE):
        border = context.last[:, :, :, begin + SIZE - 1]
        assert torch.allclose(moved[:, :, :, begin], border, atol=1e-4)
    with pytest.raises(ValueError, match="this world model was built for 16x32"):
        model.begin(frames[:, :, :, :SIZE])


def test_the_papers_world_model_imagines_wide_frames(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="needs the extra hf: pip install 'wmpo[hf]'")
    from hf_miniatures import write_autoencoder

    sizes = Sizes(width=16, depth=1, num_heads=2, mlp_width=24, channels=4)
    config = OpenSoraWorldModelConfig(
        vae=str(write_autoencoder(tmp_path)), sizes=sizes, num_context=2, frame_stride=2, euler_steps=1
    )
    model = config.build(-torch.ones(ACTIONS), torch.ones(ACTIONS), SIZE, VIEWS)
    assert model.latent_shape == (4, 2, 4)
    noise = torch.randn(1, *model.noise_shape(CHUNK))
    shown, _ = model.imagine(model.begin(some_frames(1).unsqueeze(1)), torch.rand(1, CHUNK, ACTIONS), noise)
    assert shown.shape == (1, 2, SIZE, 2 * SIZE, 3) and config.restore(model.about()).views == VIEWS
    with pytest.raises(ValueError, match="this world model was built for 16x32"):
        model.encode(some_frames(1, num_views=1))


def test_a_plan_counts_every_camera() -> None:
    one = recipe("tiny")
    two = replace(one, env=replace(one.env, more_cameras=("corner",)))
    costs = [[stage.operations for stage in plan(each, Hardware()).stages] for each in (one, two)]
    assert all(1.2 * a < b < 3 * a for a, b in zip(*costs, strict=True))


def test_a_classifier_of_two_cameras_is_kept(tmp_path: Path) -> None:
    judge = SmallRewardConfig(channels=4).build(SIZE, VIEWS).eval()
    clips = some_frames(4).unflatten(0, (2, 2))
    models.save_reward(RunFolder(tmp_path), judge)
    again = models.load_reward(RunFolder(tmp_path))
    told = [""] * len(clips)
    assert torch.equal(again(clips, told), judge(clips, told))
    with pytest.raises(ValueError, match="this success classifier was built for"):
        judge(clips[:, :, :, :SIZE], told)


def test_each_view_is_shifted_in_its_own_place() -> None:
    frames, offsets = some_frames(5), torch.randint(0, 7, (5, 2))
    apart = [shift(view, offsets, 3) for view in frames.chunk(2, dim=2)]
    assert torch.equal(shift(frames, offsets, 3, 2), torch.cat(apart, dim=2))


def test_a_loaded_policy_takes_pictures_by_name_or_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.save_policy(RunFolder(tmp_path), "base", two_view_policy(), ("open",))
    policy = wmpo.load_policy(tmp_path / "models/base.safetensors")
    frames, prepare, seen = some_frames(1), policy._policy.prepare, list[Tensor]()

    def watched(observation: Observation) -> Mapping[str, Tensor]:
        seen.append(observation.frame)
        return prepare(observation)

    monkeypatch.setattr(policy._policy, "prepare", watched)
    top, wrist = (view[0].numpy() for view in frames.chunk(2, dim=2))
    assert policy.views == VIEWS
    named = policy.act({"wrist": wrist, "top": top})
    assert np.array_equal(named, policy.act([top, wrist])) and named.shape == (CHUNK, ACTIONS)
    assert torch.equal(seen[0], frames) and torch.equal(seen[1], frames)
    wrong = ([top], top, [top, wrist, top], {"top": top}, {"top": top, "hand": wrist}, {})
    for given in wrong:
        with pytest.raises(ValueError, match="the policy sees 2 cameras: give top, wrist"):
            policy.act(given)


# ---- simulators and robots


def test_a_simulator_draws_further_cameras_beside_the_first() -> None:
    one, two = MetaWorldConfig(image_size=32), MetaWorldConfig(image_size=32, more_cameras=("gripperPOV",))
    two.validate()
    assert one.views == ("main",) and two.views == ("main", "gripperPOV")
    sim = one.build()
    sim.reset(3)
    alone = sim.render()
    sim.config = two
    both = sim.render()
    sim.close()
    assert both.shape == (32, 64, 3) and np.array_equal(both[:, :32], alone)
    assert both[:, 32:].std() > 5, "the wrist camera sees something"
    for config in (MetaWorldConfig(more_cameras=("wrist",)), RobosuiteConfig(more_cameras=("agentview",) * 2)):
        with pytest.raises(ValueError, match=r"env\.more_cameras .* must be different ones of"):
            config.validate()


def test_shipped_weights_are_for_one_camera() -> None:
    one = recipe("quickstart")
    check_pretrained(one)
    with pytest.raises(ValueError, match=r"env\.more_cameras .*--world-model\.pretrained none"):
        check_pretrained(replace(one, env=replace(one.env, more_cameras=("corner",))))


def test_a_robot_shows_its_cameras_in_the_policys_order() -> None:
    arm = ToyArm()
    robot = LeRobotRobot(arm, ("wrist", "front"), AXES)
    robot.connect()
    reading = robot.observe()
    seen = arm.get_observation()
    assert robot.views == ("wrist", "front") and LeRobotRobot(ToyArm(), "front", AXES).views == ("main",)
    assert [view.shape for view in (reading.frame, *reading.others)] == [seen[n].shape for n in robot.views]
    for cameras in ((), ("front", "front")):
        with pytest.raises(ValueError, match="one or several different ones"):
            LeRobotRobot(ToyArm(), cameras, AXES)
    setup = Setup(robot=robot, rate=10)
    check_policy(setup, 4, ("wrist", "front"))
    for views in (("main",), ("front", "wrist")):
        with pytest.raises(RobotError, match="but the robot shows wrist, front"):
            check_policy(setup, 4, views)
