"""The operator at a terminal: a key that is held, and keys that judge."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable

from wmpo.robots.protocol import RobotError, Signal

HELD = " "
KEYS = {"s": Signal.SUCCESS, "f": Signal.FAILURE, "d": Signal.DISCARD}
QUIT = "q"
HELP = "hold SPACE: the robot may move; s solved, f failed, d discard, q end the session"


class TerminalOperator:
    """A :class:`wmpo.robots.protocol.Operator`.

    A terminal does not tell when a key is let go, only that a held key repeats. So the key counts as released
    ``grace`` seconds after its last repetition; it must be longer than the keyboard's delay before the first one. This
    is slower than a switch and no replacement for the robot's emergency stop.

    Args:
        grace: seconds.
        keys: a file descriptor of a terminal; by default the standard input.
        clock: seconds that only increase.

    Raises RobotError where there is no terminal, as then nobody could stop the robot.
    """

    def __init__(
        self,
        *,
        grace: float = 0.75,
        keys: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grace, self._clock = grace, clock
        try:
            self._keys = sys.stdin.fileno() if keys is None else keys
            is_terminal = os.isatty(self._keys)
        except (OSError, ValueError):
            is_terminal = False
        if not is_terminal:
            raise RobotError(
                "the dead-man key needs a terminal, but the standard input is none; start the command in a terminal, "
                "or give the setup an operator of your own"
            )
        self._held_at = -1e9

    def __enter__(self) -> TerminalOperator:
        """Keys arrive at once and are not shown; Ctrl-C still interrupts."""
        import termios
        import tty

        self._before = termios.tcgetattr(self._keys)
        tty.setcbreak(self._keys)
        return self

    def __exit__(self, *_: object) -> None:
        import termios

        termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def reset(self, episode: int, total: int) -> bool:
        self._pressed(0.0)  # what was pressed before does not count
        self.tell(f"episode {episode} of {total}: lay out the scene, then hold SPACE ({HELP})")
        while True:
            pressed = self._pressed(None)
            if QUIT in pressed:
                return False
            if HELD in pressed:
                return True

    def poll(self) -> Signal:
        pressed = self._pressed(0.0)
        for key in pressed:
            if key in KEYS:
                return KEYS[key]
        if QUIT in pressed:
            return Signal.RELEASED
        return Signal.GO_ON if self._clock() - self._held_at <= self._grace else Signal.RELEASED

    def judge(self, why: str) -> Signal:
        self.tell(f"the robot stands still: {why}. How was it? s solved, f failed, d discard")
        while True:
            for key in self._pressed(None):
                if key in KEYS:
                    return KEYS[key]

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _pressed(self, timeout: float | None) -> str:
        """Keys since the last call; waits for one so many seconds (None: as long as it takes)."""
        pressed = ""
        while select.select([self._keys], [], [], timeout)[0]:
            content = os.read(self._keys, 1024)
            if not content:
                raise RobotError("the terminal is gone, so nobody can stop the robot; start again in a new one")
            pressed, timeout = pressed + content.decode(errors="ignore"), 0.0
        if HELD in pressed:
            self._held_at = self._clock()
        return pressed
