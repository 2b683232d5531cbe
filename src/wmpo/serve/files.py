"""What can be read under ``/run/``: files of the run's folder, nothing beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from wmpo.serve.messages import Refused

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
"""Weights and datasets are no pages."""
CLOSED = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; media-src data:"
)
"""Content policy of these files: whoever wrote a page into the folder gets an origin of its own, so that its scripts
cannot ask this server for anything."""


@dataclass(frozen=True, slots=True)
class File:
    """Content with what the browser must know of it."""

    content: bytes
    kind: str
    policy: str


def run_file(root: Path, asked: str) -> File:
    """``asked`` is the path under the run's folder as in the address. Raises :class:`Refused` (404) for anything else
    than one of its readable files, also for links that lead out of it."""
    gone = Refused("the run's folder has no such file", 404)
    try:
        name = unquote(asked, errors="strict")
        path = (root / name).resolve(strict=True)
        if "\\" in name or not path.is_relative_to(root.resolve()) or not path.is_file() or path.suffix not in KINDS:
            raise gone
        return File(path.read_bytes(), KINDS[path.suffix], CLOSED)
    except (OSError, ValueError, RuntimeError) as error:  # no file, a zero byte, a loop of links
        raise gone from error
