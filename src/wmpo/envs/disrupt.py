"""Disturbances of the real environment: what changes between training and a test, in physical units.

All but ``position`` change what is *drawn* only: the camera, or lights and colours of the scene that MuJoCo has filled
for one picture and fills anew for the next. So they cannot touch the physics, and nothing has to be undone. A position
is part of the start state, which is drawn anew at each reset.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from wmpo.rng import keyed

BLUE, YELLOW = np.array([0.1, 0.2, 0.9]), np.array([0.9, 0.8, 0.1])
TABLE = ("table_wood", "basic_floor", "table_ceramic", "table_legs_metal", "table_mat", "floorplane", "walls_mat")
"""Materials of table and floor in every scene of Meta-World and robosuite, and of robosuite's walls."""
NO_OBJECTS = ("world", "base", "mocap", "tablelink", "RetainingWall", "table", "robot0_base")
"""Roots of bodies that are part of no task: the robot, the table and what stands around it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of disruption: the range of its strength and what it says, the strength filled in."""

    low: float
    high: float
    example: float
    unit: str
    words: str


KINDS = {
    "none": Kind(0, 0, 0, "nothing", "nothing disturbed"),
    "light": Kind(0.1, 3, 0.5, "factor of every lamp's brightness", "light × {:g}"),
    "table": Kind(0, 1, 0.5, "share of blue paint on table and floor", "table and floor {:.0%} blue"),
    "object": Kind(0, 1, 0.5, "share of paint on all that is no robot, table or floor", "objects {:.0%} repainted"),
    "camera-turn": Kind(-45, 45, 10, "degrees around the vertical axis", "camera turned by {:g}°"),
    "camera-shift": Kind(-20, 20, 5, "centimetres to the right", "camera {:g} cm to the right"),
    "position": Kind(0.1, 10, 3, "centimetres beyond the range of the resets", "start {:g} cm out of range"),
}


@dataclass(frozen=True, slots=True)
class Disruption:
    """Raises ValueError, with the nearest names or the range, for what there is not."""

    kind: str = "none"
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = difflib.get_close_matches(self.kind, KINDS, n=3, cutoff=0.4) or list(KINDS)
            raise ValueError(f"unknown disruption {self.kind!r}; did you mean {' or '.join(near)}?")
        kind = KINDS[self.kind]
        if not kind.low <= self.strength <= kind.high:
            raise ValueError(
                f"strength {self.strength:g} of disruption {self.kind} ({kind.unit}) must be in "
                f"{kind.low:g}..{kind.high:g}; for instance {self.kind}:{kind.example:g}"
            )

    @classmethod
    def parse(cls, text: str) -> Disruption:
        """From ``KIND:STRENGTH``, as on the command line; ``none`` needs no strength."""
        kind, _, strength = text.partition(":")
        if kind not in KINDS or (kind == "none" and not strength):
            return cls(kind)
        try:
            return cls(kind, float(strength))
        except ValueError as error:
            if "must be in" in str(error):
                raise
            example = f"{kind}:{KINDS[kind].example:g}"
            raise ValueError(
                f"disruption {text!r} needs a number, its {KINDS[kind].unit}; for instance {example}"
            ) from error

    @property
    def label(self) -> str:
        """As :meth:`parse` reads it."""
        return self.kind if self.kind == "none" else f"{self.kind}:{self.strength:g}"

    @property
    def words(self) -> str:
        return KINDS[self.kind].words.format(self.strength)

    @property
    def moves(self) -> bool:
        """Whether episodes begin elsewhere."""
        return self.kind == "position"


NONE = Disruption()


@dataclass(frozen=True, slots=True)
class Push:
    """The hand is displaced along the table after so many chunks, before the policy sees the next frame.

    What is displaced by exactly so much is the point to which the controller draws the hand; it is a soft controller,
    so within 0.15 s a hand that nothing holds up follows by about nine tenths.
    """

    centimetres: float
    chunk: int

    def __post_init__(self) -> None:
        if not 0.5 <= self.centimetres <= 20:
            raise ValueError(f"a push must be of 0.5..20 centimetres, not {self.centimetres:g}; for instance 5")
        if self.chunk < 1:
            raise ValueError(f"a push comes after at least 1 chunk, not {self.chunk}")

    @property
    def label(self) -> str:
        return f"push:{self.centimetres:g} after {self.chunk}"

    def offset(self, start: int) -> Float[np.ndarray, " 3"]:
        """Metres, in a direction drawn for the start: the same for every policy."""
        angle = keyed(start, "disruption/push").uniform(0, 2 * math.pi)
        return self.centimetres / 100 * np.array([math.cos(angle), math.sin(angle), 0.0])


