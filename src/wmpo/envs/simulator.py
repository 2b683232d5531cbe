"""What every simulator offers, so that :class:`wmpo.envs.simulated.SimulatedEnv` plays any of them.

A simulator plays one episode at a time, but its whole state can be taken out and put back, so one process interleaves
any number of episodes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from wmpo.envs.disrupt import NONE, Disruption, camera_moved, redraw
from wmpo.envs.workspace import Workspace
from wmpo.rng import keyed


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """A free camera that looks at the table. By default objects and goal markers of most tasks of Meta-World are
    legible at 64 px."""

    azimuth: float = 150.0
    "Degrees around the vertical axis."
    elevation: float = -30.0
    "Degrees; negative looks down."
    distance: float = 1.15
    "Metres from the point looked at."
    lookat: tuple[float, float, float] = (0.0, 0.66, 0.13)
    "The point looked at, in metres."


class Simulator(Protocol):
    """One simulated robot with its camera."""

    @property
    def config(self) -> SimulatorConfig: ...

    def reset(self, seed: int, disruption: Disruption = NONE) -> None:
        """Goes to the start state that this seed names, or with a positional disruption to one beside it."""

    def step(self, action: Float[np.ndarray, " A"]) -> bool:
        """One step of the policy's clock; True as soon as the task is solved."""

    def push(self, offset: Float[np.ndarray, " 3"]) -> None:
        """Displaces the hand by so many metres and lets it settle. No time of the episode passes."""

    def expert_action(self) -> Float[np.ndarray, " A"]:
        """What the scripted expert does now, in [-1, 1]."""

    def snapshot(self) -> Any:
        """Everything that an episode changes."""

    def restore(self, state: Any) -> None: ...

    def render(self, disruption: Disruption = NONE) -> UInt8[np.ndarray, "h w 3"]:
        """The pictures of all cameras side by side."""

    def close(self) -> None: ...


class SimulatorConfig(Protocol):
    """A task of one simulator; what depends on the simulator is asked of it, and of nothing else."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """One or several. Start states alternate between them (:mod:`wmpo.envs.tasks`)."""

    @property
    def image_size(self) -> int: ...

    @property
    def camera(self) -> CameraConfig: ...

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the cameras, whose pictures stand side by side in a frame: ``camera`` is ``main``, the others are
        the simulator's own."""

    @property
    def action_dim(self) -> int:
        """A."""

    @property
    def rate(self) -> int:
        """Actions per second."""

    def with_task(self, task: str) -> SimulatorConfig:
        """The same with this task alone."""

    @property
    def instructions(self) -> tuple[str, ...]:
        """The tasks as sentences, which tell them apart."""

    def workspace(self) -> Workspace:
        """Of the first task."""

    def command(self, x: float, y: float, z: float, gripper: float) -> list[float]:
        """The action that moves the hand only; at gripper 1 it closes, at -1 it opens."""

    def validate(self) -> None:
        """Raises ValueError for what cannot be played."""

    def build(self) -> Simulator:
        """A simulator of the first task."""


def check_image_size(size: int) -> None:
    if not 16 <= size <= 512 or size % 16:
        raise ValueError(f"env.image_size must be a multiple of 16 in 16..512, not {size}")


def check_cameras(chosen: tuple[str, ...], known: tuple[str, ...]) -> None:
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
        raise ValueError(
            f"env.more_cameras {' '.join(chosen)} must be different ones of {', '.join(known)}; that of env.camera is "
            "there anyway"
        )


def choose_gl() -> None:
    """Asks MuJoCo for off-screen rendering, unless the user chose a backend. Must run before mujoco is imported."""
    if "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules and sys.platform == "linux":
        os.environ["MUJOCO_GL"] = "egl"


GL_HELP = (
    "MuJoCo cannot render off screen here ({reason}). Install the GL libraries, e.g. on Debian or Ubuntu:\n"
    "  apt-get install -y libegl1 libgl1 libgl1-mesa-dri libgles2 libosmesa6\n"
    "on Fedora: dnf install mesa-libEGL mesa-libGL mesa-dri-drivers; or set MUJOCO_GL=osmesa or MUJOCO_GL=egl."
)


