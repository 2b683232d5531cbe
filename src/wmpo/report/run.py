"""The folder of a run: where every stage leaves its results, its progress and its time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from wmpo.checkpoint import read_json, write_atomic, write_json


class RunFolder:
    """Paths of a run. A stage is complete when its summary ``stages/<stage>.json`` exists."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def model(self, name: str) -> Path:
        return self.path / "models" / f"{name}.safetensors"

    def checkpoint(self, name: str) -> Path:
        """Where an unfinished training keeps its state; deleted when its stage is complete."""
        return self.path / "unfinished" / f"{name}.safetensors"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    def summary(self, stage: str) -> dict[str, Any] | None:
        path = self.path / "stages" / f"{stage}.json"
        return read_json(path) if path.exists() else None

    def complete(self, stage: str, seconds: float, summary: dict[str, Any]) -> None:
        write_json(self.path / "stages" / f"{stage}.json", {"seconds": round(seconds, 2), **summary})


class StageLog:
    """Progress of one stage: a line on the terminal, and metrics as JSON lines in the run's folder.

    The time of a stage includes what interrupted attempts spent up to their last checkpoint (``keep_time``).
    """

    def __init__(self, folder: RunFolder, stage: str, *, label: str = "", quiet: bool = False) -> None:
        self.folder, self.stage, self.label, self.quiet = folder, stage, label or stage, quiet
        self.path = folder.path / "metrics" / f"{stage}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._kept = folder.path / "unfinished" / f"{stage}-seconds.json"
        self.begun = time.monotonic() - (read_json(self._kept) if self._kept.exists() else 0.0)
        self._first: tuple[float, int, int] | None = None
        self._done, self._shown = 0, 0.0

    def resume(self, key: str, first: int) -> None:
        """Forgets metrics at or after ``first``: they will be written again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)[key] < first:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue
        write_atomic(self.path, "".join(kept).encode())

    def write(self, **metrics: Any) -> None:
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in metrics.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps(rounded) + "\n")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Shows how far the stage is and how long it still takes; on a terminal the line is overwritten."""
        now = time.monotonic()
        if self._first is None or self._first[2] != total or done < self._done:  # a stage may train twice
            self._first = (now, done, total)
        self._done = done
        if self.quiet or (done < total and now - self._shown < (0.5 if sys.stderr.isatty() else 30)):
            return
        self._shown = now
        rate = (done - self._first[1]) / max(now - self._first[0], 1e-6)
        left = f"{(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        line = f"{self.label:13s} {done}/{total}  {note}  {left}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line[:118]}", end="", file=sys.stderr, flush=True)
        else:
            print(line.rstrip(), file=sys.stderr, flush=True)

    def keep_time(self) -> None:
        """To be called with every checkpoint."""
        write_json(self._kept, time.monotonic() - self.begun)

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            clear = "\r\033[K" if sys.stderr.isatty() else ""
            print(f"{clear}{self.label:13s} {text}", file=sys.stderr, flush=True)

    def finish(self, note: str) -> float:
        """Prints the stage's result line; returns its seconds."""
        seconds = time.monotonic() - self.begun
        self.note(f"{note}  ({seconds:.0f} s)")
        return seconds
