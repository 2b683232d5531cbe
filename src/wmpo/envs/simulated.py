"""The real (simulated) environment: many simulated episodes in lockstep, over one simulator process per core, or over
actors of Ray (:mod:`wmpo.execution.ray_simulators`).

One process holds one simulator and swaps episode states in and out of it, because several GL contexts in a process
corrupt each other under OSMesa and because a model takes a second or more to build.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wmpo.envs.clock import Clock
from wmpo.envs.disrupt import NONE, Disruption, Push
from wmpo.envs.ledger import Ledger
from wmpo.envs.processes import LocalWorkers, Workers
from wmpo.envs.simulator import SimulatorConfig
from wmpo.types import ChunkStep, Observation, Starts


@dataclass(frozen=True, slots=True)
class Purpose:
    """Why real episodes are played; written to the ledger with each of them."""

    purpose: str
    policy: str
    temperature: float = 0.0
    seed: int = 0


class SimulatedEnv:
    """A :class:`wmpo.protocols.ChunkEnv` over real physics.

    Args:
        config: the task and its camera.
        chunk_size: K, actions in a chunk.
        max_chunks: time limit in chunks.
        frame_stride: a frame is rendered every this many actions; K renders only what a policy sees.
        ledger: where finished episodes are written, or None for throughput measurements.
        num_workers: simulator processes; by default one per core.
        workers: simulators that run already, instead of these processes; they are closed with the environment.
    """

    def __init__(
        self,
        config: SimulatorConfig,
        *,
        chunk_size: int,
        max_chunks: int,
        frame_stride: int,
        ledger: Ledger | None,
        num_workers: int | None = None,
        workers: Workers | None = None,
    ) -> None:
        config.validate()
        if chunk_size % frame_stride:
            raise ValueError(f"frame_stride {frame_stride} must divide the chunk size {chunk_size}")
        self.config, self.chunk_size, self.max_chunks, self.frame_stride = config, chunk_size, max_chunks, frame_stride
        self.purpose = Purpose("unnamed", "unnamed")
        self._disruption: Disruption = NONE
        self._push: Push | None = None
        self._ledger = ledger
        self._workers = workers or LocalWorkers(config, num_workers or os.cpu_count() or 1)
        self._clock = Clock(0, chunk_size, max_chunks)

    @contextmanager
    def disrupted(self, disruption: Disruption = NONE, push: Push | None = None) -> Iterator[None]:
        """Episodes played inside are disturbed; the ledger says how. The expert's are not."""
        self._disruption, self._push = disruption, push
        try:
            yield
        finally:
            self._disruption, self._push = NONE, None

    def reset(self, starts: Starts) -> Observation:
        """Puts every row at its start state and renders it."""
        self._starts, self._clock = starts, Clock(len(starts), self.chunk_size, self.max_chunks)
        self._num_steps = torch.zeros(len(starts), dtype=torch.long)
        frames = self._workers.scatter("reset", dict(enumerate(starts.sim_seed.tolist())), self._disruption)
        self._last = torch.from_numpy(np.stack([frames[i] for i in range(len(starts))]))
        return Observation(frame=self._last, instruction=starts.instruction)

    def step(self, chunk: Float[Tensor, "B K A"]) -> ChunkStep:
        """Plays one chunk in the rows that are not finished. NaN or infinite actions raise ValueError."""
        if not torch.isfinite(chunk).all():
            rows = (~torch.isfinite(chunk).flatten(1).all(1)).nonzero().flatten().tolist()
            raise ValueError(f"the policy gave NaN or infinite actions in rows {rows}; its weights are damaged")
        actions = chunk.numpy().astype(np.float64)
        active = self._clock.active.tolist()
        chunks = {row: actions[row] for row in active}
        played = self._workers.scatter("step", chunks, self.frame_stride, self._disruption, self._pushes(active))
        num_frames = self.chunk_size // self.frame_stride
        frames = self._last.unsqueeze(1).repeat(1, num_frames, 1, 1, 1)
        solved_after = torch.zeros(len(self._starts), dtype=torch.long)
        for row, (rendered, solved) in played.items():
            frames[row] = torch.from_numpy(rendered)
            solved_after[row] = solved
        self._last = frames[:, -1]
        step = self._clock.tick(frames, solved_after)
        self._num_steps += step.steps
        self._record(step.terminated | step.truncated, step.terminated)
        return step

    def leave(self) -> None:
        """Ends the episodes that still play, as unsolved. Whoever does not play to the end must call it: what was
        begun counts as much as what was finished."""
        begun = ~self._clock.finished
        self._clock.finished = torch.ones_like(begun)
        if len(begun):
            self._record(begun & (self._num_steps > 0), torch.zeros_like(begun))

    def _pushes(self, active: list[int]) -> dict[int, Float[np.ndarray, " 3"]]:
        """Displacements of the hands that are pushed when the present chunk ends."""
        if self._push is None or self._clock.chunk + 1 != self._push.chunk:
            return {}
        return {row: self._push.offset(int(self._starts.sim_seed[row])) for row in active}

    def _record(self, which: Bool[Tensor, " B"], success: Bool[Tensor, " B"]) -> None:
        ended = which.nonzero().flatten().tolist()
        if self._ledger is None or not ended:
            return
        labels = [self._disruption.label] * (self._disruption != NONE) + ([self._push.label] if self._push else [])
        disturbed = {"disruption": ", ".join(labels)} if labels else {}
        self._ledger.record(
            [
                {
                    "purpose": self.purpose.purpose,
                    "policy": self.purpose.policy,
                    "temperature": self.purpose.temperature,
                    "seed": self.purpose.seed,
                    "start": int(self._starts.sim_seed[row]),
                    "episode": int(self._starts.episode_id[row]),
                    "success": bool(success[row]),
                    "steps": int(self._num_steps[row]),
                    **disturbed,
                }
                for row in ended
            ]
        )

    def play_expert(
        self, seeds: list[int], *, noise: float, frame_stride: int
    ) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """The scripted expert's episodes, in order of seeds: (frames, actions, solved after how many actions or -1)."""
        limit = self.chunk_size * self.max_chunks
        episodes = self._workers.each("expert", [(seed, noise, limit, frame_stride) for seed in seeds])
        self._record_expert(self.purpose, seeds, episodes, noise)
        return episodes

    def play_around(self, seeds: list[int], *, num_steps: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Episodes for pretraining a world model (see :func:`wmpo.envs.simulator.play_episode`)."""
        episodes = self._workers.each("play", [(seed, num_steps) for seed in seeds])
        self._record_expert(Purpose("pretraining", "play"), seeds, episodes, 0.0)
        return episodes

    def _record_expert(
        self, purpose: Purpose, seeds: list[int], episodes: list[tuple[np.ndarray, np.ndarray, int]], noise: float
    ) -> None:
        if self._ledger is None:
            return
        self._ledger.record(
            [
                {"purpose": purpose.purpose, "policy": purpose.policy, "temperature": noise, "seed": 0, "start": seed,
                 "episode": seed, "success": solved >= 0, "steps": len(actions)}
                for seed, (_, actions, solved) in zip(seeds, episodes, strict=True)
            ]
        )  # fmt: skip

    def close(self) -> None:
        self._workers.close()

    def __enter__(self) -> SimulatedEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
