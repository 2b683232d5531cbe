"""The report's sections, rendered again while the run goes on."""

from __future__ import annotations

import os
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from wmpo.report.headline import headline
from wmpo.report.reading import read_run
from wmpo.report.render import sections

SHOWN = ("results", "learning", "audits", "rounds", "time", "episodes")
"""Those that change while a run goes on, and stay small."""
WATCHED = ("config.json", "ledger.jsonl", "results.json", "stages/*.json", "metrics/*.jsonl")
SHARE = 0.1
"""Of one core's time that drawing may take from the training beside it."""


@dataclass(frozen=True, slots=True)
class Section:
    anchor: str
    title: str
    body: str


@dataclass(frozen=True, slots=True)
class View:
    """``stamp`` names a state of the folder; without a change there are no sections."""

    stamp: str
    hero: str = ""
    sections: tuple[Section, ...] = ()


class Live:
    """One state of the folder is drawn once, however many pages ask. matplotlib wants one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock, self._view, self._rest = path, threading.Lock(), View(""), 0.0

    def view(self, known: str) -> View:
        """The sections as the folder is, or only the stamp when the page has them already. Raises ValueError for a
        damaged file."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._view.stamp and time.monotonic() >= self._rest:
                begun = time.monotonic()
                run = read_run(self.path)
                shown = tuple(Section(*section) for section in sections(run, SHOWN))
                self._view = View(stamp, headline(run), shown)
                self._rest = time.monotonic() + (time.monotonic() - begun) * (1 / SHARE - 1)
            return View(known) if known == self._view.stamp else self._view

    def _stamp(self) -> str:
        """Of names, sizes and times of the files that the sections tell of."""
        folders = [self.path, *sorted(self.path.glob("round-*"))]
        files = [file for folder in folders for pattern in WATCHED for file in sorted(folder.glob(pattern))]
        told = [(file.name, about.st_size, about.st_mtime_ns) for file in files if (about := _about(file))]
        return f"{zlib.crc32(repr(told).encode()):08x}"


def _about(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None  # replaced or deleted just now
