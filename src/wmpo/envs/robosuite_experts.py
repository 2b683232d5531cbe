"""Scripted experts of the robosuite tasks: they know where everything is, and carry one object after the other.

They look at the state in every step and begin again with an object that they lost, so noise on their actions costs them
time rather than the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An object to carry. Lengths in metres, angles in radians; equal turns grip or fit as well."""

    body: str
    grip: tuple[float, float, float]
    "Where the fingers meet, in the object's frame."
    across: float
    "Direction in which they close, as an angle from the object's x axis."
    grip_turn: float
    onto: str
    above: float
    "Height of the object over ``onto`` when it is in place."
    fit_turn: float
    clearance: float
    "How much higher it is carried."


class Phase(IntEnum):
    ABOVE, DOWN, CLOSE, LIFT, OVER, LOWER, OPEN, AWAY = range(8)


PATIENCE = {
    Phase.ABOVE: 80, Phase.DOWN: 30, Phase.CLOSE: 8, Phase.LIFT: 30, Phase.OVER: 60, Phase.LOWER: 25, Phase.OPEN: 6,
    Phase.AWAY: 8,
}  # fmt: skip
"""Actions after which the next phase begins in any case."""
UP = np.array([0.0, 0.0, 1.0])
UPRIGHT, WRIST = 0.69, 0.2
"""Metres: distance from the base up to which the hand is upright, and from the wrist to where the fingers meet."""
HOVER, LOST, REACH = 0.09, 0.045, 0.82
"""Metres: over the object before the fingers go down; from the fingers when it counts as lost; what the arm can reach
with the hand straight down."""


class Expert:
    """Carries the parts in their order. Made anew for each episode, at its start."""

    def __init__(self, env: Any, parts: tuple[Part, ...]) -> None:
        self._env, self._parts = env, parts
        self._neutral, self._seen, self._moved = self._hand_yaw(), self._hand(), 0.0
        self._begin(0)

    def action(self) -> Float[np.ndarray, " 7"]:
        if self._number == len(self._parts):
            return np.array([0.0, 0, 0, 0, 0, 0, -1])
        self._ticks += 1
        self._moved, self._seen = math.dist(self._hand(), self._seen), self._hand()
        if self._phase in (Phase.LIFT, Phase.OVER, Phase.LOWER) and math.dist(self._grip(), self._hand()) > LOST:
            self._begin(self._number)
        elif self._ticks > PATIENCE[self._phase] or self._arrived():
            self._next()
        closed = Phase.CLOSE <= self._phase <= Phase.LOWER
        return self._towards(*self._target(), gripper=1.0 if closed else -1.0)

    def _begin(self, number: int) -> None:
        self._number, self._phase, self._ticks = number, Phase.ABOVE, 0
        if number < len(self._parts):
            self._part = self._parts[number]
            self._grip_yaw, self._goal_yaw = self._choose()
            self._tilt = self._lean()

    def _next(self) -> None:
        if self._phase == Phase.AWAY:
            placed = math.dist(self._position(self._part.body), self._goal()) < 0.03
            self._begin(self._number + placed)
            return
        self._phase, self._ticks = Phase(self._phase + 1), 0
        self._held = self._hand(), self._hand_yaw()

    def _choose(self) -> tuple[float, float]:
        """Angles of the hand when it grips and of the object when it is in place, so that the wrist turns least and the
        arm need not stretch."""
        part, yaw, onto = self._part, self._yaw(self._part.body), self._yaw(self._part.onto)
        base, goal = self._env.robots[0].base_pos, self._goal()

        def cost(choice: tuple[int, ...]) -> float:
            grip, fit = yaw + part.across + choice[0] * part.grip_turn, onto + choice[1] * part.fit_turn
            placed = grip + fit - yaw
            stretched = math.dist((goal + rotated(part.grip, fit))[:2], base[:2]) - REACH
            return max(abs(grip - self._neutral), abs(placed - self._neutral)) + 100 * max(0.0, stretched)

        grip, fit = min(product(range(-8, 9), repeat=2), key=cost)
        return yaw + part.across + grip * part.grip_turn, onto + fit * part.fit_turn

    def _lean(self) -> float:
        """Where the arm would have to stretch, from which it cannot bend again, the hand leans around its fingers' axis
        so that the wrist comes closer."""
        inwards = (self._env.robots[0].base_pos - self._grip())[:2]
        distance = np.linalg.norm(inwards)
        lean = math.asin(np.clip((distance - UPRIGHT) / WRIST, 0, 0.6))
        return lean * float(sideways(self._grip_yaw)[:2] @ inwards / distance)

    def _target(self) -> tuple[Float[np.ndarray, " 3"], float]:
        """Where the hand should be, and the direction of its fingers."""
        if self._phase <= Phase.DOWN:
            return self._grip() + HOVER * UP * (self._phase == Phase.ABOVE), self._grip_yaw
        if self._phase in (Phase.CLOSE, Phase.OPEN):
            return self._held
        if self._phase == Phase.AWAY:
            return self._held[0] + HOVER * UP, self._held[1]
        error, turn = self._error()
        hand, item = self._hand(), self._position(self._part.body)
        if self._phase == Phase.LIFT:
            return np.array([*self._held[0][:2], hand[2] + error[2]]), self._held[1]
        return item + error + rotated(hand - item, turn), self._hand_yaw() + turn

    def _error(self) -> tuple[Float[np.ndarray, " 3"], float]:
        """How far the object is from its place, or until it is lowered from the one above."""
        error = self._goal() - self._position(self._part.body)
        error[2] += self._part.clearance * (self._phase != Phase.LOWER)
        return error, wrapped(self._goal_yaw - self._yaw(self._part.body))

    def _arrived(self) -> bool:
        if self._phase <= Phase.DOWN:
            target, yaw = self._target()
            near, turned = (0.015, 0.1) if self._phase == Phase.ABOVE else (0.006, 0.1)
            return math.dist(target, self._hand()) < near and abs(wrapped(yaw - self._hand_yaw())) < turned
        error, turn = self._error()
        if self._phase == Phase.LIFT:
            return error[2] < 0.02
        if self._phase == Phase.OVER:
            near = math.hypot(*error[:2]) < 0.004 and abs(turn) < 0.04 and abs(error[2]) < 0.02
            return near and self._moved < 0.0025
        stuck = self._ticks > 4 and self._moved < 0.001
        return self._phase == Phase.LOWER and (error[2] > -0.004 or stuck)

    def _towards(self, target: Float[np.ndarray, " 3"], yaw: float, gripper: float) -> Float[np.ndarray, " 7"]:
        move = (target - self._hand()) / 0.05
        turn = rotation_vector(pointing_down(yaw, self._tilt) @ self._hand_axes().T) / 0.5
        return np.clip([*move, *turn, gripper], -1, 1)

    def _goal(self) -> Float[np.ndarray, " 3"]:
        return self._position(self._part.onto) + self._part.above * UP

    def _grip(self) -> Float[np.ndarray, " 3"]:
        return self._position(self._part.body) + self._axes(self._part.body) @ np.array(self._part.grip)

    def _position(self, body: str) -> Float[np.ndarray, " 3"]:
        return np.array(self._env.sim.data.get_body_xpos(body))

    def _axes(self, body: str) -> Float[np.ndarray, "3 3"]:
        return np.array(self._env.sim.data.get_body_xmat(body)).reshape(3, 3)

    def _yaw(self, body: str) -> float:
        return math.atan2(*self._axes(body)[[1, 0], 0])

    def _hand(self) -> Float[np.ndarray, " 3"]:
        return np.array(self._env._eef_xpos)

    def _hand_axes(self) -> Float[np.ndarray, "3 3"]:
        return np.array(self._env.sim.data.get_site_xmat(self._env.robots[0].controller.eef_name)).reshape(3, 3)

    def _hand_yaw(self) -> float:
        """Fingers close along the first axis of the hand."""
        return math.atan2(*self._hand_axes()[[1, 0], 0])


