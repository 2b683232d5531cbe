"""One robosuite simulator: a Panda arm at 20 Hz that takes 7-D movements of its hand (operational space control).

The tasks of the paper are MimicGen's (arXiv 2310.17596). Square is in robosuite itself with the same ranges; StackThree
and ThreePieceAssembly are built anew from boxes (:mod:`wmpo.envs.robosuite_tasks`). MimicGen's own classes play instead
where the user has a checkout of them: their licence allows research only, so nothing of them is here.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from wmpo.envs.disrupt import NONE, Disruption, beyond_range
from wmpo.envs.robosuite_experts import EXPERTS, Expert
from wmpo.envs.simulator import CameraConfig, check_cameras, check_image_size, choose_gl, draw, make_renderer
from wmpo.envs.tasks import check_different
from wmpo.envs.workspace import Workspace
from wmpo.views import ONE_VIEW

SENTENCES = {
    "Square": "put the square nut on the peg",
    "StackThree": "stack the three cubes",
    "ThreePieceAssembly": "put the three pieces together",
    "Coffee": "make coffee",
}
"""Tasks and what a policy is told."""
MIMICGEN_ONLY = ("Coffee",)
"""Its machine is made of meshes that belong to MimicGen."""


@dataclass(frozen=True, kw_only=True)
class RobosuiteConfig:
    """A robosuite task seen through one camera or several."""

    task: str = "Square"
    "Square, StackThree or ThreePieceAssembly; with --env.mimicgen-path also Coffee."
    more_tasks: tuple[str, ...] = ()
    "Further ones for the same policy, world model and classifier. Start states alternate between all tasks."
    image_size: int = 64
    "Height and width of a frame in pixels."
    camera: CameraConfig = field(
        default_factory=lambda: CameraConfig(azimuth=180.0, elevation=-40.0, distance=0.9, lookat=(-0.04, 0.06, 0.9))
    )
    more_cameras: tuple[str, ...] = ()
    "Further ones, in this order: frontview, birdview, agentview, sideview, robot0_robotview, robot0_eye_in_hand."
    mimicgen_path: str = ""
    "A checkout of github.com/NVlabs/mimicgen: its class of the task plays (D0) instead of ours."

    @property
    def views(self) -> tuple[str, ...]:
        return (*ONE_VIEW, *self.more_cameras)

    @property
    def action_dim(self) -> int:
        """Movement of the hand in x, y, z (units of 5 cm), its rotation (axis times angle, units of 0.5 rad), and the
        gripper."""
        return 7

    @property
    def rate(self) -> int:
        return RATE

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task, *self.more_tasks)

    def with_task(self, task: str) -> RobosuiteConfig:
        return replace(self, task=task, more_tasks=())

    @property
    def instructions(self) -> tuple[str, ...]:
        return tuple(SENTENCES[task] for task in self.tasks)

    def workspace(self) -> Workspace:
        """The controller stops at no border."""
        return Workspace.unlimited(self.action_dim)

    def command(self, x: float, y: float, z: float, gripper: float) -> list[float]:
        return [x, y, z, 0.0, 0.0, 0.0, gripper]

    def build(self) -> RobosuiteSim:
        return RobosuiteSim(self)

    def validate(self) -> None:
        """Raises ValueError for an unknown task, a size that cannot be rendered, or what is not installed."""
        for task in self.tasks:
            if task not in SENTENCES:
                near = difflib.get_close_matches(task, SENTENCES, n=2, cutoff=0.3) or list(SENTENCES)
                raise ValueError(f"unknown robosuite task {task!r}; did you mean {' or '.join(near)}?")
        check_different(self.tasks)
        check_image_size(self.image_size)
        check_cameras(self.more_cameras, CAMERAS)
        if self.mimicgen_path:
            check_checkout(Path(self.mimicgen_path))
        elif only := set(self.tasks) & set(MIMICGEN_ONLY):
            raise ValueError(f"task {only.pop()} exists in MimicGen only: --env.mimicgen-path CHECKOUT. {MIMICGEN}")


CAMERAS = ("frontview", "birdview", "agentview", "sideview", "robot0_robotview", "robot0_eye_in_hand")
"""Those that every arena of robosuite and its Panda have."""
RATE = 20
"""Actions per second."""
TRAVEL = 0.05
"""Metres of hand movement that an action of 1 asks for."""
INSTALL = "robosuite is not installed; run: pip install 'wmpo[robosuite]' (robosuite 1.4.1 with mujoco 3.3.0)"
MIMICGEN = (
    "It is no dependency, as its licence allows research only: git clone https://github.com/NVlabs/mimicgen. The "
    "package named mimicgen on PyPI is another program"
)


def check_checkout(path: Path) -> None:
    if not (path / "mimicgen" / "envs" / "robosuite" / "nut_assembly.py").is_file():
        raise ValueError(f"env.mimicgen_path: {path} is no checkout of MimicGen. {MIMICGEN}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """robosuite and MimicGen tell at import of settings and packages that nothing here uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def task_class(config: RobosuiteConfig) -> Any:
    """The class of the environment. Raises ValueError for what is not installed."""
    config.validate()
    choose_gl()
    if find_spec("robosuite") is None:
        raise ValueError(INSTALL)
    with quiet():
        if config.mimicgen_path:
            return _mimicgen_class(config)
        from wmpo.envs import robosuite_tasks

    return robosuite_tasks.TASKS[config.task]


