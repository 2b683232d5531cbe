"""A robot that is a process: Meta-World behind LeRobot's interface, living in its own time, with a robot's faults.

Unlike :mod:`wmpo.envs.simulated` it waits for nobody. Every period it executes what was sent last, or stands still, and
takes a picture, which arrives late or never.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import numpy as np

from wmpo.envs.metaworld import MetaWorldConfig, MetaWorldSim
from wmpo.envs.processes import begin, end
from wmpo.rng import keyed
from wmpo.robots.lerobot import LeRobotRobot
from wmpo.robots.protocol import Axis, RobotError, Setup, Signal

ACTIONS = ("delta_x", "delta_y", "delta_z", "gripper")
CAMERA = "front"
AT_REST = 10
"""Periods without an action after which nothing moves any longer: then the last picture is taken again for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What can go wrong, in the robot's time. Frames and actions are counted from each reset of the scene."""

    latency: float = 0.0
    "Seconds until a picture arrives."
    dropped: float = 0.0
    "Share of pictures that never arrive."
    freeze_after: int = -1
    "Actions after which the camera gives no new picture; -1: never."
    die_after: int = -1
    "Actions, over all episodes, after which the robot is gone; -1: never."


@dataclass(slots=True)
class _Life:
    """The state of the process."""

    sim: MetaWorldSim
    faults: Faults
    latency: float
    "Seconds of the clock."
    pending: np.ndarray | None = None
    gripper: float = -1.0
    idle: int = 0
    steps: int = 0
    "Actions since the reset."
    total: int = 0
    ticks: int = 0
    solved: bool = False
    shots: deque[tuple[float, np.ndarray]] = field(default_factory=lambda: deque(maxlen=64))
    "When pictures were taken, and the pictures."

    def reset(self, seed: int) -> None:
        self.sim.reset(seed)
        self.pending, self.gripper, self.idle, self.steps, self.solved = None, -1.0, AT_REST, 0, False
        self.shots.clear()
        self.shots.append((time.perf_counter() - self.latency, self.sim.render()))

    def tick(self) -> None:
        """One period: an action, or standing still, and a picture."""
        self.ticks += 1
        if self.pending is not None:
            self.gripper, self.idle, self.steps, self.total = float(self.pending[3]), 0, self.steps + 1, self.total + 1
        else:
            self.idle += 1
        at_rest = self.idle > AT_REST
        if not at_rest:
            action = np.array([0.0, 0.0, 0.0, self.gripper]) if self.pending is None else self.pending
            self.solved = self.sim.step(action) or self.solved
        self.pending = None
        if 0 <= self.faults.die_after <= self.total:
            os._exit(1)
        frozen = 0 <= self.faults.freeze_after <= self.steps
        if not frozen and keyed(0, "robot/dropped", self.ticks).random() >= self.faults.dropped:
            self.shots.append((time.perf_counter(), self.shots[-1][1] if at_rest else self.sim.render()))

    def answer(self, name: str, *args: Any) -> Any:
        if name == "reset":
            return self.reset(*args)
        if name == "act":
            self.pending = args[0]
            return None
        if name == "solved":
            return self.solved
        assert name == "observe", name
        now = time.perf_counter()
        arrived = [shot for shot in self.shots if shot[0] <= now - self.latency] or [self.shots[0]]
        taken, frame = arrived[-1]
        return self.sim.env.get_endeff_pos() - self.sim.env.hand_init_pos, frame, taken


def _serve(pipe: Connection, config: MetaWorldConfig, faults: Faults, period: float, latency: float) -> None:
    """The loop of the process: it keeps its time and answers in between."""
    try:
        life = _Life(MetaWorldSim(config), faults, latency)
        life.reset(0)
    except Exception as error:
        pipe.send(("error", str(error)))
        return
    pipe.send(("ok", None))
    due = time.perf_counter() + period
    while True:
        if not pipe.poll(max(0.0, due - time.perf_counter())):
            life.tick()
            due = max(due + period, time.perf_counter())
            continue
        try:
            name, *args = pipe.recv()
        except EOFError:
            break
        if name == "close":
            break
        try:
            pipe.send(("ok", life.answer(name, *args)))
        except Exception:
            pipe.send(("error", traceback.format_exc()))
    life.sim.close()


