"""The real (simulated) environment: many simulated episodes in lockstep, over one simulator process per core.

One process holds one simulator and swaps episode states in and out of it, because several GL contexts in a process
corrupt each other under OSMesa and because a model takes a second or more to build.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wmpo.envs.clock import Clock
from wmpo.envs.disrupt import NONE, Disruption, Push
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulator import Simulator, SimulatorConfig, choose_gl, expert_episode, play_episode
from wmpo.types import ChunkStep, Observation, Starts


@dataclass(frozen=True, slots=True)
class Purpose:
    """Why real episodes are played; written to the ledger with each of them."""

    purpose: str
    policy: str
    temperature: float = 0.0
    seed: int = 0


def _serve(pipe: Connection, config: SimulatorConfig) -> None:
    """The loop of a simulator process."""
    torch.set_num_threads(1)
    sim: Simulator | None = None
    states: dict[int, Any] = {}
    while True:
        try:
            name, args = pipe.recv()
        except EOFError:
            break
        try:
            if name == "close":
                break
            sim = sim or config.build()
            pipe.send(("ok", _COMMANDS[name](sim, states, *args)))
        except Exception as error:
            pipe.send(("error", (type(error).__name__, str(error), traceback.format_exc())))
    if sim is not None:
        sim.close()


def _reset(
    sim: Simulator, states: dict[int, Any], seeds: dict[int, int], disruption: Disruption
) -> dict[int, np.ndarray]:
    states.clear()
    frames = {}
    for row, seed in seeds.items():
        sim.reset(seed, disruption)
        frames[row] = sim.render(disruption)
        states[row] = sim.snapshot()
    return frames


def _step(
    sim: Simulator,
    states: dict[int, Any],
    chunks: dict[int, np.ndarray],
    stride: int,
    disruption: Disruption,
    pushes: dict[int, np.ndarray],
) -> dict[int, tuple[np.ndarray, int]]:
    played = {}
    for row, chunk in chunks.items():
        sim.restore(states[row])
        frames, solved_after = [], 0
        for k, action in enumerate(chunk, start=1):
            if sim.step(action) and not solved_after:
                solved_after = k
            if k == len(chunk) and row in pushes and not solved_after:
                sim.push(pushes[row])
            if k % stride == 0:
                frames.append(sim.render(disruption))
        states[row] = sim.snapshot()
        played[row] = (np.stack(frames), solved_after)
    return played


def _expert(sim: Simulator, states: dict[int, Any], seed: int, *args: Any) -> Any:
    return expert_episode(sim, seed, *args)


def _play(sim: Simulator, states: dict[int, Any], seed: int, num_steps: int) -> Any:
    return play_episode(sim, seed, num_steps)


_COMMANDS: dict[str, Callable[..., Any]] = {"reset": _reset, "step": _step, "expert": _expert, "play": _play}


class SimulatedEnv:
    """A :class:`wmpo.protocols.ChunkEnv` over real physics.

    Args:
        config: the task and its camera.
        chunk_size: K, actions in a chunk.
        max_chunks: time limit in chunks.
        frame_stride: a frame is rendered every this many actions; K renders only what a policy sees.
        ledger: where finished episodes are written, or None for throughput measurements.
        num_workers: simulator processes; by default one per core.
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
    ) -> None:
        config.validate()
        if chunk_size % frame_stride:
            raise ValueError(f"frame_stride {frame_stride} must divide the chunk size {chunk_size}")
        self.config, self.chunk_size, self.max_chunks, self.frame_stride = config, chunk_size, max_chunks, frame_stride
        self.purpose = Purpose("unnamed", "unnamed")
        self._disruption: Disruption = NONE
        self._push: Push | None = None
        self._ledger = ledger
        self._workers = _Workers(config, num_workers or os.cpu_count() or 1)
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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until all processes have begun, and never reaches them: they inherit the blocked signal.

    Blocking alone would not hold it back here: one of torch's threads would take it.
    """
    if threading.current_thread() is not threading.main_thread():
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # only for the processes: here none arrives
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)


class _Workers:
    """Simulator processes behind pipes. Rows are dealt out by index, so a row always meets the same simulator."""

    def __init__(self, config: SimulatorConfig, count: int) -> None:
        choose_gl()  # the children inherit it
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        with uninterrupted():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, config), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)

    def scatter(self, name: str, rows: dict[int, Any], *args: Any) -> dict[int, Any]:
        """Sends each row to its process, waits for all, and joins the answers."""
        count = len(self._pipes)
        parts = [{row: value for row, value in rows.items() if row % count == i} for i in range(count)]
        for pipe, part in zip(self._pipes, parts, strict=True):
            pipe.send((name, (part, *args)))
        joined: dict[int, Any] = {}
        for i in range(count):
            joined.update(self._receive(i))
        return joined

    def each(self, name: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        """One call per item, spread over the processes."""
        results: list[Any] = []
        for first in range(0, len(calls), len(self._pipes)):
            batch = calls[first : first + len(self._pipes)]
            for pipe, call in zip(self._pipes, batch, strict=False):
                pipe.send((name, call))
            results += [self._receive(i) for i in range(len(batch))]
        return results

    def _receive(self, index: int) -> Any:
        try:
            status, value = self._pipes[index].recv()
        except (EOFError, ConnectionResetError):
            code = self._processes[index].exitcode
            raise RuntimeError(f"simulator process {index} died (exit code {code}); out of memory?") from None
        if status == "ok":
            return value
        kind, message, trace = value
        error = (ValueError if kind == "ValueError" else RuntimeError)(message)
        error.add_note(f"in simulator process {index}:\n{trace}")
        raise error

    def close(self) -> None:
        for pipe in self._pipes:
            try:
                pipe.send(("close", ()))
            except (BrokenPipeError, OSError):
                continue
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
        for pipe in self._pipes:
            pipe.close()
