"""Limits of what is sent to a robot, as pure functions, and the keeper of its rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from wmpo.robots.protocol import Axis, Reading, StaleFrames


@dataclass(frozen=True, slots=True)
class Limited:
    """An action that may be sent, and whether it is another one than was asked for."""

    action: Float[np.ndarray, " A"]
    changed: bool


def limit(axes: Sequence[Axis], action: Float[np.ndarray, " A"], position: Float[np.ndarray, " A"]) -> Limited:
    """The nearest action that stays in the workspace and moves no axis further than its ``max_step``.

    Both are in units of actions. Where the two contradict each other, because somebody has put the arm outside of its
    workspace, the step counts: the arm comes back slowly. An axis whose position is NaN has only the limits that need
    none. Raises ValueError for NaN, infinity or another number of dimensions: then nothing may be sent.
    """
    check_action(axes, action)
    relative, known = np.array([axis.relative for axis in axes]), np.isfinite(position)
    low, high, most = (np.array([getattr(axis, name) for axis in axes]) for name in ("low", "high", "max_step"))
    here = np.where(known, position, 0.0)
    place = np.where(relative, here + action, action)
    place = np.where(known | ~relative, np.clip(place, low, high), place)
    place = np.where(known | relative, here + np.clip(place - here, -most, most), place)
    allowed = np.where(relative, place - here, place)
    changed = np.abs(allowed - action) > 1e-9  # less is rounding: then the action stays as it is, bit for bit
    return Limited(np.where(changed, allowed, action), bool(changed.any()))


def check_action(axes: Sequence[Axis], action: Float[np.ndarray, "..."]) -> None:
    """Raises ValueError unless the action is a finite number for each axis."""
    if action.shape != (len(axes),):
        raise ValueError(
            f"an action of shape {list(action.shape)} does not fit the robot's {len(axes)} axes "
            f"({', '.join(axis.name for axis in axes)}); use a policy that was trained with this robot"
        )
    if not np.isfinite(action).all():
        bad = [axis.name for axis, value in zip(axes, action, strict=True) if not np.isfinite(value)]
        raise ValueError(
            f"the policy gave NaN or infinity for {', '.join(bad)}, so nothing was sent; its weights are damaged"
        )


def check_axes(axes: Sequence[Axis], position: Float[np.ndarray, " A"]) -> None:
    """Raises ValueError for a limit that could not be kept: a step of a place needs to know where the axis is."""
    blind = [
        axis.name
        for axis, value in zip(axes, position, strict=True)
        if not axis.relative and np.isfinite(axis.max_step) and not np.isfinite(value)
    ]
    if blind:
        raise ValueError(
            f"the robot does not measure where {', '.join(blind)} is, so max_step cannot be kept; name an observation "
            "with measured=, or set max_step to infinity"
        )


def hold(axes: Sequence[Axis], last: Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
    """The action after ``last`` that stands still: no movement, the same place."""
    return np.where([axis.relative for axis in axes], 0.0, last)


def check_age(reading: Reading, now: float, max_age: float, speed: float = 1.0) -> None:
    """Raises StaleFrames when the picture is older than ``max_age`` seconds of the robot's time."""
    age = (now - reading.captured) * speed
    if age > max_age:
        raise StaleFrames(
            f"the camera's newest picture is {age:.2f} s old, more than the {max_age:g} s allowed; check its cable and "
            "its rate, or raise max_age"
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """How well a rate was kept; times in seconds of the robot."""

    ticks: int
    late: int
    "Ticks that came later than a tenth of a period."
    worst: float
    "The greatest lateness."

    def words(self) -> str:
        if not self.late:
            return "on time"
        return f"{self.late} of {self.ticks} actions late, by up to {1000 * self.worst:.0f} ms"


class RateKeeper:
    """Ticks at a rate, and measures how late they are.

    It never catches up: after a late tick the next one is a whole period later. Actions in quick succession would
    double the robot's speed.

    Args:
        rate: ticks a second of the robot's time.
        speed: how many times faster than the clock the robot lives.
        clock, sleep: those of :mod:`time`, or others in tests.
    """

    TOLERANCE = 0.1
    """Of a period: an operating system wakes nobody on the dot."""

    def __init__(
        self,
        rate: float,
        *,
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.period, self._speed, self._clock, self._sleep = 1 / (rate * speed), speed, clock, sleep
        self.start()

    def start(self) -> None:
        """Forgets what was measured; the first tick is one period from now."""
        self._due, self._ticks, self._late, self._worst = self._clock() + self.period, 0, 0, 0.0

    def wait(self) -> float:
        """Sleeps until the next tick; returns by how many seconds of the robot it is late."""
        now = self._clock()
        if now < self._due:
            self._sleep(self._due - now)
            now = self._clock()
        lateness = max(0.0, now - self._due)
        is_late = lateness > self.TOLERANCE * self.period
        self._due = (now if is_late else self._due) + self.period
        self._ticks += 1
        self._late += is_late
        self._worst = max(self._worst, lateness * self._speed)
        return lateness * self._speed

    def pace(self) -> Pace:
        """Since the start."""
        return Pace(self._ticks, self._late, self._worst)
