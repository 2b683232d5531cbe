"""Commands of a command: ``wmpo data import``, ``wmpo robot collect``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import tyro

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
