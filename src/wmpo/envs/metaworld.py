"""One Meta-World simulator that plays many episodes in turn, with a camera and a renderer of our own.

Meta-World steps at 80 Hz. One environment step here holds an action for ``action_repeat`` of those (4: 20 Hz), which
its scripted experts tolerate.
"""

from __future__ import annotations

import copy
import difflib
import math
import warnings
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from wmpo.envs.disrupt import NONE, Disruption, out_of_range
from wmpo.envs.simulator import CameraConfig, check_cameras, check_image_size, choose_gl, draw, make_renderer
from wmpo.envs.tasks import check_different
from wmpo.envs.workspace import Workspace
from wmpo.views import ONE_VIEW


@dataclass(frozen=True, kw_only=True)
class MetaWorldConfig:
    """A Meta-World task seen through one camera or several."""

    task: str = "drawer-open-v3"
    "Name of a Meta-World v3 task."
    more_tasks: tuple[str, ...] = ()
    "Further ones for the same policy, world model and classifier. Start states alternate between all tasks."
    image_size: int = 64
    "Height and width of a frame in pixels."
    action_repeat: int = 4
    "Simulator steps (80 Hz) for which one action is held."
    camera: CameraConfig = field(default_factory=CameraConfig)
    more_cameras: tuple[str, ...] = ()
    "Further ones, in this order: topview, corner, corner2, corner3, corner4, behindGripper, gripperPOV."

    @property
    def views(self) -> tuple[str, ...]:
        return (*ONE_VIEW, *self.more_cameras)

    @property
    def action_dim(self) -> int:
        """Hand movement in x, y, z and the gripper."""
        return 4

    @property
    def rate(self) -> int:
        return round(80 / max(self.action_repeat, 1))  # protocols are checked by reading it, before ``validate``

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task, *self.more_tasks)

    def with_task(self, task: str) -> MetaWorldConfig:
        return replace(self, task=task, more_tasks=())

    @property
    def instructions(self) -> tuple[str, ...]:
        """The tasks' names as sentences: ``drawer-open-v3`` -> ``drawer open``."""
        return tuple(
            " ".join(part for part in task.split("-") if not (part[0] == "v" and part[1:].isdigit()))
            for task in self.tasks
        )

    def workspace(self) -> Workspace:
        """The limits of the simulator's controller for this task, from where the hand begins; the gripper has none."""
        check_task(self.task)
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        env, metres = ALL_V3_ENVIRONMENTS[self.task](), 0.01 * self.action_repeat
        low, high = ((limit - env.hand_init_pos) / metres for limit in (env.mocap_low, env.mocap_high))
        return Workspace(low=(*low.tolist(), -math.inf), high=(*high.tolist(), math.inf))

    def command(self, x: float, y: float, z: float, gripper: float) -> list[float]:
        return [x, y, z, gripper]

    def build(self) -> MetaWorldSim:
        return MetaWorldSim(self)

    def validate(self) -> None:
        """Raises ValueError with the nearest names for an unknown task, and for sizes that cannot be rendered."""
        for task in self.tasks:
            check_task(task)
        check_different(self.tasks)
        check_image_size(self.image_size)
        check_cameras(self.more_cameras, CAMERAS)
        if self.action_repeat < 1:
            raise ValueError(f"env.action_repeat must be at least 1, not {self.action_repeat}")


CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
"""Those that every task of Meta-World has."""


def all_tasks() -> list[str]:
    choose_gl()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return sorted(ALL_V3_ENVIRONMENTS)


def check_task(task: str) -> None:
    choose_gl()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    if task not in ALL_V3_ENVIRONMENTS:
        near = difflib.get_close_matches(task, ALL_V3_ENVIRONMENTS, n=3, cutoff=0.3)
        raise ValueError(f"unknown Meta-World task {task!r}; did you mean {', '.join(near) or 'drawer-open-v3'}?")


SETTLING = 12
"""Simulator steps (80 Hz) after which a pushed hand has come to rest."""


