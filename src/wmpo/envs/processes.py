"""Processes that simulate. Nothing here needs PyTorch, which would take them seconds to import and memory to hold."""

from __future__ import annotations

import multiprocessing as mp
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from wmpo.envs.disrupt import Disruption
from wmpo.envs.simulator import Simulator, SimulatorConfig, choose_gl, expert_episode, play_episode
from wmpo.envs.tasks import SeveralTasks

DIED = """its own message is above. Processes import the script that starts them: what a script of one's own does must \
stand under `if __name__ == '__main__':`"""


class Seat:
    """A simulator and the states of the rows that are played in it, in whatever process this is. The simulator is built
    when it is first needed."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._config = config
        self._sim: Simulator | None = None
        self._states: dict[int, Any] = {}

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What command ``name`` of :data:`_COMMANDS` gives."""
        if self._sim is None:
            config = self._config
            self._sim = config.build() if len(config.tasks) == 1 else SeveralTasks(config)
        return _COMMANDS[name](self._sim, self._states, *arguments)

    def close(self) -> None:
        if self._sim is not None:
            self._sim.close()


def _serve(pipe: Connection, config: SimulatorConfig) -> None:
    """The loop of a simulator process."""
    seat = Seat(config)
    while True:
        try:
            name, args = pipe.recv()
        except EOFError:
            break
        try:
            if name == "close":
                break
            pipe.send(("ok", seat.answer(name, args)))
        except BrokenPipeError:  # whoever asked was killed
            break
        except Exception as error:
            pipe.send(("error", (type(error).__name__, str(error), traceback.format_exc())))
    seat.close()


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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what begins inside has begun, and never reaches it: it inherits the blocked signal.

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


def begin(target: Callable[..., None], *args: Any) -> tuple[Connection, BaseProcess]:
    """A new process that runs ``target(pipe, *args)``, and our end of the pipe."""
    choose_gl()  # the child inherits it
    resource_tracker.ensure_running()  # begun by the first process it would unblock Ctrl-C
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    with uninterrupted():
        process = context.Process(target=target, args=(theirs, *args), daemon=True)
        process.start()
    theirs.close()
    return ours, process


def end(begun: Sequence[tuple[Connection, BaseProcess]]) -> None:
    """Asks such processes to close, kills those that take more than five seconds, and closes the pipes."""
    for pipe, _ in begun:
        with suppress(OSError):  # it may be gone already
            pipe.send(("close", ()))
    for pipe, process in begun:
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
        pipe.close()


class Workers(ABC):
    """``count`` simulators, each somewhere else. Rows are dealt out by index, so a row always meets the same one."""

    def __init__(self, count: int) -> None:
        self._count = count

    def scatter(self, name: str, rows: dict[int, Any], *args: Any) -> dict[int, Any]:
        """Sends each row to its simulator, waits for all, and joins the answers."""
        count = self._count
        parts = [{row: value for row, value in rows.items() if row % count == i} for i in range(count)]
        joined: dict[int, Any] = {}
        for answer in self._ask(name, [(part, *args) for part in parts]):
            joined.update(answer)
        return joined

    def each(self, name: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        """One call per item, spread over the simulators."""
        batches = (calls[first : first + self._count] for first in range(0, len(calls), self._count))
        return [answer for batch in batches for answer in self._ask(name, batch)]

    @abstractmethod
    def _ask(self, name: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """The first of them, one for each of ``arguments``, all at the same time."""

    @abstractmethod
    def close(self) -> None: ...


class LocalWorkers(Workers):
    """Simulator processes of this machine, behind pipes."""

    def __init__(self, config: SimulatorConfig, count: int) -> None:
        super().__init__(count)
        begun = [begin(_serve, config) for _ in range(count)]
        self._pipes = [pipe for pipe, _ in begun]
        self._processes = [process for _, process in begun]

    def _ask(self, name: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        for pipe, own in zip(self._pipes, arguments, strict=False):
            pipe.send((name, own))
        return [self._receive(i) for i in range(len(arguments))]

    def _receive(self, index: int) -> Any:
        try:
            status, value = self._pipes[index].recv()
        except (EOFError, ConnectionResetError):
            self._processes[index].join(timeout=5)  # its pipe may close before its code is known
            code = self._processes[index].exitcode
            reason = "out of memory?" if code in (None, -9) else DIED
            raise RuntimeError(f"simulator process {index} died (exit code {code}); {reason}") from None
        if status == "ok":
            return value
        kind, message, trace = value
        error = (ValueError if kind == "ValueError" else RuntimeError)(message)
        error.add_note(f"in simulator process {index}:\n{trace}")
        raise error

    def close(self) -> None:
        end(list(zip(self._pipes, self._processes, strict=True)))
