"""``wmpo log RUN``: a run's metrics for TensorBoard or Weights & Biases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from wmpo.report.mirror import Mirror, TensorBoard, WandB, Writer


@dataclass(frozen=True, kw_only=True)
class Log:
    """Copies the curves of a run, also of one that goes on, for TensorBoard or Weights & Biases."""

    run: tyro.conf.Positional[Path]
    "Folder of the run, such as runs/quickstart."
    to: Literal["tensorboard", "wandb"] = "tensorboard"
    "Where they go: event files in RUN/tensorboard, or a run of Weights & Biases in RUN/wandb."
    follow: bool = False
    "Go on until Ctrl-C, with what the run writes meanwhile."
    project: str = "wmpo"
    "Project in Weights & Biases."
    online: bool = False
    "Send to the Weights & Biases account that you are logged in to; without it, wandb sync can send later."


SETTINGS = Log


def main(args: list[str]) -> None:
    """Raises ValueError for wrong input, like every command."""
    settings = tyro.cli(Log, args=[a for a in args if a != "--debug"], prog="wmpo log")
    mirror, board = Mirror(settings.run), settings.run / "tensorboard"
    if settings.to == "tensorboard":
        writer: Writer = TensorBoard(board)
        print(f"in another terminal: tensorboard --logdir {board}", flush=True)
    else:
        writer = WandB(settings.run, settings.project, online=settings.online)
    count = mirror.copy(writer, follow=settings.follow)
    print(f"{settings.run}: {count} numbers for {settings.to}")