def wrapped(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def rotated(vector: Any, yaw: float) -> Float[np.ndarray, " 3"]:
    x, y, z = vector
    return np.array([x * math.cos(yaw) - y * math.sin(yaw), x * math.sin(yaw) + y * math.cos(yaw), z])


def sideways(yaw: float) -> Float[np.ndarray, " 3"]:
    """Horizontal, to the right of a direction."""
    return np.array([math.sin(yaw), -math.cos(yaw), 0.0])


def pointing_down(yaw: float, tilt: float = 0.0) -> Float[np.ndarray, "3 3"]:
    """Axes of a hand that points down and closes its fingers along ``yaw``; tilted, its wrist is to the right."""
    fingers, down = np.array([math.cos(yaw), math.sin(yaw), 0.0]), -math.cos(tilt) * UP - math.sin(tilt) * sideways(yaw)
    return np.stack([fingers, np.cross(down, fingers), down], axis=1)


def rotation_vector(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 3"]:
    """Axis times angle, for angles that are not close to a half turn."""
    doubled = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine, cosine = np.linalg.norm(doubled) / 2, (np.trace(matrix) - 1) / 2
    return doubled / 2 * (math.atan2(sine, cosine) / sine if sine > 1e-9 else 1.0)


def _square(env: Any) -> Expert:
    """The nut hangs from its handle; a quarter turn fits the peg as well."""
    nut = Part(
        body="SquareNut_main", grip=(0.054, 0, 0), across=math.pi / 2, grip_turn=math.pi,
        onto="peg1", above=0.0, fit_turn=math.pi / 2, clearance=0.15,
    )  # fmt: skip
    return Expert(env, (nut,))


def _stack_three(env: Any) -> Expert:
    def cube(body: str, onto: str, above: float) -> Part:
        quarter = math.pi / 2
        return Part(
            body=body, grip=(0, 0, 0), across=0.0, grip_turn=quarter,
            onto=onto, above=above, fit_turn=quarter, clearance=0.05,
        )  # fmt: skip

    return Expert(env, (cube("cubeA_main", "cubeB_main", 0.045), cube("cubeC_main", "cubeA_main", 0.04)))


def _three_piece_assembly(env: Any) -> Expert:
    half = math.pi
    plate = Part(
        body="piece_1_root", grip=(0, 0, 0.036), across=0.0, grip_turn=half,
        onto="base_root", above=0.032, fit_turn=half / 2, clearance=0.06,
    )  # fmt: skip
    bridge = Part(
        body="piece_2_root", grip=(0, 0, 0.06), across=0.0, grip_turn=half,
        onto="piece_1_root", above=0.065, fit_turn=half, clearance=0.09,
    )  # fmt: skip
    return Expert(env, (plate, bridge))


EXPERTS: dict[str, Callable[[Any], Expert]] = {
    "Square": _square,
    "StackThree": _stack_three,
    "ThreePieceAssembly": _three_piece_assembly,
}
