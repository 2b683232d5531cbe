"""A run plays one of several simulators: its folder says which, and nothing else assumes one."""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from wmpo.config import Experiment, from_json, to_json
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.robosuite import SENTENCES, RobosuiteConfig, task_class
from wmpo.envs.robosuite_experts import pointing_down, rotation_vector, wrapped
from wmpo.envs.simulator import CameraConfig
from wmpo.policy.codec import ActionCodec
from wmpo.recipes import recipe
from wmpo.report.run import RunFolder
from wmpo.serve.session import steer
from wmpo.stages.job import Job, open_job
from wmpo.stages.pretrain import pretrain
from wmpo.stages.pretrained import check_pretrained
from wmpo.types import Observation

SQUARE = RobosuiteConfig(task="Square")


def test_a_folder_says_which_simulator_it_plays(tmp_path: Path) -> None:
    experiment = recipe("square")
    found = json.loads(json.dumps(to_json(experiment)))
    assert found["env"]["kind"] == "RobosuiteConfig" and from_json(Experiment, found) == experiment
    with open_job(tmp_path / "run", "square", experiment, 0) as job:
        assert (job.action_dim, job.fps) == (7, 20)
        assert job.workspaces.of("").low == (-np.inf,) * 7
        job.root.complete("demos", 1.0, {})
    with pytest.raises(ValueError, match=r"other settings .*env\.kind: RobosuiteConfig there, MetaWorldConfig now"):
        open_job(tmp_path / "run", "square", dataclasses.replace(experiment, env=MetaWorldConfig()), 0)


def test_folders_from_before_there_were_two_kinds_hold_meta_world() -> None:
    experiment = dataclasses.replace(recipe("tiny"), env=MetaWorldConfig(task="door-open-v3"))
    old = json.loads(json.dumps(to_json(experiment)))
    assert old["env"].pop("kind") == "MetaWorldConfig"
    assert from_json(Experiment, old) == experiment


def test_a_kind_that_this_version_does_not_know_is_named() -> None:
    content = to_json(recipe("tiny"))
    content["env"]["kind"] = "IsaacConfig"
    with pytest.raises(ValueError, match="'IsaacConfig' is none of MetaWorldConfig, RobosuiteConfig"):
        from_json(Experiment, content)


def test_keys_turn_no_hand_of_seven_numbers() -> None:
    codec = ActionCodec((-1.0,) * 7, (1.0,) * 7, 2, 11)
    config = dataclasses.replace(SQUARE, camera=CameraConfig(azimuth=180))
    right, away = (steer(move, -1, config, codec)[0, 0].tolist() for move in ([1, 0, 0], [0, 1, 0]))
    assert np.allclose(right, [0, 1, 0, 0, 0, 0, -1], atol=1e-6), "a camera that looks along -x has y to its right"
    assert np.allclose(away, [-1, 0, 0, 0, 0, 0, -1], atol=1e-6)


def test_the_small_models_dream_with_seven_numbers() -> None:
    experiment = dataclasses.replace(recipe("tiny"), env=dataclasses.replace(SQUARE, image_size=32))
    policy = experiment.policy.build(ActionCodec((-1.0,) * 7, (1.0,) * 7, 4, 11), 32)
    bounds = torch.ones(experiment.env.action_dim)
    net = experiment.world_model.build(experiment.tokenizer.build(), -bounds, bounds, 8)
    frame = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    seen = Observation(frame=frame, instruction=experiment.env.instructions * 2)
    chunk = policy.codec.decode(policy(**policy.prepare(seen)).argmax(dim=-1))
    imagined, context = net.imagine(net.begin(frame.unsqueeze(1)), chunk, torch.zeros(2, *net.noise_shape(4)))
    assert chunk.shape == (2, 4, 7) and imagined.shape == (2, 1, 32, 32, 3)
    assert torch.allclose(context.travelled.cpu(), chunk.sum(dim=1))


def test_pretrained_weights_of_meta_world_are_refused_for_other_actions(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"4-D actions, but those of Square are 7-D; use --world-model.pretrained none"
    ):
        check_pretrained(dataclasses.replace(recipe("quickstart"), env=SQUARE))
    check_pretrained(recipe("square"))
    with pytest.raises(ValueError, match="wmpo pretrain plays the tasks of Meta-World"):
        pretrain(Job(RunFolder(tmp_path), recipe("square"), 0, quiet=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RobosuiteConfig(task="Squar"), "unknown robosuite task 'Squar'; did you mean Square"),
        (RobosuiteConfig(task="Coffee"), "exists in MimicGen only: --env.mimicgen-path"),
        (RobosuiteConfig(image_size=65), "multiple of 16 in 16..512, not 65"),
        (RobosuiteConfig(mimicgen_path="/no/such"), "/no/such is no checkout of MimicGen.*on PyPI is another program"),
    ],
)
def test_what_cannot_be_played_is_refused_with_the_fix(config: RobosuiteConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.skipif(find_spec("robosuite") is not None, reason="robosuite is installed")
def test_a_missing_robosuite_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"pip install 'wmpo\[robosuite\]'"):
        task_class(SQUARE)


def test_every_task_has_a_sentence_that_the_small_policy_can_read() -> None:
    assert all(0 < len(sentence.encode()) < 64 for sentence in SENTENCES.values())
    assert SQUARE.with_task("StackThree").instructions == (SENTENCES["StackThree"],)


@pytest.mark.parametrize("yaw", [-2.5, -0.3, 0.0, 1.2])
def test_turning_by_the_experts_rotation_reaches_the_wanted_hand(yaw: float) -> None:
    """Rodrigues' formula is the inverse of the rotation vector."""
    start = pointing_down(0.4)
    vector = rotation_vector(pointing_down(yaw) @ start.T)
    assert np.allclose(vector, [0, 0, wrapped(yaw - 0.4)], atol=1e-9)
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ start
    assert np.allclose(turned, pointing_down(yaw), atol=1e-9) and np.isclose(np.linalg.det(turned), 1)
