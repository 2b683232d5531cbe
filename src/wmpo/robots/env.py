"""A robot as the environment that rollouts play in: one episode at a time, in its own time, within its limits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.data.pictures import resize
from wmpo.envs.clock import Clock
from wmpo.robots.protocol import Operator, Reading, RobotError, Setup, Signal
from wmpo.robots.safety import Pace, RateKeeper, check_action, check_age, check_axes, hold, limit
from wmpo.types import ChunkStep, Observation, Starts
from wmpo.views import ONE_VIEW

SETTLING, PATIENCE = 0.5, 30
"""Seconds: how long an arm rests at home before an episode, and how long it may take to get there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What went on in an episode besides the task."""

    pace: Pace
    limited: int
    "Actions that the limits changed, the driver's included."
    repeated: int
    "Pictures that the camera had given before: a new one was late or lost."

    def words(self) -> str:
        return f"{self.pace.words()}; {self.limited} actions limited, {self.repeated} pictures repeated"


class RobotEnv:
    """A :class:`wmpo.protocols.ChunkEnv` of one row over a connected robot.

    A frame is what the camera shows one period after an action was sent; then the person is asked. Success ends the
    episode, and the rest of its chunk is spent standing still, so that whole chunks are recorded. Without the dead-man
    key the robot stops at once and the episode is over.

    Args:
        setup: the robot, connected; its operator is ``operator``.
        chunk_size: K, actions in a chunk.
        max_chunks: time limit in chunks.
        image_size: pictures become squares of so many pixels, as the policy sees them; those of several cameras stand
            side by side.
    """

    def __init__(self, setup: Setup, operator: Operator, *, chunk_size: int, max_chunks: int, image_size: int) -> None:
        self.chunk_size, self.max_chunks, self._size = chunk_size, max_chunks, image_size
        self._setup, self._robot, self._operator = setup, setup.robot, operator
        self._rate = RateKeeper(setup.rate, speed=setup.speed)
        self._relative = np.array([axis.relative for axis in setup.robot.axes])
        self._begin()

    def reset(self, starts: Starts) -> Observation:
        """The first picture of the scene that was laid out. Raises StaleFrames, and ValueError for limits that cannot
        be kept."""
        if len(starts) != 1:
            raise ValueError(f"a robot plays one episode at a time, not {len(starts)}")
        self._starts = starts
        self._begin()
        if self._setup.home is not None:
            ended = self._go_home(np.array(self._setup.home))
            self._begin()
            self.ended = ended
        reading = self._look()
        check_axes(self._robot.axes, reading.position)
        return Observation(frame=self._seen(1)[:, 0], instruction=starts.instruction)

    def _begin(self) -> None:
        self._clock = Clock(1, self.chunk_size, self.max_chunks)
        self.ended, self._limited, self._repeated = Signal.GO_ON, 0, 0
        self._frames: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._travelled = np.zeros(len(self._robot.axes))
        self._captured = -math.inf
        self._rate.start()

    def _go_home(self, home: Float[np.ndarray, " A"]) -> Signal:
        """By steps within the limits, which are in no episode. Raises RobotError when the arm does not get there."""
        settling = max(1, round(SETTLING * self._setup.rate))
        left = 0
        position = self._look().position
        check_axes(self._robot.axes, position)
        blind = self._relative & ~np.isfinite(position) & (home != 0)
        if blind.any():  # it would move on and on
            names = [axis.name for axis, is_blind in zip(self._robot.axes, blind, strict=True) if is_blind]
            raise ValueError(f"home of {', '.join(names)} must be 0, as the robot does not measure where it is")
        for _ in range(round(PATIENCE * self._setup.rate)):
            allowed = limit(self._robot.axes, np.where(self._relative, home - self._here, home), self._here)
            self._robot.send(allowed.action)
            self._rate.wait()
            self._look()
            said = self._operator.poll()
            if said != Signal.GO_ON:
                self._robot.stop()
                return said
            left = settling if allowed.changed else left - 1  # once the place itself is sent, the arm must settle
            if left < 0:
                return Signal.GO_ON
        raise RobotError(f"the arm did not get home within {PATIENCE} s; look what is in its way, or correct home")

    def step(self, chunk: Float[Tensor, "B K A"]) -> ChunkStep:
        """Plays a chunk. Raises ValueError for NaN or infinity, before anything of the chunk is sent, and RobotError
        when the robot does not answer any longer."""
        actions = chunk[0].numpy().astype(np.float64)
        for action in actions:
            check_action(self._robot.axes, action)  # a chunk that ends in NaN is not even begun
        begun = len(self._actions)
        if self.ended == Signal.GO_ON:
            self.ended = self._operator.poll()  # the policy may have thought for long
        if self.ended != Signal.GO_ON:
            self._robot.stop()
            self._solved_at = begun
            return self._over(self._seen(1).expand(-1, self.chunk_size, -1, -1, -1), steps=0)
        for action in actions:
            if self.ended == Signal.SUCCESS:
                self._act(hold(self._robot.axes, self._actions[-1]))
                continue
            self._act(action)
            self.ended = self._operator.poll()
            if self.ended not in (Signal.GO_ON, Signal.SUCCESS):
                self._robot.stop()
                break
            if self.ended == Signal.SUCCESS:
                self._solved_at = len(self._actions)
        frames = self._seen(len(self._actions) - begun)
        if self.ended in (Signal.GO_ON, Signal.SUCCESS):
            solved = self._solved_at - begun if self.ended == Signal.SUCCESS else 0
            return self._clock.tick(frames, torch.tensor([solved]))
        missing = self.chunk_size - frames.shape[1]
        frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return self._over(frames, steps=len(self._actions) - begun)

    def _over(self, frames: UInt8[Tensor, "1 K h w 3"], steps: int) -> ChunkStep:
        """The person has ended the episode."""
        solved = torch.tensor([self.ended == Signal.SUCCESS])
        return ChunkStep(frames=frames, terminated=solved, truncated=~solved, steps=torch.tensor([steps]))

    def stop(self) -> None:
        self._robot.stop()

    def tally(self) -> Tally:
        return Tally(pace=self._rate.pace(), limited=self._limited, repeated=self._repeated)

    @property
    def num_actions(self) -> int:
        """Of the present episode, so far."""
        return len(self._actions)

    def episode(self, verdict: Signal, policy: str) -> Episode:
        """The present episode as it was really executed. A success that was seen only afterwards counts from the last
        action on."""
        solved_at = self._solved_at if self.ended == Signal.SUCCESS else len(self._actions)
        start = int(self._starts.sim_seed[0])
        return Episode(
            frames=np.concatenate(self._frames),
            actions=np.stack(self._actions).astype(np.float32),
            solved_at=solved_at if verdict == Signal.SUCCESS else -1,
            instruction=self._starts.instruction[0],
            start=start,
            episode_id=start,
            policy=policy,
            views=self._robot.views,
        )

    def _act(self, action: Float[np.ndarray, " A"]) -> None:
        """One action and the period after it."""
        allowed = limit(self._robot.axes, action, self._here)
        sent = self._robot.send(allowed.action)
        self._limited += allowed.changed or bool(np.abs(sent - allowed.action).max() > 1e-6)
        self._actions.append(sent)
        self._travelled = self._travelled + sent
        self._rate.wait()
        self._look()

    def _look(self) -> Reading:
        reading = self._robot.observe()
        self._repeated += reading.captured <= self._captured
        self._captured = reading.captured
        check_age(reading, time.perf_counter(), self._setup.max_age, self._setup.speed)
        counted = np.where(self._relative, self._travelled, np.nan)
        self._here = np.where(np.isfinite(reading.position), reading.position, counted)
        views = [resize(view[None], self._size) for view in (reading.frame, *reading.others)]
        self._frames.append(np.concatenate(views, axis=2))
        return reading

    def _seen(self, count: int) -> UInt8[Tensor, "1 F h w 3"]:
        return torch.from_numpy(np.stack(self._frames[-count:], axis=1))


def check_policy(setup: Setup, action_dim: int, views: tuple[str, ...] = ONE_VIEW) -> None:
    """Raises RobotError when a policy has another number of actions than the robot, or sees other cameras."""
    seen = setup.robot.views
    if len(seen) != len(views) or (len(views) > 1 and seen != views):
        raise RobotError(
            f"the policy sees {len(views)} cameras ({', '.join(views)}), but the robot shows {', '.join(seen)}; name "
            "the policy's in its order where the setup makes the robot"
        )
    axes = setup.robot.axes
    if len(axes) != action_dim:
        raise RobotError(
            f"the policy gives {action_dim} numbers, but the robot has {len(axes)} axes "
            f"({', '.join(axis.name for axis in axes)}); use a policy that was trained with this robot"
        )
