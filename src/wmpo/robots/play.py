"""Episodes of a policy on a robot, one by one: each is in the ledger and, if it counts, in the dataset before the next
one begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes, num_episodes, open_lerobot
from wmpo.data.source import Keys
from wmpo.data.splits import simulator_starts, start_seeds
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulated import Purpose
from wmpo.protocols import Policy
from wmpo.robots.env import RobotEnv, Tally
from wmpo.robots.protocol import Operator, RobotError, Signal, StaleFrames
from wmpo.rollout.run import run_episodes
from wmpo.views import ONE_VIEW


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An episode and how it ended."""

    verdict: Signal
    "SUCCESS, FAILURE or DISCARD."
    why: str
    "Why it ended."
    episode: Episode | None
    "None: discarded."
    tally: Tally


WHY = {
    Signal.GO_ON: "its time is over",
    Signal.RELEASED: "the key was released",
    Signal.SUCCESS: "solved",
    Signal.FAILURE: "failed",
    Signal.DISCARD: "discarded",
}


def play_episode(
    env: RobotEnv, operator: Operator, policy: Policy, instruction: str, start: int, purpose: Purpose
) -> Played:
    """One episode from the scene as it lies, with the robot standing still before and after it.

    ``start`` names the scene and keys the noise of the actions. Old pictures end the episode, which is then discarded.
    Raises StaleFrames when they are old before the first action already, and RobotError when the robot does not answer
    any longer; it is then told to stop all the same.
    """
    starts = simulator_starts([start], (instruction,))
    try:
        with _stopping(env):
            run_episodes(env, policy, starts, temperature=purpose.temperature, seed=purpose.seed)
        verdict, why = env.ended, WHY[env.ended]
        if env.num_actions == 0:
            verdict, why = Signal.DISCARD, f"{why} before the first action"
        if verdict in (Signal.GO_ON, Signal.RELEASED):
            verdict = operator.judge(why)
    except StaleFrames as error:
        if env.num_actions == 0:
            raise  # the next episode would not even begin either
        verdict, why = Signal.DISCARD, str(error)
    episode = env.episode(verdict, purpose.policy) if verdict != Signal.DISCARD else None
    return Played(verdict=verdict, why=why, episode=episode, tally=env.tally())


@contextmanager
def _stopping(env: RobotEnv) -> Iterator[None]:
    """The robot stands still afterwards, whatever happened. A failure to stop must not hide what happened before."""
    try:
        yield
    except BaseException as error:
        try:
            env.stop()
        except RobotError as second:
            error.add_note(f"and the robot could not be told to stop: {second}")
        raise
    env.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What episodes are played for, and where they go."""

    purpose: Purpose
    instruction: str
    dataset: Path
    "Where episodes are stored, and ``ledger.jsonl``, which counts them all."

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.dataset / "ledger.jsonl")


def play_episodes(
    env: RobotEnv, operator: Operator, policy: Policy, session: Session, wanted: int, *, fps: int, have: int = 0
) -> list[Played]:
    """Plays until ``wanted`` episodes count, ``have`` of which do already, or the person ends the session.

    Every episode is written to the ledger, also one that is discarded or during which the robot fails: it was a real
    one. An interruption at any moment loses the episode that is being played, and no other.
    """
    played: list[Played] = []
    while have < wanted and operator.reset(have + 1, wanted):
        (start,) = start_seeds("robot", 0, len(session.ledger.episodes()), 1)
        try:
            now = play_episode(env, operator, policy, session.instruction, start, session.purpose)
        except BaseException as error:
            _account(session, start, env, "failed", str(error) or type(error).__name__)
            raise
        _account(session, start, env, now.verdict.value, now.why)
        if now.episode is not None:
            append_episodes(session.dataset, [now.episode], fps=fps)
            have += 1
        played.append(now)
        operator.tell(f"{now.verdict.value} after {env.num_actions} actions ({now.why}); {now.tally.words()}")
    return played


def _account(session: Session, start: int, env: RobotEnv, outcome: str, why: str) -> None:
    """First of all: what was played must be counted even if nothing else can be written."""
    purpose, tally = session.purpose, env.tally()
    session.ledger.record(
        [
            {
                "purpose": purpose.purpose, "policy": purpose.policy, "temperature": purpose.temperature,
                "seed": purpose.seed, "start": start, "episode": start, "success": outcome == Signal.SUCCESS.value,
                "steps": env.num_actions, "outcome": outcome, "why": why, "late": tally.pace.late,
                "limited": tally.limited, "repeated": tally.repeated,
            }
        ]
    )  # fmt: skip


def stored(root: Path, *, fps: int, image_size: int, action_dim: int, views: tuple[str, ...] = ONE_VIEW) -> int:
    """How many episodes a dataset holds. Raises ValueError, before anything is played, when others do not fit them."""
    count = num_episodes(root)
    if not count:
        return 0
    source = open_lerobot(root, Keys())
    first = next(iter(source.episodes))
    found = source.fps, first.frames.shape[1], first.actions.shape[1], first.views
    if found != (fps, image_size, action_dim, views):
        raise ValueError(
            f"{root} has {found[0]} frames a second, pictures of {found[1]} pixels, {found[2]} action dimensions and "
            f"the cameras {', '.join(found[3])}, not {fps}, {image_size}, {action_dim} and {', '.join(views)}; choose "
            "another --to"
        )
    return count
