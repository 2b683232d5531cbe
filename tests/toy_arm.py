"""A robot that speaks LeRobot's interface and lives in this process, and a person who follows a script."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from wmpo.robots.lerobot import LeRobotRobot
from wmpo.robots.protocol import Axis, Setup, Signal

JOINTS = ("pan.pos", "lift.pos")
AXES = (
    Axis(name="pan.pos", low=-10, high=10, max_step=2),
    Axis(name="lift.pos", low=-5, high=5, max_step=1),
    Axis(name="delta_z", low=-3, high=3, max_step=1, relative=True),
    Axis(name="gripper", low=0, high=6, max_step=np.inf),
)


class ToyArm:
    """Two joints that go where they are told at once, a hand that moves, a gripper that nothing measures.

    ``fails``: what ``get_observation`` raises at which call. ``stamped``: its camera tells when it took a picture.
    """

    def __init__(self, *, fails: dict[int, Exception] | None = None, stamped: bool = True) -> None:
        self.fails, self.reads, self.sent, self.connected = fails or {}, 0, list[dict[str, float]](), False
        self.joints = dict.fromkeys(JOINTS, 0.0)
        self.is_calibrated, self.unreachable, self.frozen, self.lag = True, False, False, 0.0
        self.shown: dict[str, Any] = {}
        if stamped:
            self.cameras = {"front": SimpleNamespace(latest_timestamp=time.perf_counter())}

    def __str__(self) -> str:
        return "toy arm"

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(JOINTS, float), "front": (48, 64, 3), "wrist": (48, 64, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return {axis.name: float for axis in AXES}

    @property
    def is_connected(self) -> bool:
        return self.connected

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "a calibration moves the arm"
        if self.unreachable:
            raise ConnectionError("no device on /dev/ttyACM0")
        self.connected = True

    def get_observation(self) -> dict[str, Any]:
        self.reads += 1
        if self.reads in self.fails:
            raise self.fails[self.reads]
        frame = np.random.default_rng(0 if self.frozen else self.reads).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        if hasattr(self, "cameras") and not self.frozen:
            self.cameras["front"].latest_timestamp = time.perf_counter() - self.lag
        return {**self.joints, "front": frame, "wrist": frame} | self.shown

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.sent.append(dict(action))
        self.joints.update({name: action[name] for name in JOINTS})
        return action

    def disconnect(self) -> None:
        self.connected = False


class Script:
    """A person who says one thing after each action, and answers when asked; GO_ON when the script is over."""

    def __init__(self, *signals: Signal | BaseException, answers: tuple[Signal, ...] = (), scenes: int = 99) -> None:
        self._signals, self._answers, self.scenes = iter(signals), iter(answers), scenes
        self.told: list[str] = []
        self.asked: list[str] = []

    def reset(self, episode: int, total: int) -> bool:
        self.scenes -= 1
        return self.scenes >= 0

    def poll(self) -> Signal:
        signal = next(self._signals, Signal.GO_ON)
        if isinstance(signal, BaseException):
            raise signal
        return signal

    def judge(self, why: str) -> Signal:
        self.asked.append(why)
        return next(self._answers, Signal.FAILURE)

    def tell(self, text: str) -> None:
        self.told.append(text)


def after(count: int, signal: Signal | BaseException) -> Iterator[Signal | BaseException]:
    """The person says it after ``count`` actions, in chunks of four: it is asked before each chunk too."""
    yield from [Signal.GO_ON] * (count - 1 + (count + 3) // 4)
    yield signal


def toy_setup(arm: ToyArm | None = None, operator: Any = None, **settings: Any) -> Setup:
    """A picture may be a minute old: a machine that is busy with other things may stop a test for a while."""
    robot = LeRobotRobot(arm or ToyArm(), "front", AXES)
    return Setup(robot=robot, rate=250, operator=operator, max_age=60, **settings)
