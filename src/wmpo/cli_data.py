"""Datasets on the command line: ``wmpo data import | inspect | export``."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from wmpo.checkpoint import write_atomic
from wmpo.cli_common import Commands, Naming, dispatch
from wmpo.data.importing import Conversion, import_dataset, open_source
from wmpo.data.overview import Overview, overview
from wmpo.data.source import MOST_FPS, Source
from wmpo.report.video import strip
from wmpo.stages.deploy import export_policy
from wmpo.stages.export import export

USAGE = """usage: wmpo data COMMAND ...

  import SOURCE --to FOLDER   makes a dataset of ours from a LeRobot folder (v2.0, v2.1, v3.0), a robomimic or MimicGen
                              HDF5 file, or an RLDS folder of TensorFlow Datasets
  inspect FOLDER              counts, lengths, action ranges, success rate and a contact sheet of any of these
  export RUN --to FOLDER      episodes of a run, real or imagined, as a LeRobot v3.0 dataset

wmpo data COMMAND --help shows every setting."""


@dataclass(frozen=True, kw_only=True)
class Import(Naming):
    """Makes a dataset of ours (LeRobot v3.0, pictures lossless) from one of another program."""

    source: tyro.conf.Positional[Path]
    "LeRobot folder, RLDS version folder or robomimic HDF5 file."
    to: Path
    "The new dataset; must not exist yet."
    fps: int | None = None
    "Frames a second, where the dataset does not say or is wrong. Nothing is resampled."
    instruction: str | None = None
    "One sentence for all episodes."
    labels: str | None = None
    "A file with the columns episode,success[,solved_at]; or solved or failed for all."


@dataclass(frozen=True, kw_only=True)
class Inspect(Naming):
    """Shows what is in a dataset."""

    folder: tyro.conf.Positional[Path]
    "A dataset in any of the formats that import reads."
    sheet: Path | None = None
    "Where the contact sheet goes; by default contact_sheet.png in the working directory."
    json: bool = False
    "Figures as one JSON object."


@dataclass(frozen=True, kw_only=True)
class Export:
    """Writes episodes of a run as a LeRobot v3.0 dataset, or its policy as a folder for ``wmpo.load_policy``."""

    run: tyro.conf.Positional[Path]
    "Folder of the run."
    to: Path
    "The new folder; must not exist yet."
    what: Literal["collected", "demonstrations", "imagined", "policy"] = "collected"
    "Real episodes of the policies, of the expert, episodes that the improved policy only dreams, or that policy."
    num_episodes: int = 32
    "Imagined episodes; they begin where collected ones began, in turn."
    temperature: float | None = None
    "Sampling temperature of imagined episodes; 0 is greedy, and without one it is that of the run's imagination."


def main(args: list[str]) -> None:
    """Raises ValueError for wrong input, like every command."""
    dispatch("data", args, USAGE, _COMMANDS)


def _import(settings: Import) -> None:
    if settings.fps is not None and not 1 <= settings.fps <= MOST_FPS:
        raise ValueError(f"--fps must be in 1..{MOST_FPS}, not {settings.fps}")
    changes = Conversion(fps=settings.fps, instruction=settings.instruction, labels=settings.labels)
    done = import_dataset(settings.source, settings.to, settings.keys(), changes)
    print(
        f"{settings.to}: {done.num_episodes} episodes, {done.num_solved} solved, {done.num_actions} actions at "
        f"{done.fps} fps, from {done.kind}"
    )


def _inspect(settings: Inspect) -> None:
    sheet = settings.sheet or Path("contact_sheet.png")
    if sheet.is_dir():
        raise ValueError(f"--sheet {sheet} is a folder; name a picture, such as {sheet / 'contact_sheet.png'}")
    source = open_source(settings.folder, settings.keys())
    found = overview(source.episodes)
    if found is None:
        raise ValueError(f"{settings.folder} holds no episodes; record some, or choose another folder")
    figures = _figures(found, source)
    print(json.dumps(figures | {"sheet": str(sheet)}) if settings.json else _table(found, figures, sheet))
    _write_sheet(found, sheet)


def _figures(found: Overview, source: Source) -> dict[str, Any]:
    lengths = np.array(found.lengths)
    return {
        "kind": source.kind, "episodes": len(lengths), "actions": int(lengths.sum()), "fps": source.fps,
        "cameras": list(found.views),
        "picture": list(found.picture), "shortest": int(lengths.min()), "mean_length": float(lengths.mean()),
        "longest": int(lengths.max()), "solved": found.num_solved if source.labelled else None,
        "action_low": found.low.tolist(), "action_mean": found.mean.tolist(), "action_high": found.high.tolist(),
        "instructions": dict(found.instructions), "policies": dict(found.policies),
    }  # fmt: skip


def _table(found: Overview, figures: dict[str, Any], sheet: Path) -> str:
    count, solved = figures["episodes"], figures["solved"]
    labels = "no labels" if solved is None else f"{solved} of {count} ({100 * solved / count:.0f} %)"
    lines = [
        f"format      {figures['kind']}",
        f"episodes    {count}, {figures['actions']} actions",
        f"length      {figures['shortest']} to {figures['longest']} actions, mean {figures['mean_length']:.1f}",
        f"rate        {figures['fps'] or 'unknown'} fps",
        f"pictures    {found.picture[0]}x{found.picture[1]} pixels of {', '.join(found.views)}",
        f"solved      {labels}",
        f"{'action':12}{'low':>10}{'mean':>10}{'high':>10}",
        *(f"{i:<12}{a:>10.3f}{b:>10.3f}{c:>10.3f}"
          for i, (a, b, c) in enumerate(zip(found.low, found.mean, found.high, strict=True))),
    ]  # fmt: skip
    for name, counts in (("sentences", found.instructions), ("policies", found.policies)):
        lines.append(f"{name:12}{', '.join(f'{text!r} ({number})' for text, number in counts[:5])}")
    remarks = found.remarks(labelled=solved is not None)
    return "\n".join([*lines, *(f"note        {text}" for text in remarks), f"sheet       {sheet}"])


def _write_sheet(found: Overview, path: Path) -> None:
    """One row an episode, the first ones; appears only when it is whole."""
    names = [f"{i}{' solved' if step > 0 else ''}" for i, step in enumerate(found.solved_at[: len(found.rows)])]
    content = io.BytesIO()
    strip(found.rows, names, columns=len(found.rows[0])).save(content, format="png")
    write_atomic(path, content.getvalue())


def _export(settings: Export) -> None:
    if settings.num_episodes < 1 or not 0 <= (settings.temperature or 0) < 100:
        raise ValueError(
            f"--num-episodes must be at least 1, not {settings.num_episodes}, and --temperature in 0..100, "
            f"not {settings.temperature}"
        )
    if settings.what == "policy":
        export_policy(settings.run, settings.to)
        print(f'{settings.to}: wmpo.load_policy("{settings.to}").act(image)')
        return
    done = export(
        settings.run, settings.to, settings.what, num_episodes=settings.num_episodes, temperature=settings.temperature
    )
    print(f"{settings.to}: {done.num_episodes} {settings.what} episodes, {done.num_solved} solved")


_COMMANDS: Commands = {
    "import": (Import, _import),
    "inspect": (Inspect, _inspect),
    "export": (Export, _export),
}
SETTINGS = {name: kind for name, (kind, _) in _COMMANDS.items()}