def camera_moved(disruption: Disruption, azimuth: float) -> tuple[float, Float[np.ndarray, " 3"]]:
    """By how many degrees a camera of that azimuth turns, and by how many metres it shifts."""
    if disruption.kind == "camera-turn":
        return disruption.strength, np.zeros(3)
    if disruption.kind == "camera-shift":
        angle = math.radians(azimuth)
        return 0.0, disruption.strength / 100 * np.array([math.sin(angle), -math.cos(angle), 0.0])
    return 0.0, np.zeros(3)


def redraw(disruption: Disruption, model: Any, scene: Any) -> None:
    """Changes lights and colours of a scene that MuJoCo has filled (``mjv_updateScene``) but not drawn yet."""
    if disruption.kind == "light":
        for light in scene.lights[: scene.nlight]:  # surfaces that were overexposed lose less than their share
            for part in (light.ambient, light.diffuse, light.specular):
                part *= disruption.strength
    elif disruption.kind in ("table", "object"):
        _paint(model, scene, _is_table if disruption.kind == "table" else _is_object, disruption.strength)


def _paint(model: Any, scene: Any, chosen: Callable[[Any, int], bool], share: float) -> None:
    """Textures stay visible under the paint: the renderer multiplies them with the colour."""
    from mujoco import mjtObj

    for geom in scene.geoms[: scene.ngeom]:
        if geom.objtype == mjtObj.mjOBJ_GEOM and chosen(model, geom.objid):
            own = geom.rgba[:3].copy()
            paint = max((BLUE, YELLOW), key=lambda colour: float(np.abs(colour - own).sum()))
            geom.rgba[:3] = (1 - share) * own + share * paint


def _is_table(model: Any, geom: int) -> bool:
    material = int(model.geom_matid[geom])
    return material >= 0 and model.mat(material).name in TABLE


def _is_object(model: Any, geom: int) -> bool:
    root = model.body(model.body_rootid[model.geom_bodyid[geom]]).name
    return root not in NO_OBJECTS and not _is_table(model, geom)


@contextmanager
def out_of_range(disruption: Disruption, env: Any, seed: int) -> Iterator[None]:
    """Inside, a reset of this Meta-World environment draws a position beyond the range of the task's resets.

    Raises ValueError where the task draws no position on the table, or refuses all that are drawn.
    """
    if not disruption.moves:
        yield
        return
    space, draw, drawn = env._random_reset_space, env._get_state_rand_vec, 0

    def beyond() -> Float[np.ndarray, " D"]:
        nonlocal drawn
        drawn += 1
        if drawn > 10_000:  # resets draw again until object and goal are far enough apart
            raise ValueError(f"{env.task_name} accepts no start {disruption.strength:g} cm out of range")
        metres, choice = disruption.strength / 100, (drawn - 1) // 100
        env._last_rand_vec = beyond_range(space.low, space.high, draw(), metres, seed, choice)
        return env._last_rand_vec

    env._get_state_rand_vec = beyond
    try:
        yield
    finally:
        del env._get_state_rand_vec  # the class's own is back


def beyond_range(
    low: Float[np.ndarray, " D"],
    high: Float[np.ndarray, " D"],
    drawn: Float[np.ndarray, " D"],
    metres: float,
    seed: int,
    choice: int = 0,
) -> Float[np.ndarray, " D"]:
    """A drawn vector of positions (x, y, z after each other) with one x or y moved that far beyond an end of its range.

    Which one and which end depend on the seed, and on ``choice``: an end that a task's reset refuses gives way to
    another. Heights stay: an object would fall, or begin inside the table.
    """
    free = [i for i in range(len(low)) if i % 3 != 2 and high[i] - low[i] > 1e-3]
    if not free:
        raise ValueError(
            "the resets of this task draw no position on the table, so none can be out of range; leave position out of "
            "--disruptions.played"
        )
    rng = keyed(seed, "disruption/position", choice)
    i, above = free[int(rng.integers(len(free)))], bool(rng.integers(2))
    moved = drawn.copy()
    moved[i] = high[i] + metres if above else low[i] - metres
    return moved
