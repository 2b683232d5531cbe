"""The dream as Gymnasium environments, so that any agent can train in it.

After ``import wmpo.envs.gym``::

    envs = gymnasium.make_vec("wmpo/Dream-v0", num_envs=16, run="runs/quickstart")  # or "wmpo.envs.gym:wmpo/Dream-v0"
    env = gymnasium.make("wmpo/Dream-v0", run="runs/quickstart")

Observations are pictures, actions are in the environment's units: a whole chunk [K,A], or one action [A] with
``action="single"``. The reward is 1 where the success classifier sees the task solved, which ends the episode; the
time limit truncates it. Rows that ended are reset by the next step (Gymnasium's ``NEXT_STEP``), whose action they
ignore.

Unlike in a :class:`wmpo.protocols.ChunkEnv`, rows begin at different times. A world model's context is opaque and can
be divided but not joined, so rows that were reset together stay a group, and each group is imagined in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Shaped, UInt8

from wmpo.envs.imagined import ImaginedEnv
from wmpo.envs.workspace import Workspaces
from wmpo.protocols import RewardModel, WorldModel
from wmpo.rng import keyed
from wmpo.types import Starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Dream:
    """What environments are made of. ``low`` and ``high`` are the bounds of an action, in the environment's units."""

    world_model: WorldModel
    reward_model: RewardModel
    starts: Starts
    "Where episodes begin; each draws one of them."
    chunk_size: int
    max_chunks: int
    low: Float[np.ndarray, " A"]
    high: Float[np.ndarray, " A"]
    workspaces: Workspaces | None = None
    "What the robot's controller makes of the commands."
    whole_chunks: bool = False
    "Whether the world model is told chunks, not each frame's own actions."


@dataclass(slots=True)
class _Group:
    """Rows that began together. ``pending`` are the actions that the world model has not been given yet."""

    rows: np.ndarray
    env: ImaginedEnv
    pending: list[np.ndarray]
    playing: np.ndarray


