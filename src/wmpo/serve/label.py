"""``wmpo label``: a person watches episodes and says which were solved; each label is on disk before the next one."""

from __future__ import annotations

import base64
import io
import shlex
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wmpo.data.importing import read_labels, write_labels
from wmpo.data.source import Keys
from wmpo.serve.film import Film
from wmpo.serve.messages import Message, Refused
from wmpo.serve.recordings import Recordings
from wmpo.serve.server import Ask, PageServer

WIDEST, LOSSLESS = 360, 128
"""Pixels: larger pictures are made smaller for the page, and up to the second number they come without loss."""
SHEET = 12_000
"""Most pixels from top to bottom of one picture for the browser, which holds many frames; browsers end at 16,384."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An episode for the page."""

    episode: int
    instruction: str
    films: list[Film]
    "Frames, in pieces that follow each other."


@dataclass(frozen=True, slots=True)
class Mark:
    """``solved_at``: actions after which the task was first solved; None: by the end of the episode."""

    success: bool
    solved_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What has a label so far; ``marks`` has one place for each episode."""

    name: str
    file: str
    fps: int
    marks: list[Mark | None]
    then: str
    "The command that takes the labels in."
    undone: int | None = None


class Labelling:
    """Labels in a file, which is read and replaced for each one, so that it may be edited in between.

    Raises ValueError when the file exists and is no list of labels of these episodes.
    """

    def __init__(self, path: Path, file: Path, keys: Keys) -> None:
        self.path, self.file, self.recordings = path, file, Recordings(path, keys)
        self._lock = threading.Lock()
        self.progress()

    def progress(self, undone: int | None = None) -> Progress:
        labels = self._labels()
        marks = [Mark(*labels[i]) if i in labels else None for i in range(len(self.recordings))]
        return Progress(
            name=self.path.resolve().name, file=str(self.file), fps=self.recordings.fps, marks=marks,
            then=self._command(), undone=undone,
        )  # fmt: skip

    def _command(self) -> str:
        flags = {"to": "data/labelled", "labels": self.file, **asdict(self.recordings.keys)}
        told = [
            f"--{name.replace('_', '-')} {shlex.join(map(str, value if isinstance(value, tuple) else (value,)))}"
            for name, value in flags.items()
            if value not in (None, ())
        ]
        path = shlex.quote(str(self.path))
        first, source = (f"wmpo data export {path} --to out; ", "out") if self.recordings.is_run else ("", path)
        return f"{first}wmpo data import {source} {' '.join(told)}"

    def show(self, number: int) -> Shown:
        episode = self.recordings.episode(number)
        return Shown(number, episode.instruction, films(episode.frames))

    def mark(self, number: int, success: bool, solved_at: int) -> Progress:
        """``solved_at`` 0: by the end. The latest label is the last line of the file, whatever its episode is."""
        if not 0 <= number < len(self.recordings):
            raise Refused(f"there is no episode {number}; they are 0..{len(self.recordings) - 1}", 404)
        with self._lock:
            labels = self._labels()
            labels.pop(number, None)
            self._write(labels | {number: (success, solved_at or None if success else None)})
        return self.progress()

    def undo(self) -> Progress:
        """Takes the latest label back."""
        with self._lock:
            labels = self._labels()
            if not labels:
                raise Refused("there is no label to take back", 409)
            undone, _ = labels.popitem()
            self._write(labels)
        return self.progress(undone)

    def _write(self, labels: dict[int, tuple[bool, int | None]]) -> None:
        try:
            write_labels(self.file, labels)
        except OSError as error:
            says = f"{self.file} cannot be written ({error.strerror}), so nothing was saved"
            raise Refused(f"{says}; free space, or start again with another --to", 507) from error

    def _labels(self) -> dict[int, tuple[bool, int | None]]:
        labels = read_labels(self.file) if self.file.exists() else {}
        if unknown := sorted(set(labels) - set(range(len(self.recordings)))):
            raise ValueError(
                f"{self.file} labels episodes {unknown[:3]}, but {self.path} has 0..{len(self.recordings) - 1}; "
                "choose another --to"
            )
        return labels


def films(frames: UInt8[np.ndarray, "L h w 3"]) -> list[Film]:
    """For an eye, not for a policy: large pictures become smaller and lose a little."""
    height, width = frames.shape[1:3]
    scale = min(1.0, WIDEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = "png" if max(size) <= LOSSLESS else "jpeg"
    each = max(1, SHEET // size[1])
    return [_film(frames[begin : begin + each], size, kind) for begin in range(0, len(frames), each)]


def _film(frames: UInt8[np.ndarray, "L h w 3"], size: tuple[int, int], kind: str) -> Film:
    pictures = [np.asarray(Image.fromarray(frame).resize(size)) for frame in frames]
    content = io.BytesIO()
    Image.fromarray(np.concatenate(pictures)).save(content, format=kind, **({"quality": 88} if kind == "jpeg" else {}))
    url = f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
    return Film(url, len(frames), [None] * len(frames))


class LabelServer(PageServer):
    """Raises ValueError when there is nothing to label or the port cannot be used. This machine only."""

    def __init__(self, path: Path, file: Path, keys: Keys, port: int) -> None:
        self.labelling = labelling = Labelling(path, file, keys)

        def mark(message: Message) -> Progress:
            success = message.integer("success", 0, 1) == 1
            return labelling.mark(_number(message), success, message.integer("solved_at", 0, 10**6))

        asks = {
            "/api/progress": Ask((), lambda _: labelling.progress()),
            "/api/show": Ask(("episode",), lambda m: labelling.show(_number(m))),
            "/api/mark": Ask(("episode", "success", "solved_at"), mark),
            "/api/undo": Ask((), lambda _: labelling.undo()),
        }
        super().__init__("label.html", ("draw.js", "label.js"), asks, "127.0.0.1", port)


def _number(message: Message) -> int:
    return message.integer("episode", 0, 10**9)