class MetaWorldSim:
    """A simulator whose whole state can be swapped, so that one process interleaves any number of episodes.

    Every chunk starts from a restored state, so an episode does not depend on its neighbours.
    """

    # Model fields that Meta-World's resets move (drawers, doors, walls, goal sites).
    _MODEL_FIELDS = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos")

    def __init__(self, config: MetaWorldConfig) -> None:
        check_task(config.task)
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        # experts ask for more than actions allow, and are clipped: nothing that a user could do anything about
        warnings.filterwarnings("ignore", message="Constant.s. may be too high", module="metaworld")
        self.config = config
        self._mujoco = mujoco
        env = ALL_V3_ENVIRONMENTS[config.task]()
        env._partially_observable = False  # the expert needs the goal; policies never see this vector
        env.__dict__.pop("sawyer_observation_space", None)  # cached bounds would clip the goal to zero
        env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
        env.max_path_length = 10**9  # our clock ends episodes
        self.env = env
        expert: Any = ENV_POLICY_MAP[config.task]  # typed as abstract there
        self._expert = expert()
        self._renderer: Any = None
        self._resets: dict[tuple[int, Disruption], tuple[Any, np.ndarray]] = {}

    def reset(self, seed: int, disruption: Disruption = NONE) -> None:
        """Goes to the start state that this seed names, or with a positional disruption to one beside it."""
        key = seed, disruption if disruption.moves else NONE
        if key not in self._resets:
            self.env.seed(seed)
            with out_of_range(disruption, self.env, seed):
                obs, _ = self.env.reset()
            self._obs = obs
            if len(self._resets) > 2048:
                self._resets.clear()
            self._resets[key] = (self.snapshot(), obs)
        state, self._obs = self._resets[key]
        self.restore(state)

    def step(self, action: Float[np.ndarray, " A"]) -> bool:
        """Holds the action for ``action_repeat`` simulator steps; True as soon as the task is solved."""
        solved = False
        for _ in range(self.config.action_repeat):
            self._obs, _, _, _, info = self.env.step(np.clip(action, -1, 1))
            solved = solved or info["success"] > 0.5
        return solved

    def push(self, offset: Float[np.ndarray, " 3"]) -> None:
        """Displaces the hand by so many metres and lets it settle, the gripper as it is. No time of the episode passes.

        At the border of the workspace, where the controller would stop the hand, it goes the other way.
        """
        env, target = self.env, self.env.data.mocap_pos[0] + offset
        turned = np.where((target < env.mocap_low) | (target > env.mocap_high), -offset, offset)
        steps = max(1, math.ceil(np.abs(turned).max() / env.action_scale))
        action = np.append(turned / env.action_scale / steps, env.data.ctrl[0])
        for k in range(steps + SETTLING):
            self._obs = env.step(action if k < steps else np.append(np.zeros(3), action[3]))[0]

    def expert_action(self) -> Float[np.ndarray, " A"]:
        return np.clip(self._expert.get_action(self._obs), -1, 1)

    def snapshot(self) -> SimpleNamespace:
        """Everything that an episode changes: physics, moved model parts and Meta-World's Python attributes."""
        mujoco, model, data = self._mujoco, self.env.model, self.env.data
        physics = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        plain = (np.ndarray, float, int, bool, str, tuple, list, np.generic, type(None))
        attributes = {k: copy.deepcopy(v) for k, v in self.env.__dict__.items() if isinstance(v, plain)}
        moved = {name: getattr(model, name).copy() for name in self._MODEL_FIELDS}
        return SimpleNamespace(physics=physics, attributes=attributes, moved=moved, obs=self._obs.copy())

    def restore(self, state: SimpleNamespace) -> None:
        mujoco, model, data = self._mujoco, self.env.model, self.env.data
        for name, value in state.moved.items():
            getattr(model, name)[:] = value
        mujoco.mj_setState(model, data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.env.__dict__.update(copy.deepcopy(state.attributes))
        mujoco.mj_forward(model, data)
        for site in self.env._target_site_config:
            self.env._set_pos_site(*site)
        self._obs = state.obs.copy()

    def render(self, disruption: Disruption = NONE) -> UInt8[np.ndarray, "h w 3"]:
        if self._renderer is None:
            self._renderer = make_renderer(self.env.model, self.config.image_size)
        return draw(self._renderer, self.env.model, self.env.data, self.config, disruption)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