def _mimicgen_class(config: RobosuiteConfig) -> Any:
    path = Path(config.mimicgen_path).resolve()
    if sys.path[0] != str(path):
        sys.path.insert(0, str(path))
    file = {"Square": "nut_assembly", "StackThree": "stack", "ThreePieceAssembly": "three_piece_assembly"}
    try:
        package = importlib.import_module("mimicgen")
        if not Path(str(package.__file__)).resolve().is_relative_to(path):
            raise ValueError(f"another mimicgen was imported before: {package.__file__}. {MIMICGEN}")
        module = importlib.import_module(f"mimicgen.envs.robosuite.{file.get(config.task, config.task.lower())}")
    except ImportError as error:
        raise ValueError(f"MimicGen in {path} cannot be imported: {error}") from error
    return getattr(module, f"{config.task}_D0")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """robosuite draws its start states from NumPy's global generator."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


class RobosuiteSim:
    """A :class:`wmpo.envs.simulator.Simulator`. Observations, rewards and renderer of robosuite are not used."""

    def __init__(self, config: RobosuiteConfig) -> None:
        kind = task_class(config)
        import mujoco
        from robosuite.controllers import load_controller_config

        self.config = config
        self._mujoco = mujoco
        self.env = kind(
            robots="Panda",
            controller_configs=load_controller_config(default_controller="OSC_POSE"),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            control_freq=RATE,
            ignore_done=True,
            hard_reset=False,
        )
        self._substeps = round(1 / (RATE * self.env.model_timestep))
        self._expert: Expert | None = None
        self._renderer: Any = None

    @property
    def _model(self) -> Any:
        return self.env.sim.model._model

    @property
    def _data(self) -> Any:
        return self.env.sim.data._data

    def reset(self, seed: int, disruption: Disruption = NONE) -> None:
        """Goes to the start state that this seed names, or with a positional disruption to one beside it."""
        with seeded(seed):
            self.env.reset()
        if disruption.moves:
            self._displace(disruption, seed)
        self._expert = EXPERTS[self.config.task](self.env) if self.config.task in EXPERTS else None

    def _displace(self, disruption: Disruption, seed: int) -> None:
        """Moves one object beyond the range of the resets, to where it touches no other one."""
        initializer, data = self.env.placement_initializer, self.env.sim.data
        samplers = getattr(initializer, "samplers", {"": initializer}).values()
        every = [(item, data.get_joint_qpos(item.joints[0]).copy(), s) for s in samplers for item in s.mujoco_objects]
        items, poses, ranges = zip(*(each for each in every if np.abs(each[1][:2]).max() < 1), strict=True)
        drawn = np.concatenate([pose[:3] for pose in poses])  # of what is on the table: Square's other nut is not
        low, high = (
            np.concatenate([[s.x_range[i] + s.reference_pos[0], s.y_range[i] + s.reference_pos[1], 0] for s in ranges])
            for i in (0, 1)
        )
        radii = np.array([item.horizontal_radius for item in items])
        for choice in range(100):
            moved = beyond_range(low, high, drawn, disruption.strength / 100, seed, choice).reshape(-1, 3)
            apart = np.linalg.norm(moved[:, None, :2] - moved[None, :, :2], axis=-1) + 10 * np.eye(len(moved))
            if (apart > radii[:, None] + radii[None]).all():
                break
        else:
            raise ValueError(f"{self.config.task} has no room for a start {disruption.strength:g} cm out of range")
        for item, pose, place in zip(items, poses, moved, strict=True):
            data.set_joint_qpos(item.joints[0], np.concatenate([place, pose[3:]]))
        self.env.sim.forward()

    def step(self, action: Float[np.ndarray, " A"]) -> bool:
        """Holds the action for 1/20 s; True if the task is solved then."""
        clipped, model, data = np.clip(action, -1, 1), self._model, self._data
        for k in range(self._substeps):  # as robosuite's step, which computes the first half twice
            self._mujoco.mj_step1(model, data)
            self.env._pre_action(clipped, policy_step=k == 0)
            self._mujoco.mj_step2(model, data)
        return bool(self.env._check_success())

    def push(self, offset: Float[np.ndarray, " 3"]) -> None:
        """Displaces the hand by so many metres and lets it settle, the gripper as it is. No time of the episode
        passes."""
        target = self.env._eef_xpos + offset
        for _ in range(SETTLING):
            x, y, z = (target - self.env._eef_xpos) / TRAVEL
            self.step(np.array(self.config.command(x, y, z, gripper=0.0)))

    def expert_action(self) -> Float[np.ndarray, " A"]:
        if self._expert is None:
            fix = "import MimicGen's demonstrations (wmpo data import) and name them with --demos.recorded"
            raise ValueError(f"{self.config.task} has no scripted expert; {fix}")
        return self._expert.action()

    def snapshot(self) -> SimpleNamespace:
        """Everything that an episode changes: physics, the controller's goals and the gripper's command."""
        mujoco, robot = self._mujoco, self.env.robots[0]
        physics = np.empty(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self._model, self._data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        plain = (np.ndarray, float, int, bool, np.generic, type(None))
        controller = {k: copy.deepcopy(v) for k, v in robot.controller.__dict__.items() if isinstance(v, plain)}
        return SimpleNamespace(physics=physics, controller=controller, gripper=np.copy(robot.gripper.current_action))

    def restore(self, state: SimpleNamespace) -> None:
        mujoco, robot = self._mujoco, self.env.robots[0]
        mujoco.mj_setState(self._model, self._data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        robot.controller.__dict__.update(copy.deepcopy(state.controller))
        robot.gripper.current_action = state.gripper.copy()
        mujoco.mj_forward(self._model, self._data)

    def render(self, disruption: Disruption = NONE) -> UInt8[np.ndarray, "h w 3"]:
        """Without collision shapes and sites."""
        if self._renderer is None:
            self._renderer = make_renderer(self._model, self.config.image_size)
        option = self._mujoco.MjvOption()
        option.geomgroup[0], option.geomgroup[1], option.sitegroup[:] = 0, 1, 0
        return draw(self._renderer, self._model, self._data, self.config, disruption, option)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


SETTLING = 12
"""Actions after which a pushed hand has come to rest."""
