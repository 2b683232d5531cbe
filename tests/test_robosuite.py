"""robosuite itself: starts, experts, and that episodes depend on nothing but their starts and actions.

Needs the extra ``robosuite``, which the default tests do not install: ``pytest -m external tests/test_robosuite.py``.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from wmpo.data.splits import simulator_starts, start_seeds
from wmpo.envs.disrupt import Disruption
from wmpo.envs.ledger import Ledger
from wmpo.envs.robosuite import RobosuiteConfig, RobosuiteSim, seeded
from wmpo.envs.simulated import Purpose, SimulatedEnv

pytest.importorskip("robosuite")
pytestmark = pytest.mark.external

CONFIG = RobosuiteConfig(task="StackThree", image_size=32)
STARTS = start_seeds("validation", 0, 0, 4)


@pytest.fixture(scope="module")
def sim() -> Iterator[RobosuiteSim]:
    sim = CONFIG.build()
    yield sim
    sim.close()


def wander(sim: RobosuiteSim, seed: int, num_steps: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [positions(sim) for _ in range(num_steps) if sim.step(rng.uniform(-1, 1, 7)) is not None]


def positions(sim: RobosuiteSim) -> np.ndarray:
    return np.concatenate([sim._data.qpos, sim._data.qvel])


def test_a_start_depends_on_its_seed_only_and_leaves_numpys_generator_alone(sim: RobosuiteSim) -> None:
    np.random.seed(7)
    wanted = np.random.random()
    np.random.seed(7)
    found = {}
    for seed in (STARTS[0], STARTS[1], STARTS[0]):
        sim.reset(seed)
        first = found.setdefault(seed, positions(sim))
        assert np.array_equal(first, positions(sim))
    assert not np.array_equal(found[STARTS[0]], found[STARTS[1]])
    assert np.random.random() == wanted


def test_cubes_begin_where_mimicgens_do(sim: RobosuiteSim) -> None:
    places = []
    for seed in range(STARTS[0], STARTS[0] + 30):
        sim.reset(seed)
        places.append([sim.env.position(name) for name in ("cubeA", "cubeB", "cubeC")])
    x, y = np.array(places)[..., 0], np.array(places)[..., 1]
    for values in (x, y):
        assert -0.1 <= values.min() < -0.08 and 0.08 < values.max() <= 0.1


def test_an_interrupted_episode_goes_on_bit_by_bit(sim: RobosuiteSim) -> None:
    """After another episode in between; the state holds the controller's goal and the gripper's command too."""
    sim.reset(STARTS[0])
    wander(sim, 1, 4)
    state = sim.snapshot()
    sim.restore(state)
    whole = wander(sim, 2, 4)
    sim.reset(STARTS[1])
    wander(sim, 3, 3)
    sim.restore(state)
    assert all(np.array_equal(a, b) for a, b in zip(wander(sim, 2, 4), whole, strict=True))


def test_steps_are_robosuites_own(sim: RobosuiteSim) -> None:
    actions = np.random.default_rng(5).uniform(-1, 1, (6, 7))
    sim.reset(STARTS[2])
    for action in actions:
        sim.step(action)
    ours = positions(sim)
    with seeded(STARTS[2]):
        sim.env.reset()
    for action in actions:
        sim.env.step(action)
    assert np.allclose(ours, positions(sim), atol=1e-5)


def test_what_is_drawn_is_the_scene_in_colour_and_disruptions_change_it(sim: RobosuiteSim) -> None:
    sim.reset(STARTS[0])
    plain = sim.render().astype(int)
    assert plain.shape == (32, 32, 3) and (plain[..., 0] - plain[..., 2]).max() > 60, "a red cube"
    for disruption in (Disruption("light", 0.5), Disruption("table", 1.0), Disruption("camera-turn", 10)):
        assert np.abs(sim.render(disruption) - plain).mean() > 3
    objects = np.abs(sim.render(Disruption("object", 1.0)) - plain).sum(axis=2) > 20
    assert 0 < objects.mean() < 0.2, "cubes, not the table"
    assert np.array_equal(sim.render(), plain)


def test_a_start_out_of_range_has_one_object_there(sim: RobosuiteSim) -> None:
    sim.reset(STARTS[0], Disruption("position", 4))
    places = np.array([sim.env.position(name)[:2] for name in ("cubeA", "cubeB", "cubeC")])
    assert (np.abs(places) > 0.1).sum() == 1 and np.abs(places).max() == pytest.approx(0.14)


def test_a_push_displaces_the_hand_and_the_gripper_stays(sim: RobosuiteSim) -> None:
    sim.reset(STARTS[0])
    before, command = sim.env._eef_xpos.copy(), sim.env.robots[0].gripper.current_action.copy()
    sim.push(np.array([0.0, 0.05, 0.0]))
    assert np.allclose(sim.env._eef_xpos - before, [0, 0.05, 0], atol=0.006)
    assert np.allclose(sim.env.robots[0].gripper.current_action, command)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["Square", "StackThree", "ThreePieceAssembly"])
def test_the_expert_solves_its_task_and_is_counted(task: str, tmp_path: Path) -> None:
    ledger, config = Ledger(tmp_path / "ledger.jsonl"), dataclasses.replace(CONFIG, task=task)
    with SimulatedEnv(config, chunk_size=8, max_chunks=48, frame_stride=8, ledger=ledger, num_workers=1) as env:
        env.purpose = Purpose("demonstrations", "expert")
        played = env.play_expert(STARTS, noise=0.0, frame_stride=8)
        assert sum(solved > 0 for _, _, solved in played) >= 3
        assert ledger.count() == {"demonstrations": 4}
        frames, actions, solved = next(each for each in played if each[2] > 0)
        assert actions.shape[1] == 7 and frames.shape[1:] == (32, 32, 3)
        row = [solved for *_, solved in played].index(solved)
        env.reset(simulator_starts(STARTS[row : row + 1], config.instructions))
        for chunk in torch.from_numpy(actions).split(8):
            step = env.step(chunk.unsqueeze(0))
        assert step.terminated.tolist() == [True], "its actions, played as a policy's, solve the task again"
        assert int(step.steps) == (solved - 1) % 8 + 1


def test_another_mimicgen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else has that name, such as PyPI's, does not play."""
    checkout, other = tmp_path / "checkout", tmp_path / "site-packages"
    (checkout / "mimicgen" / "envs" / "robosuite").mkdir(parents=True)
    (checkout / "mimicgen" / "envs" / "robosuite" / "nut_assembly.py").touch()
    (other / "mimicgen").mkdir(parents=True)
    (other / "mimicgen" / "__init__.py").touch()
    monkeypatch.syspath_prepend(other)
    monkeypatch.delitem(sys.modules, "mimicgen", raising=False)
    importlib.import_module("mimicgen")
    with pytest.raises(ValueError, match=r"another mimicgen was imported before: .*site-packages.* on PyPI is another"):
        RobosuiteConfig(mimicgen_path=str(checkout)).build()
    del sys.modules["mimicgen"]
