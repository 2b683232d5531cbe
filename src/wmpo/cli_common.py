"""What commands share: settings that several have, and commands of a command (``wmpo data import``)."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from wmpo.config import Experiment
from wmpo.data.source import Keys


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Settings of every command that runs an experiment."""

    runs: Path = Path("runs")
    "Where the folders of runs are."
    debug: bool = False
    "Show the whole traceback of an error."
    experiment: Annotated[Experiment, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = field(
        default_factory=Experiment
    )


@dataclass(frozen=True, kw_only=True)
class Naming(Keys):
    """Settings of commands that read a dataset."""

    def keys(self) -> Keys:
        """Raises ValueError for a size that no picture has."""
        if self.image_size is not None and not 1 <= self.image_size <= 4096:
            raise ValueError(f"--image-size must be in 1..4096, not {self.image_size}")
        return Keys(**{part.name: getattr(self, part.name) for part in fields(Keys)})


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """A request to end (SIGTERM) and a closed terminal (SIGHUP) do what Ctrl-C does: what is open is ended in order."""
    before = {which: signal.signal(which, signal.default_int_handler) for which in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be in 0..65535, not {port}")


def peek(args: list[str], flag: str) -> str | None:
    """The value of a flag, before the rest of the command line can be read."""
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(flag + "="):
            return arg.split("=", 1)[1]
    return None


Commands = Mapping[str, tuple[Any, Callable[[Any], None]]]
"""Name -> the record of its settings, and what is done with one."""


def dispatch(group: str, args: list[str], usage: str, commands: Commands) -> None:
    """Reads the settings and runs the command. Raises ValueError for one that does not exist."""
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0 if args else 2)
    name, rest = args[0], [a for a in args[1:] if a != "--debug"]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1, cutoff=0.4) or list(commands)
        raise ValueError(
            f"unknown command wmpo {group} {name}; did you mean {' or '.join(near)}? See wmpo {group} --help"
        )
    settings, action = commands[name]
    action(tyro.cli(settings, args=rest, prog=f"wmpo {group} {name}"))
