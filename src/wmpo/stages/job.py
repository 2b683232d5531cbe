"""One run: its folder, its experiment, and the rules by which stages start, finish and resume."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from wmpo.checkpoint import read_json, write_json
from wmpo.config import Experiment, flatten, from_json, to_json
from wmpo.data.episode import Episode
from wmpo.data.lerobot import read_episodes
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.report.run import RunFolder, StageLog


@dataclass
class Job:
    """What every stage needs. Its simulators are started by the first stage that plays, and shared by all."""

    folder: RunFolder
    experiment: Experiment
    seed: int
    quiet: bool = False
    _env: SimulatedEnv | None = field(default=None, init=False)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self._env is not None:
            self._env.close()

    @property
    def fps(self) -> int:
        """Frames per second of recorded episodes: one frame an action."""
        return round(80 / self.experiment.env.action_repeat)

    @property
    def action_dim(self) -> int:
        """Hand movement in x, y, z and the gripper."""
        return 4

    def log(self, stage: str) -> StageLog:
        return StageLog(self.folder, stage, quiet=self.quiet)

    def real_env(self, purpose: Purpose, *, frame_stride: int) -> SimulatedEnv:
        """The real environment; what it plays goes into the run's ledger under ``purpose``."""
        experiment = self.experiment
        if self._env is None:
            self._env = SimulatedEnv(
                experiment.env,
                chunk_size=experiment.policy.chunk_size,
                max_chunks=experiment.max_chunks,
                frame_stride=frame_stride,
                ledger=Ledger(self.folder.ledger),
                num_workers=experiment.num_workers or None,
            )
        self._env.purpose, self._env.frame_stride = purpose, frame_stride
        return self._env

    def dataset(self, name: str) -> Path:
        return self.folder.path / "data" / name

    def demonstrations(self) -> list[Episode]:
        return read_episodes(self.dataset("demonstrations"))

    def collected(self) -> tuple[list[Episode], list[Episode]]:
        """The P real episodes of the base policy: those to learn from, and those held out to measure with."""
        episodes = read_episodes(self.dataset("collected"))
        cut = len(episodes) - self.experiment.collect.num_held_out
        return episodes[:cut], episodes[cut:]

    def seed_torch(self, purpose: int) -> None:
        """Initial weights depend on the run's seed and on what they are for, not on what ran before."""
        torch.manual_seed(1000 * self.seed + purpose)


def open_job(path: Path, recipe: str, experiment: Experiment, seed: int, *, quiet: bool = False) -> Job:
    """Makes the run's folder, or goes on in it. Raises ValueError when it belongs to another configuration."""
    experiment.validate()
    folder, config = RunFolder(path), path / "config.json"
    wanted = {"recipe": recipe, "seed": seed, "config": to_json(experiment)}
    if config.exists():
        found = read_json(config)
        differing = _differences(found, wanted)
        if differing:
            raise ValueError(
                f"{path} was made with other settings ({'; '.join(differing[:4])}); "
                "give this run another folder with --name, or delete that one"
            )
        return Job(folder, experiment, seed, quiet)
    about = {"commit": commit(), "version": version("wmpo"), "machine": machine()}
    write_json(config, wanted | about)
    return Job(folder, experiment, seed, quiet)


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    old = {"seed": found.get("seed"), **flatten(found.get("config", {}))}
    new = {"seed": wanted["seed"], **flatten(_through_json(wanted["config"]))}
    return [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in new | old if old.get(key) != new.get(key)]


def _through_json(config: dict[str, Any]) -> dict[str, Any]:
    return {
        k: _through_json(v) if isinstance(v, dict) else list(v) if isinstance(v, tuple) else v
        for k, v in config.items()
    }


def saved_experiment(path: Path) -> tuple[str, Experiment, int] | None:
    """Recipe, experiment and seed of a folder that exists; None for a new one. A ValueError names the file."""
    config = path / "config.json"
    if not config.exists():
        return None
    found = read_json(config)
    try:
        return found["recipe"], from_json(Experiment, found["config"]), found["seed"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{config} is not the configuration of a run of this version ({error})") from error


Stage = Callable[[Job], None]


def finish(job: Job, stage: str, log: StageLog, summary: dict[str, Any], note: str) -> None:
    """Marks a stage as complete, last of all, and drops what only its resumption needed."""
    seconds = log.finish(note)
    job.folder.complete(stage, seconds, summary)
    for leftover in (job.folder.path / "unfinished").glob(f"{stage}*"):
        leftover.unlink()


def require(job: Job, stage: str, *needed: str) -> None:
    """Raises ValueError that names the command to run first."""
    for name in needed:
        if job.folder.summary(name) is None:
            command = "world-model" if name == "tokenizer" else name
            raise ValueError(
                f"{stage} needs the stage {name}, which is not complete in {job.folder.path}; run: wmpo {command}"
            )


def commit() -> str:
    """The commit of this source tree, with a mark when files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return "unknown"
    described = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True
    )
    return described.stdout.strip() if described.returncode == 0 else "unknown"


def machine() -> str:
    """Processor and cores, for the report."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}"
