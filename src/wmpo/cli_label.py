"""``wmpo label FOLDER``: a page on which a person says which episodes were solved."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import tyro

from wmpo.cli_common import Naming, check_port
from wmpo.serve.label import LabelServer


@dataclass(frozen=True, kw_only=True)
class Label(Naming):
    """Shows episodes in the browser; two keys say which were solved, for wmpo data import --labels."""

    folder: tyro.conf.Positional[Path]
    "A dataset in any of the formats that wmpo data import reads, or the folder of a run: its collected episodes."
    to: Path | None = None
    "The file of labels; by default NAME-labels.csv in the working directory. What it holds already is kept."
    port: int = 8001
    "Port to listen on, on this machine only; 0 takes a free one."


SETTINGS = Label


def main(args: list[str]) -> None:
    """Serves until it is interrupted. Raises ValueError for wrong input, like every command."""
    settings = tyro.cli(Label, args=[a for a in args if a != "--debug"], prog="wmpo label")
    check_port(settings.port)
    file = settings.to or Path(f"{settings.folder.resolve().stem}-labels.csv")
    with LabelServer(settings.folder, file, settings.keys(), settings.port) as server:
        print(f"{settings.folder}: http://127.0.0.1:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        marks = server.labelling.progress().marks
        solved = sum(mark.success for mark in marks if mark)
        print(f"{file}: {sum(mark is not None for mark in marks)} of {len(marks)} labelled, {solved} solved")
