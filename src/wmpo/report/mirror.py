"""A run's metrics for TensorBoard or Weights & Biases, read from its folder: also while the run goes on, and with no
hook in any training."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

INDICES = ("step", "iteration")
"""What rows of metrics count; the first that a row has is its place on the axis."""


@dataclass(frozen=True, slots=True)
class Point:
    """One number of a curve. ``group`` is the stage, with its round from the second one on."""

    group: str
    name: str
    step: int
    value: float


class Writer(Protocol):
    """Where points go."""

    def write(self, point: Point) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Mirror:
    """Hands each point of a run's metrics on once.

    A training that is resumed writes its last rows again, with the same numbers: what is not after the last point of
    its curve is left out. Raises ValueError when the folder is no run.
    """

    def __init__(self, run: Path) -> None:
        if not (run / "config.json").exists():
            raise ValueError(f"{run} is no run, as it has no config.json; give the folder of a run, such as runs/NAME")
        self.run = run
        self._last: dict[tuple[str, str], int] = {}

    def new(self) -> Iterator[Point]:
        """The points that were not there yet."""
        for point in points(self.run):
            curve = point.group, point.name
            if point.step > self._last.get(curve, -1):
                self._last[curve] = point.step
                yield point

    def copy(self, writer: Writer, *, follow: bool, seconds: float = 5.0) -> int:
        """Writes them; with ``follow`` every few seconds until it is interrupted. Returns how many, also then."""
        count = 0
        try:
            while True:
                for point in self.new():
                    writer.write(point)
                    count += 1
                writer.flush()
                if not follow:
                    return count
                time.sleep(seconds)
        except KeyboardInterrupt:
            return count
        finally:
            writer.close()


def points(run: Path) -> Iterator[Point]:
    """All numbers in ``metrics/*.jsonl`` of all rounds, in the order of the files, and at the end real success.

    Of a list, such as the replay distance of each chunk, the last number. Torn last lines are left out.
    """
    for folder in (run, *sorted(run.glob("round-*"))):
        for file in sorted((folder / "metrics").glob("*.jsonl")):
            group = file.stem if folder == run else f"{folder.name}/{file.stem}"
            for line in file.read_text().splitlines():
                yield from _row(group, _object(line))
    results = _object((run / "results.json").read_text()) if (run / "results.json").exists() else {}
    for policy in ("base", "improved"):
        for decoding, record in results.get(policy, {}).items():
            yield Point("real_success", f"{policy}_{decoding}", 0, float(record["success"]))


def _row(group: str, row: dict[str, Any]) -> Iterator[Point]:
    index = next((name for name in INDICES if type(row.get(name)) is int), None)
    for name, value in row.items() if index else ():
        number = value[-1] if isinstance(value, list) and value else value
        if name != index and type(number) in (int, float) and math.isfinite(number):
            yield Point(group, name, row[index or ""], float(number))


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:  # being written just now
        return {}
    return found if isinstance(found, dict) else {}


class TensorBoard:
    """Event files in ``folder``; those of an earlier mirror are replaced. Raises ValueError if it is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard is not installed; install it with: pip install 'wmpo[log]'") from error
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder))

    def write(self, point: Point) -> None:
        self._writer.add_scalar(f"{point.group}/{point.name}", point.value, point.step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases under ``folder``. Offline nothing leaves the machine until ``wandb sync`` is called.
    Raises ValueError where it is not installed."""

    def __init__(self, folder: Path, project: str, *, online: bool) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("Weights & Biases is not installed; install it with: pip install 'wmpo[log]'") from error
        config = _object((folder / "config.json").read_text())
        try:
            self._run = wandb.init(
                project=project, name=folder.resolve().name, dir=str(folder), config=config,
                mode="online" if online else "offline",
            )  # fmt: skip
        except wandb.Error as error:
            raise ValueError(f"Weights & Biases: {error}; log in with wandb login, or leave out --online") from error
        self._groups: set[str] = set()

    def write(self, point: Point) -> None:
        axis = f"{point.group}/step"
        if point.group not in self._groups:  # each stage has an axis of its own
            self._groups.add(point.group)
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{point.group}/*", step_metric=axis)
        self._run.log({f"{point.group}/{point.name}": point.value, axis: point.step})

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()