class SimulatedArm:
    """LeRobot's ``Robot`` interface over such a process. Actions move the hand; positions are in metres from where it
    begins. ``cameras`` tell when their picture was taken, as LeRobot's do."""

    name = "simulated arm"

    def __init__(
        self, config: MetaWorldConfig, *, rate: float, speed: float = 1.0, faults: Faults | None = None
    ) -> None:
        self._config, self._faults = config, faults or Faults()
        self._period, self._speed = 1 / (rate * speed), speed
        self._process: Any = None
        self.cameras = {CAMERA: SimpleNamespace(latest_timestamp=0.0)}

    def __str__(self) -> str:
        return self.name

    @property
    def observation_features(self) -> dict[str, Any]:
        size = self._config.image_size
        return {"x": float, "y": float, "z": float, CAMERA: (size, size, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(ACTIONS, float)

    @property
    def is_connected(self) -> bool:
        return self._process is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._config.validate()
        latency = self._faults.latency / self._speed
        self._pipe, self._process = begin(_serve, self._config, self._faults, self._period, latency)
        self._receive()

    def get_observation(self) -> dict[str, Any]:
        hand, frame, taken = self.ask("observe")
        self.cameras[CAMERA].latest_timestamp = taken  # processes of one machine share this clock
        return {**dict(zip("xyz", map(float, hand), strict=True)), CAMERA: frame}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.ask("act", np.array([action[name] for name in ACTIONS]))
        return action

    def disconnect(self) -> None:
        process, self._process = self._process, None
        end([(self._pipe, process)])

    def ask(self, *message: Any) -> Any:
        """One request to the process. Raises ConnectionError when it is gone."""
        if self._process is None:
            raise ConnectionError("not connected")
        try:
            self._pipe.send(message)
        except OSError as error:
            raise ConnectionError("its process ended") from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            status, content = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ConnectionError("its process ended") from error
        if status != "ok":
            raise RuntimeError(content)
        return content


class SimulatedOperator:
    """Lays out the scene that the episode's number names, never lets go of the key, and marks success when the task is
    solved. Gives up nothing: an episode whose time is over has failed."""

    def __init__(self, arm: SimulatedArm, first: int) -> None:
        self._arm, self._first = arm, first
        self.told: list[str] = []

    def reset(self, episode: int, total: int) -> bool:
        self._ask("reset", self._first + episode)
        return True

    def poll(self) -> Signal:
        return Signal.SUCCESS if self._ask("solved") else Signal.GO_ON

    def judge(self, why: str) -> Signal:
        return Signal.SUCCESS if self._ask("solved") else Signal.FAILURE

    def _ask(self, *message: Any) -> Any:
        try:
            return self._arm.ask(*message)
        except ConnectionError as error:
            raise RobotError(f"the simulated arm does not answer ({error}); begin again") from error

    def tell(self, text: str) -> None:
        self.told.append(text)
        print(text)


def simulated(
    config: MetaWorldConfig, *, speed: float = 1.0, faults: Faults | None = None, first: int = 0, max_age: float = 0.25
) -> Setup:
    """The setup of such a robot, with its operator. Scenes are the simulator's starts ``first + 1, first + 2, ...``"""
    rate = config.rate
    arm = SimulatedArm(config, rate=rate, speed=speed, faults=faults)
    limits, metres = config.workspace(), 0.01 * config.action_repeat
    hand = tuple(
        Axis(
            name=name, low=low, high=high, max_step=1.0, relative=True,
            measured=name.removeprefix("delta_"), unit=metres,
        )
        for name, low, high in zip(ACTIONS[:3], limits.low, limits.high, strict=False)
    )  # fmt: skip
    gripper = Axis(name=ACTIONS[3], low=-1.0, high=1.0, max_step=np.inf)
    return Setup(
        robot=LeRobotRobot(arm, CAMERA, (*hand, gripper)),
        rate=rate,
        operator=SimulatedOperator(arm, first),
        max_age=max_age,
        speed=speed,
    )
