"""What a robot and the person beside it must offer, so that a policy can act on the one and be judged by the other.

Units are those of the policy's actions. An action either moves (*relative*, e.g. the hand by so much) or names a place
(*absolute*, e.g. a joint's angle); a robot may have both kinds.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8


class RobotError(RuntimeError):
    """The robot cannot be used, or not any longer; the message says in one sentence what failed and what to do."""


class StaleFrames(RobotError):
    """The camera's newest picture is too old to act on. Costs the episode, not the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One dimension of an action and what it may do. Raises ValueError for limits that exclude every action."""

    name: str
    "As the robot calls it, e.g. ``shoulder_pan.pos``."
    low: float
    "Workspace: the lowest position allowed. Infinite where nothing is limited."
    high: float
    "The highest one."
    max_step: float
    "The largest movement that one action may ask for."
    relative: bool = False
    "Whether an action is a movement rather than a place."
    measured: str = ""
    """Which observation measures its position; by default the one of the same name, if there is one. Where there is
    none, a relative axis counts its movements since the episode began, so ``low`` and ``high`` count from there."""
    unit: float = 1.0
    "What an action of 1 is in units of that observation."

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"axis {self.name}: low {self.low:g} must be below high {self.high:g}")
        if not self.max_step > 0:
            raise ValueError(f"axis {self.name}: max_step must be above 0, not {self.max_step:g}")
        if not (math.isfinite(self.unit) and self.unit > 0):
            raise ValueError(f"axis {self.name}: unit must be a number above 0, not {self.unit:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a robot reports at one moment."""

    frame: UInt8[np.ndarray, "h w 3"]
    "The newest picture, in the camera's own size."
    position: Float[np.ndarray, " A"]
    "Where each axis is, in units of actions; NaN where it is not measured."
    captured: float
    "When the (oldest) picture was taken, in seconds of ``time.perf_counter``, as LeRobot's cameras count."
    others: tuple[UInt8[np.ndarray, "_ _ 3"], ...] = ()
    "Pictures of further cameras, in the order of the robot's ``views``."


class Robot(Protocol):
    """A robot with one camera or several. Every method raises RobotError when the robot does not answer."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The dimensions of an action, in the policy's order. Known before the robot is connected."""
        ...

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the cameras in the policy's order; ``main`` where there is only one."""
        ...

    def connect(self) -> None:
        """Makes the robot ready. Raises RobotError when it cannot be reached, lacks the camera or an axis, or is not
        calibrated."""
        ...

    def observe(self) -> Reading:
        """The newest picture and the positions that belong to it. Does not move the robot. Raises StaleFrames when the
        camera gives no picture at all."""
        ...

    def send(self, action: Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
        """Begins an action and returns at once. Gives back what was really sent, as a driver may have limits too.

        Raises ValueError for another number of dimensions and for NaN or infinity, and then sends nothing.
        """
        ...

    def stop(self) -> None:
        """The robot stands still where it is, under power. Nothing may move until the next ``send``."""
        ...

    def close(self) -> None:
        """Lets go of the robot. May be called twice, and after a failure."""
        ...


class Signal(enum.Enum):
    """What an operator says."""

    GO_ON = "go on"
    RELEASED = "released"
    "The dead-man key is no longer held: the robot must stand still at once."
    SUCCESS = "success"
    FAILURE = "failure"
    DISCARD = "discard"
    "The episode says nothing about the policy, e.g. somebody walked through the scene."


class Operator(Protocol):
    """The person beside the robot, who lays out the scene, holds the dead-man key and says how an episode ended."""

    def reset(self, episode: int, total: int) -> bool:
        """Asks to lay out the scene of episode 1..total; returns when the person holds the dead-man key.

        False: the person wants to end the session.
        """
        ...

    def poll(self) -> Signal:
        """What the person says now, without waiting: asked before a chunk begins and after every action."""
        ...

    def judge(self, why: str) -> Signal:
        """Waits for SUCCESS, FAILURE or DISCARD of an episode that ended without one, and tells ``why`` it ended."""
        ...

    def tell(self, text: str) -> None:
        """Shows one line."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A robot ready to be used: what ``wmpo robot`` takes. Raises ValueError for times that are no times."""

    robot: Robot
    rate: int
    "Actions a second; the dataset's frames a second."
    operator: Operator | None = None
    "None: a person at the terminal."
    max_age: float = 0.25
    "Seconds; an older picture stops the episode."
    home: tuple[float, ...] | None = None
    """Where the arm goes before each episode, slowly and while the key is held: a position for each axis, in units of
    actions. None: somebody brings it there while the scene is laid out."""
    speed: float = 1.0
    "How many times faster than a clock the robot lives: 1 for every real one."

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("max_age", self.max_age), ("speed", self.speed)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} of a robot must be above 0, not {value}")
        if self.home is not None and (
            len(self.home) != len(self.robot.axes) or not all(math.isfinite(place) for place in self.home)
        ):
            raise ValueError(f"home must be {len(self.robot.axes)} numbers, one for each axis, not {self.home}")
