"""Any robot that speaks LeRobot's ``Robot`` interface (lerobot 0.4 to 0.6), behind ours.

lerobot itself is needed only to make its robot objects, which a setup file does; this adapter knows their methods. It
keeps the limits of LeRobot's drivers, records what they really sent, and never starts a calibration by itself: that
moves the arm, or asks at the terminal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from wmpo.robots.protocol import Axis, Reading, RobotError, StaleFrames
from wmpo.robots.safety import check_action, hold
from wmpo.views import ONE_VIEW


class LeRobotLike(Protocol):
    """The part of ``lerobot.robots.Robot`` that is used here."""

    @property
    def observation_features(self) -> Mapping[str, Any]: ...

    @property
    def action_features(self) -> Mapping[str, Any]: ...

    @property
    def is_connected(self) -> bool: ...

    @property
    def is_calibrated(self) -> bool: ...

    def connect(self, calibrate: bool = True) -> None: ...

    def get_observation(self) -> Mapping[str, Any]: ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]: ...

    def disconnect(self) -> None: ...


class LeRobotRobot:
    """A :class:`wmpo.robots.protocol.Robot`.

    Args:
        robot: an object of LeRobot, not connected yet, e.g. ``SO101Follower(SO101FollowerConfig(...))``.
        camera: the observation that is the policy's picture; several names where it sees several, in its order.
        axes: one for each of the robot's actions, in the policy's order; joints or the end effector.

    Raises ValueError, with the names there are, for a camera, an axis or a measurement that the robot does not have.
    """

    def __init__(self, robot: LeRobotLike, camera: str | Sequence[str], axes: tuple[Axis, ...]) -> None:
        self._cameras = (camera,) if isinstance(camera, str) else tuple(camera)
        self._robot, self._axes = robot, axes
        seen, taken = robot.observation_features, robot.action_features
        cameras = [name for name, feature in seen.items() if isinstance(feature, tuple) and len(feature) == 3]
        if missing := [name for name in self._cameras if name not in cameras]:
            raise ValueError(
                f"the robot has no camera {missing[0]!r}, but {cameras}; name one of these, or configure it"
            )
        if not self._cameras or len(set(self._cameras)) < len(self._cameras):
            raise ValueError(f"cameras {list(self._cameras)} must be one or several different ones of {cameras}")
        names = [axis.name for axis in axes]
        if sorted(names) != sorted(taken):
            raise ValueError(
                f"the robot takes the actions {sorted(taken)}, but the axes are {sorted(names)}; give one Axis for each"
            )
        self._measured = [axis.measured or (axis.name if axis.name in seen else "") for axis in axes]
        if unknown := [name for name in self._measured if name and name not in seen]:
            raise ValueError(f"the robot does not observe {', '.join(unknown)}, but {sorted(seen)}; correct measured=")
        self._last: np.ndarray | None = None  # what was sent last
        self._here = np.full(len(axes), math.nan)
        self._pictures: dict[str, tuple[bytes, float]] = {}

    @property
    def views(self) -> tuple[str, ...]:
        return self._cameras if len(self._cameras) > 1 else ONE_VIEW

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self._axes

    def connect(self) -> None:
        with self._asking("connect to", "check power, cable and port"):
            self._robot.connect(calibrate=False)
        if not self._robot.is_calibrated:
            self.close()
            raise RobotError(f"{self._robot} is not calibrated; run lerobot-calibrate first")

    def observe(self) -> Reading:
        try:
            with self._asking("read", "check power and cables"):
                seen = self._robot.get_observation()
        except RobotError as error:
            if isinstance(error.__cause__, TimeoutError):  # LeRobot's cameras say so that no new picture came
                named = " or ".join(map(repr, self._cameras))
                raise StaleFrames(f"camera {named} gave no picture; check its cable") from error
            raise
        frame, *others = frames = [self._frame(seen, name) for name in self._cameras]
        captured = min(self._captured(name, each) for name, each in zip(self._cameras, frames, strict=True))
        measured = [float(seen[name]) / axis.unit if name else math.nan
                    for name, axis in zip(self._measured, self._axes, strict=True)]  # fmt: skip
        self._here = np.array(measured)
        return Reading(frame=frame, others=tuple(others), position=self._here, captured=captured)

    def _frame(self, seen: Mapping[str, Any], camera: str) -> UInt8[np.ndarray, "h w 3"]:
        frame = np.asarray(seen[camera])
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise RobotError(
                f"camera {camera!r} gives {frame.dtype} {list(frame.shape)}, not uint8 [h, w, 3]; set its "
                "color_mode to RGB"
            )
        return frame

    def _captured(self, camera: str, frame: UInt8[np.ndarray, "h w 3"]) -> float:
        """Of the camera's own clock where it tells (perhaps of the picture after this one, as it goes on meanwhile);
        else since when this very picture is given, as real cameras never give the same one twice."""
        now = time.perf_counter()
        stamp = getattr(getattr(self._robot, "cameras", {}).get(camera), "latest_timestamp", None)
        if stamp is not None:
            return float(stamp)
        content = frame.tobytes()
        if content != self._pictures.get(camera, (b"", 0.0))[0]:
            self._pictures[camera] = content, now
        return self._pictures[camera][1]

    def send(self, action: Float[np.ndarray, "..."]) -> Float[np.ndarray, " A"]:
        check_action(self._axes, action)
        wanted = {axis.name: float(value) for axis, value in zip(self._axes, action, strict=True)}
        with self._asking("send an action to", "check power and cables"):
            sent = self._robot.send_action(wanted)
        # some drivers report only what they have changed
        self._last = np.array([float(sent.get(axis.name, wanted[axis.name])) for axis in self._axes])
        return self._last

    def stop(self) -> None:
        """LeRobot has no such command: a place is set to where the axis is, a movement to none."""
        if self._last is None:
            return  # nothing was ever sent
        here = np.where(np.isfinite(self._here), self._here, self._last)
        self.send(hold(self._axes, here))

    def close(self) -> None:
        if self._robot.is_connected:
            with self._asking("disconnect", "switch it off"):
                self._robot.disconnect()

    @contextmanager
    def _asking(self, what: str, fix: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # drivers raise nearly anything
            reason = str(error) or type(error).__name__
            raise RobotError(f"cannot {what} {self._robot} ({reason}); {fix}") from error
