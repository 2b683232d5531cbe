"""Tasks on robosuite's own primitives. Imported by nobody before robosuite is known to be there.

StackThree and ThreePieceAssembly have the sizes, start ranges (D0) and conditions of success of MimicGen's tasks of
these names (arXiv 2310.17596), but none of its code and pictures: plain colours instead of wood, so that the objects
can be told apart at 64 pixels, and as few boxes as give the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from robosuite.environments.manipulation.nut_assembly import NutAssemblySquare
from robosuite.environments.manipulation.single_arm_env import SingleArmEnv
from robosuite.models.arenas import TableArena
from robosuite.models.objects import BoxObject, CompositeObject
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.placement_samplers import SequentialCompositeSampler, UniformRandomSampler

TABLE_SIZE, TABLE_TOP = (0.8, 0.8, 0.05), np.array([0.0, 0.0, 0.8])
RED, GREEN, BLUE, GREY = (0.85, 0.1, 0.1, 1), (0.1, 0.7, 0.15, 1), (0.1, 0.25, 0.9, 1), (0.35, 0.35, 0.4, 1)


@dataclass(frozen=True, slots=True)
class Placed:
    """An object and where its starts are drawn from: half the side of a square around the table's middle, and yaw."""

    item: Any
    half: float
    yaw: tuple[float, float]
    drop: float
    "Metres above the table."


class TableTask(SingleArmEnv):
    """Objects on a table before one arm; a subclass says which, and when the task is solved."""

    def __init__(self, use_object_obs: bool = False, **settings: Any) -> None:
        assert not use_object_obs, "these tasks describe their objects to nobody"
        super().__init__(mount_types="default", **settings)

    def place(self) -> list[Placed]:
        raise NotImplementedError

    def _load_model(self) -> None:
        super()._load_model()
        arm = self.robots[0].robot_model
        arm.set_base_xpos(arm.base_xpos_offset["table"](TABLE_SIZE[0]))
        arena = TableArena(table_full_size=TABLE_SIZE, table_offset=TABLE_TOP)
        arena.set_origin([0, 0, 0])
        placed = self.place()
        self.items = {each.item.name: each.item for each in placed}
        self.placement_initializer = SequentialCompositeSampler(name="starts")
        for each in placed:
            side = (-each.half, each.half)
            sampler = UniformRandomSampler(
                name=each.item.name, mujoco_objects=each.item, x_range=side, y_range=side, rotation=each.yaw,
                ensure_object_boundary_in_range=False, reference_pos=TABLE_TOP, z_offset=each.drop,
            )  # fmt: skip
            self.placement_initializer.append_sampler(sampler)
        self.model = ManipulationTask(
            mujoco_arena=arena, mujoco_robots=[arm], mujoco_objects=[each.item for each in placed]
        )

    def _reset_internal(self) -> None:
        super()._reset_internal()
        for position, quaternion, item in self.placement_initializer.sample().values():
            self.sim.data.set_joint_qpos(item.joints[0], np.concatenate([position, quaternion]))

    def reward(self, action: Any = None) -> float:
        return float(self._check_success())

    def position(self, name: str) -> np.ndarray:
        return np.array(self.sim.data.get_body_xpos(self.items[name].root_body))

    def let_go(self, name: str) -> bool:
        return not self._check_grasp(self.robots[0].gripper, self.items[name])


class StackThree(TableTask):
    """The red cube on the green one, and the blue one on the red one."""

    def place(self) -> list[Placed]:
        cubes = (("cubeA", 0.02, RED), ("cubeB", 0.025, GREEN), ("cubeC", 0.02, BLUE))
        return [
            Placed(BoxObject(name=name, size=[half] * 3, rgba=colour), half=0.1, yaw=(0.0, 2 * math.pi), drop=0.01)
            for name, half, colour in cubes
        ]

    def _check_success(self) -> bool:
        return self._on("cubeA", "cubeB", height=0.04) and self._on("cubeC", "cubeA", height=0.08)

    def _on(self, upper: str, lower: str, height: float) -> bool:
        """Metres above the table."""
        lifted = self.position(upper)[2] > TABLE_TOP[2] + height
        return bool(lifted) and self.check_contact(self.items[upper], self.items[lower]) and self.let_go(upper)


def solid(name: str, half: Sequence[float], boxes: Sequence[tuple], colour: tuple, density: float) -> CompositeObject:
    """Boxes in one piece, each as (name, middle, half sizes) in metres from the middle of the whole."""
    names, middles, halves = zip(*boxes, strict=True)
    return CompositeObject(
        name=name, total_size=half, geom_types=["box"] * len(boxes), geom_names=names, geom_locations=middles,
        geom_sizes=halves, geom_rgbas=[colour] * len(boxes), density=density, locations_relative_to_center=True,
    )  # fmt: skip


class ThreePieceAssembly(TableTask):
    """A plate with a ridge into a frame that lies on the table, and a bridge with a knob over the ridge."""

    BASE, FIRST, SECOND = 0.019, 0.017, 0.02
    "Half sides of the cubes that frame, plate and bridge are multiples of."

    def place(self) -> list[Placed]:
        quarter = (math.pi / 2, math.pi / 2)
        return [
            Placed(self._frame(self.BASE), half=0.0, yaw=(0.0, 0.0), drop=0.001),
            Placed(self._plate(self.FIRST), half=0.22, yaw=quarter, drop=0.001),
            Placed(self._bridge(self.SECOND), half=0.22, yaw=quarter, drop=0.001),
        ]

    @staticmethod
    def _frame(u: float) -> CompositeObject:
        boxes = [
            ("left", (-4 * u, 0, 0), (u, 5 * u, u)), ("right", (4 * u, 0, 0), (u, 5 * u, u)),
            ("near", (0, -4 * u, 0), (3 * u, u, u)), ("far", (0, 4 * u, 0), (3 * u, u, u)),
        ]  # fmt: skip
        return solid("base", (5 * u, 5 * u, u), boxes, GREY, density=10_000.0)  # so heavy that nothing moves it

    @staticmethod
    def _plate(u: float) -> CompositeObject:
        boxes = [("plate", (0, 0, -2 * u), (3 * u, 3 * u, u)), ("ridge", (0, 0, u), (u, 3 * u, 2 * u))]
        return solid("piece_1", (3 * u, 3 * u, 3 * u), boxes, RED, density=100.0)

    @staticmethod
    def _bridge(u: float) -> CompositeObject:
        boxes = [
            ("left", (-2 * u, 0, -2 * u), (u, 3 * u, 2 * u)), ("right", (2 * u, 0, -2 * u), (u, 3 * u, 2 * u)),
            ("top", (0, 0, u), (3 * u, 3 * u, u)), ("knob", (0, 0, 3 * u), (u, u, u)),
        ]  # fmt: skip
        return solid("piece_2", (3 * u, 3 * u, 4 * u), boxes, BLUE, density=100.0)

    def _check_success(self) -> bool:
        base, first, second = map(self.position, ("base", "piece_1", "piece_2"))
        inserted = np.linalg.norm((first - base)[:2]) < 0.02 and self.let_go("piece_1")
        height = abs(second[2] - base[2] - 4 * self.SECOND)
        over = np.linalg.norm((second - first)[:2]) < 0.02 and height < 0.02
        return bool(inserted and over) and self.let_go("piece_2")


TASKS: dict[str, type] = {
    "Square": NutAssemblySquare,
    "StackThree": StackThree,
    "ThreePieceAssembly": ThreePieceAssembly,
}
