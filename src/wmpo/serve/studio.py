"""The run's networks and simulator, as the browser asks for them: replays, siblings, and dreams to drive."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wmpo.envs.recorded import RecordedConfig
from wmpo.envs.simulated import SimulatedEnv
from wmpo.envs.simulator import SimulatorConfig
from wmpo.nn import picture_distance
from wmpo.protocols import PolicyNet
from wmpo.serve.about import About, about, episode
from wmpo.serve.film import Film
from wmpo.serve.imagine import Group, Replayed, replayed, siblings
from wmpo.serve.messages import Refused
from wmpo.serve.session import Acting, Session
from wmpo.stages import models
from wmpo.stages.guards import cast_shadow, imagined_starts
from wmpo.stages.job import existing_job
from wmpo.stages.rounds import imagined_env, last_round, policy_of

MOST = 4
"""Dreams that are kept; a further one ends the oldest."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A new dream: its name in later messages, and its first frame."""

    session: str
    film: Film | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a step showed; films hold the new frames only. ``doubt`` and ``apart`` are mean differences of pixels in
    [-1, 1]: between two dreams of the same actions, and between dream and reality where both have come as far."""

    dream: Film | None
    dream_state: str
    dream_steps: int
    doubt: float
    real: Film | None
    real_state: str
    real_steps: int
    apart: float | None
    playing: bool
    problem: str
    "Why there is no reality, if it was asked for."


class Studio:
    """Raises ValueError when ``path`` is no run.

    One request at a time, as networks use all cores anyway. There is one simulator; the session that asks for it last
    has it.
    """

    def __init__(self, path: Path) -> None:
        self.job = existing_job(path)
        self.job.experiment = replace(self.job.experiment, num_workers=1)  # it plays one episode at a time
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._env: SimulatedEnv | None = None
        self._inside: Session | None = None

    def about(self) -> About:
        return about(self.job)

    def replay(self, place: int) -> Replayed:
        """A collected episode and its actions in the dream."""
        with self._lock:
            return replayed(self.job, self._round(), episode(self.job, place))

    def siblings(self, place: int, policy: str, temperature: float, draw: int) -> Group:
        """A group as GRPO samples it."""
        with self._lock:
            actor = self._policies()[policy]
            start = episode(self.job, place)
            return siblings(self.job, self._round(), start, actor, temperature=temperature, draw=draw)

    def begin(self, place: int, draw: int) -> Begun:
        """A dream from a collected episode's first frame. ``draw`` keys all its noise."""
        with self._lock:
            env, start = imagined_env(self.job, self._round()), imagined_starts([episode(self.job, place)])
            cast_shadow(env)
            start = start.with_ids(torch.tensor([draw]), torch.tensor([draw]))
            session = Session(env, start, self._policies(), self.job.seed)
            while len(self._sessions) >= MOST:
                self._end(next(iter(self._sessions)))
            key = secrets.token_urlsafe(12)
            self._sessions[key] = session
            return Begun(key, session.dream.follow([]))

    def step(self, key: str, acting: Acting | None, world: str) -> Seen:
        """Plays one more chunk; without ``acting`` only lets reality catch up."""
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                raise Refused("this dream has ended; begin a new one", 404)
            if acting is not None and not session.playing(world):
                raise Refused("this episode has ended; begin a new one", 409)
            if acting is not None:
                session.act(acting, world, self._steered(acting))
            dream, real, problem = session.dream.follow(session.chunks), None, ""
            if world != "imagined":
                try:
                    real = self._reality(session)
                except (RuntimeError, ImportError, OSError, ValueError) as error:  # no GL, memory or simulator
                    problem = str(error).partition("\n")[0]
            return _seen(session, dream, real, world, problem)

    def _steered(self, acting: Acting) -> SimulatorConfig | None:
        """What the keys move."""
        if isinstance(self.job.experiment.env, RecordedConfig):
            if acting.driver == "keys":
                raise Refused("keys can move a simulated hand only; let a policy act", 409)
            return None
        return self.job.experiment.env

    def _reality(self, session: Session) -> Film | None:
        """What the simulator has played now and not before. Another session's real episode ends here."""
        if self._inside is not session:
            self._leave()
            self._env = self.job.real_env(session.purpose, frame_stride=session.env.world_model.frame_stride)
            session.enter(self._env)
            self._inside = session
        assert self._env is not None and session.real is not None
        self._env.purpose = session.purpose
        return session.real.follow(session.chunks)

    def _leave(self) -> None:
        """Ends the real episode that is being played, if any; the ledger counts it."""
        if self._inside is not None and self._env is not None:
            self._env.leave()
            self._inside.real = None
        self._inside = None

    def _end(self, key: str) -> None:
        if self._sessions.pop(key) is self._inside:
            self._leave()

    def _round(self) -> int:
        number = last_round(self.job)
        if number == 0:
            raise Refused(
                "this run has no complete round yet, so it cannot dream; it can as soon as improve is done", 409
            )
        return number

    def _policies(self) -> dict[str, PolicyNet]:
        return {"base": models.load_policy(self.job.root, "base"), "improved": policy_of(self.job, self._round() + 1)}

    def close(self) -> None:
        """Counts what was begun, and stops the simulator."""
        with self._lock:
            self._leave()
            self.job.__exit__()


def _seen(session: Session, dream: Film | None, real: Film | None, world: str, problem: str) -> Seen:
    both = session.real is not None and session.real.num_chunks == session.dream.num_chunks > 0
    apart = float(picture_distance(session.dream.frame, session.real.frame)) if both and session.real else None
    return Seen(
        dream=dream, dream_state=session.dream.state, dream_steps=session.dream.num_steps,
        doubt=float(session.env.doubt), real=real, real_state=session.real.state if session.real else "",
        real_steps=session.real.num_steps if session.real else 0, apart=apart, playing=session.playing(world),
        problem=problem,
    )  # fmt: skip
