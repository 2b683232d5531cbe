"""One process writes to a run's folder at a time; others are told so, or take something else."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN, EWOULDBLOCK
from pathlib import Path


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process alone may write to a folder as long as the block lasts. The claim ends with the process,
    however it ends, so none is ever left behind. On a file system without locks everybody may."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield error.errno not in (EAGAIN, EWOULDBLOCK)
        else:
            yield True


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """The same for one who needs that folder. Raises ValueError while another process has it."""
    with claimed(folder) as mine:
        if not mine:
            raise ValueError(
                f"another wmpo process is at work in {folder}; wait until it has ended, or choose another --name"
            )
        yield