class DreamVectorEnv(VectorEnv):
    """``num_envs`` imagined episodes side by side.

    Row ``r`` of an environment seeded with ``s`` plays the same episodes as a single environment seeded with ``s + r``:
    each draw depends on the row's seed and on how many episodes it has begun.

    Args:
        dream: the models, starts and limits.
        num_envs: rows.
        action: ``chunk`` or ``single``: what a step takes. Single actions wait until there are ``frame_stride`` of
            them, as the world model draws one frame for so many; until then the picture stays as it is.
        render_mode: ``rgb_array`` or None.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  # as Gymnasium has it
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        dream: Dream,
        *,
        num_envs: int = 1,
        action: str = "chunk",
        render_mode: str | None = None,
    ) -> None:
        if dream.starts.frames is None or not len(dream.starts):
            raise ValueError("imagined episodes begin at recorded frames, but there are none")
        if action not in ("chunk", "single"):
            raise ValueError(f"action must be 'chunk' or 'single', not {action!r}")
        if action == "single" and dream.whole_chunks and dream.chunk_size > dream.world_model.frame_stride:
            raise ValueError(
                "this world model is told whole chunks (world_model.frame_actions): action must be 'chunk'"
            )
        if num_envs < 1 or render_mode not in (None, "rgb_array"):
            raise ValueError(f"num_envs {num_envs} must be at least 1, and render_mode {render_mode!r} 'rgb_array'")
        self.num_envs, self.render_mode, self.dream, self.single = num_envs, render_mode, dream, action == "single"
        self._unit = dream.world_model.frame_stride if self.single else dream.chunk_size  # actions imagined at once
        repeated = () if self.single else (dream.chunk_size, 1)
        low, high = (np.tile(bound.astype(np.float32), repeated or 1) for bound in (dream.low, dream.high))
        self.single_action_space = spaces.Box(low, high, dtype=np.float32)
        picture = tuple(dream.starts.frames.shape[2:])
        self.single_observation_space = spaces.Box(0, 255, picture, dtype=np.uint8)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._seeds: list[int] | None = None
        self._begun = [0] * num_envs
        self._groups: list[_Group] = []
        self._ended = np.zeros(num_envs, dtype=bool)
        self._frames = np.zeros((num_envs, *picture), dtype=np.uint8)
        self._instructions = np.full(num_envs, "", dtype=object)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "B h w 3"], dict[str, Any]]:
        """Begins a new episode in every row; without a seed each row goes on with its next one."""
        super().reset(seed=seed)
        if seed is not None or self._seeds is None:
            first = seed if seed is not None else int(self.np_random.integers(2**31))
            self._seeds, self._begun = [first + row for row in range(self.num_envs)], [0] * self.num_envs
        self._groups = []
        self._ended[:] = False
        self._begin(np.arange(self.num_envs))
        return self._frames.copy(), self._infos()

    def step(
        self, actions: Shaped[np.ndarray, "B *chunk"]
    ) -> tuple[
        UInt8[np.ndarray, "B h w 3"],
        Float[np.ndarray, " B"],
        Bool[np.ndarray, " B"],
        Bool[np.ndarray, " B"],
        dict[str, Any],
    ]:
        """One action or chunk in each row, clipped to the bounds as a robot would. NaN raises ValueError."""
        if self._seeds is None:
            raise ValueError("call reset before the first step")
        given = np.asarray(actions, dtype=np.float32)
        if given.shape != self.action_space.shape or not np.isfinite(given).all():
            raise ValueError(f"actions must be finite numbers of shape {self.action_space.shape}, not {given.shape}")
        clipped = np.clip(given, self.single_action_space.low, self.single_action_space.high)  # type: ignore[attr-defined]
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        for group in self._groups:
            self._advance(group, clipped[group.rows], terminated, truncated)
        reward[terminated] = 1.0
        again, self._ended = self._ended, terminated | truncated
        if again.any():
            self._begin(again.nonzero()[0])
        self._groups = [group for group in self._groups if group.playing.any()]
        return self._frames.copy(), reward, terminated, truncated, self._infos()

    def _advance(self, group: _Group, actions: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Imagines what follows, once there are enough actions. Rows that ended before are frozen."""
        group.pending += [actions] if self.single else list(actions.swapaxes(0, 1))
        if len(group.pending) < self._unit:
            return
        chunk = torch.from_numpy(np.stack(group.pending, axis=1))
        group.pending = []
        step = group.env.step(chunk)
        rows = group.rows[group.playing]
        self._frames[rows] = step.frames[:, -1].numpy()[group.playing]
        terminated[rows] = step.terminated.numpy()[group.playing]
        truncated[rows] = step.truncated.numpy()[group.playing]
        group.playing &= ~(step.terminated | step.truncated).numpy()

    def _begin(self, rows: np.ndarray) -> None:
        assert self._seeds is not None
        draws = [keyed(self._seeds[row], "dream/episode", self._begun[row]) for row in rows]
        picked = torch.tensor([int(draw.integers(len(self.dream.starts))) for draw in draws])
        ids = torch.tensor([int(draw.integers(2**62)) for draw in draws])
        for row in rows:
            self._begun[row] += 1
        starts = self.dream.starts.rows(picked).with_ids(ids, torch.arange(len(rows)))
        env = ImaginedEnv(
            self.dream.world_model,
            self.dream.reward_model,
            chunk_size=self._unit,
            max_chunks=self.dream.max_chunks * self.dream.chunk_size // self._unit,
            seed=0,  # the rows' seeds are in their identities
            workspaces=self.dream.workspaces,
        )
        self._frames[rows] = env.reset(starts).frame.numpy()
        self._instructions[rows] = starts.instruction
        self._groups.append(_Group(rows, env, [], np.ones(len(rows), dtype=bool)))

    def _infos(self) -> dict[str, Any]:
        return {"instruction": self._instructions.copy(), "_instruction": np.ones(self.num_envs, dtype=bool)}

    def render(self) -> tuple[UInt8[np.ndarray, "h w 3"], ...] | None:
        return tuple(self._frames.copy()) if self.render_mode == "rgb_array" else None


class DreamEnv(gymnasium.Env):
    """The same with one row and no autoreset."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # as Gymnasium has it

    def __init__(self, envs: DreamVectorEnv) -> None:
        assert envs.num_envs == 1
        self._envs, self.render_mode = envs, envs.render_mode
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "h w 3"], dict[str, Any]]:
        super().reset(seed=seed)
        frames, infos = self._envs.reset(seed=seed)
        return frames[0], {"instruction": infos["instruction"][0]}

    def step(
        self, action: Shaped[np.ndarray, "*chunk"]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], float, bool, bool, dict[str, Any]]:
        frames, reward, terminated, truncated, infos = self._envs.step(np.asarray(action)[None])
        about = {"instruction": infos["instruction"][0]}
        return frames[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), about

    def render(self) -> Any:
        frames = self._envs.render()
        return None if frames is None else frames[0]


def register() -> None:
    """Makes ``wmpo/Dream-v0`` known to Gymnasium; importing this file does it."""
    if "wmpo/Dream-v0" not in gymnasium.registry:
        gymnasium.register(
            "wmpo/Dream-v0",
            entry_point="wmpo.stages.dream:dream_env",
            vector_entry_point="wmpo.stages.dream:dream_vector_env",
        )


register()