def make_renderer(model: Any, image_size: int) -> Any:
    """For pictures of twice the size, without multisampling. Raises RuntimeError where there is no OpenGL."""
    import mujoco

    model.vis.quality.offsamples = 0
    model.vis.global_.offwidth = model.vis.global_.offheight = 2 * image_size
    try:
        return mujoco.Renderer(model, 2 * image_size, 2 * image_size)
    except Exception as error:  # GL libraries raise many types; all mean the same to the user
        raise RuntimeError(GL_HELP.format(reason=error)) from error


def draw(
    renderer: Any, model: Any, data: Any, config: SimulatorConfig, disruption: Disruption, option: Any = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The cameras' pictures, drawn at twice the size and averaged (anti-aliasing). The stock settings draw 4096-pixel
    shadow maps, which is what makes MuJoCo slow in software. A disruption moves the main camera only."""
    from mujoco import MjvCamera, mjtCamera, mjtRndFlag

    camera, view = config.camera, MjvCamera()
    turn, shift = camera_moved(disruption, camera.azimuth)
    view.type = mjtCamera.mjCAMERA_FREE
    view.azimuth, view.elevation, view.distance = camera.azimuth + turn, camera.elevation, camera.distance
    view.lookat[:] = camera.lookat + shift
    pictures = []
    for seen in (view, *config.views[1:]):
        renderer.update_scene(data, camera=seen, scene_option=option)
        redraw(disruption, model, renderer.scene)
        for flag in (mjtRndFlag.mjRND_SHADOW, mjtRndFlag.mjRND_REFLECTION, mjtRndFlag.mjRND_SKYBOX):
            renderer.scene.flags[flag] = 0
        size = config.image_size
        big = renderer.render().reshape(size, 2, size, 2, 3)
        pictures.append(np.rint(big.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8))
    return np.concatenate(pictures, axis=1)


def expert_episode(
    sim: Simulator, seed: int, noise: float, max_steps: int, frame_stride: int
) -> tuple[UInt8[np.ndarray, "L h w 3"], Float[np.ndarray, "S A"], int]:
    """Plays the scripted expert with Gaussian action noise (the noisy action is what is executed and recorded).

    Returns frames (the start and one every ``frame_stride`` steps), actions, and after how many actions the task was
    solved (-1: never). The episode goes on to the next frame after success.
    """
    rng = keyed(seed, "expert")
    sim.reset(seed)
    frames, solved_at = [sim.render()], -1
    actions: list[np.ndarray] = []
    while len(actions) < max_steps:
        action = sim.expert_action() + noise * rng.standard_normal(sim.config.action_dim)
        action = np.clip(action, -1, 1).astype(np.float32)
        solved = sim.step(action)
        actions.append(action)
        if solved and solved_at < 0:
            solved_at = len(actions)
        if len(actions) % frame_stride == 0:
            frames.append(sim.render())
            if solved_at >= 0:
                break
    return np.stack(frames), np.stack(actions), solved_at


def play_episode(
    sim: Simulator, seed: int, num_steps: int
) -> tuple[UInt8[np.ndarray, "L h w 3"], Float[np.ndarray, "S A"], int]:
    """What a world model is pretrained on: an expert of random clumsiness that loses interest at a random time and then
    wanders. Same result as :func:`expert_episode`, but it never ends early and renders every step."""
    rng = keyed(seed, "play")
    sim.reset(seed)
    noise, faithful = rng.uniform(0.1, 0.8), rng.uniform(-0.3, 1.5) * num_steps
    num = sim.config.action_dim
    drift = rng.standard_normal(num)
    frames, actions, solved_at = [sim.render()], [], -1
    for step in range(num_steps):
        drift = 0.8 * drift + 0.6 * rng.standard_normal(num)
        wish = sim.expert_action() + noise * rng.standard_normal(num) if step < faithful else drift
        action = np.clip(wish, -1, 1).astype(np.float32)
        solved = sim.step(action)
        actions.append(action)
        frames.append(sim.render())
        if solved and solved_at < 0:
            solved_at = step + 1
    return np.stack(frames), np.stack(actions), solved_at
