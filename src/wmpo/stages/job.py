"""One run: its folder, its experiment, and the rules by which stages start, finish and resume."""

from __future__ import annotations

import functools
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from wmpo.checkpoint import read_json, write_json
from wmpo.config import Experiment, flatten, from_json, to_json
from wmpo.data.episode import Episode
from wmpo.data.lerobot import Listed, read_episodes
from wmpo.data.splits import hold_out
from wmpo.envs.ledger import Ledger
from wmpo.envs.recorded import RecordedConfig
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.envs.simulator import SimulatorConfig
from wmpo.envs.workspace import Workspaces
from wmpo.execution.backend import distant_simulators
from wmpo.report.run import RunFolder, StageLog

REPEATED = ("collect", "world-model", "reward", "clone", "improve")
"""The stages of a round."""
INDIFFERENT = re.compile(r"num_workers|execution\..*|.*\.micro_batch|reward\.batch_size")
"""Settings on which no result depends, but for the order in which numbers are added: a run may go on with others."""


@dataclass
class Job:
    """What every stage needs. Its simulators are started by the first stage that plays, and shared by all.

    The first round has the run's own folder, each later one a folder inside it.
    """

    root: RunFolder
    experiment: Experiment
    seed: int
    quiet: bool = False
    round: int = 1
    _env: SimulatedEnv | None = field(default=None, init=False)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self._env is not None:
            self._env.close()

    @property
    def fps(self) -> int:
        """Frames per second of recorded episodes: one frame an action."""
        return self.experiment.env.rate

    @property
    def action_dim(self) -> int:
        return self.experiment.env.action_dim

    @functools.cached_property
    def workspaces(self) -> Workspaces:
        env = self.experiment.env
        each = (env.with_task(task).workspace() for task in env.tasks)
        return Workspaces(dict(zip(env.instructions, each, strict=True)))

    @property
    def folder(self) -> RunFolder:
        """Of the present round."""
        return self.folder_of(self.round)

    def folder_of(self, number: int) -> RunFolder:
        return self.root if number == 1 else RunFolder(self.root.path / f"round-{number}")

    def place(self, stage: str, number: int | None = None) -> RunFolder:
        """Where a stage leaves its results, in the present round or another one."""
        return self.folder_of(number or self.round) if stage in REPEATED else self.root

    @property
    def policy_name(self) -> str:
        """Of the policy with which the present round begins."""
        return self.policy_name_of(self.round)

    def policy_name_of(self, number: int) -> str:
        """The same of any round."""
        return "base" if number == 1 else f"round {number - 1}"

    @property
    def noise_seed(self) -> int:
        """Of the present round."""
        return self.noise_seed_of(self.round)

    def noise_seed_of(self, number: int) -> int:
        """Differs between runs (their seeds are below 100) and between the rounds of a run."""
        return self.seed + 100 * (number - 1)

    def log(self, stage: str) -> StageLog:
        rounds = stage in REPEATED and self.experiment.num_rounds > 1
        label = f"{stage} {self.round}" if rounds else stage
        return StageLog(self.place(stage), stage, label=label, quiet=self.quiet)

    @property
    def simulator(self) -> SimulatorConfig:
        """Raises ValueError for a run that has none."""
        env = self.experiment.env
        if isinstance(env, RecordedConfig):
            raise ValueError(
                "nothing can be played here, as this run knows its robot from recorded episodes only; play on the "
                f"robot: wmpo robot deploy SETUP.py --policy {self.root.path} --to FOLDER"
            )
        return env

    def real_env(self, purpose: Purpose, *, frame_stride: int) -> SimulatedEnv:
        """The real environment; what it plays goes into the run's ledger under ``purpose``."""
        experiment = self.experiment
        if self._env is None:
            self._env = SimulatedEnv(
                self.simulator,
                chunk_size=experiment.policy.chunk_size,
                max_chunks=experiment.max_chunks,
                frame_stride=frame_stride,
                ledger=Ledger(self.root.ledger),
                num_workers=experiment.num_workers or None,
                workers=distant_simulators(experiment.execution, self.simulator),
            )
        self._env.purpose, self._env.frame_stride = purpose, frame_stride
        return self._env

    def dataset(self, name: str) -> Path:
        """Of the run or, if the policy plays it anew in every round, of the present round."""
        return self.collected_in(self.round) if name == "collected" else self.root.path / "data" / name

    def collected_in(self, number: int) -> Path:
        """The dataset of a round's collection."""
        return self.folder_of(number).path / "data" / "collected"

    def demonstrations(self) -> list[Episode]:
        """Those that the base policy was cloned from; all, before it was."""
        episodes = read_episodes(self.dataset("demonstrations"))
        start, stop = (self.root.summary("sft") or {}).get("demonstrations", (0, len(episodes)))
        return episodes[start:stop]

    def shares(self) -> list[tuple[int, int]]:
        """(episodes, of these held out) of the rounds up to the present one."""
        return self.experiment.collect.shares(self.experiment.num_rounds)[: self.round]

    def collected(self) -> tuple[list[Episode], list[Episode]]:
        """The policies' real episodes up to the present round: those to learn from, and those held out to measure
        with."""
        learn: list[Episode] = []
        held_out: list[Episode] = []
        for number, (_, held) in enumerate(self.shares(), start=1):
            episodes = read_episodes(self.collected_in(number))
            apart = self.held_out(episodes, held)
            learn += [episode for i, episode in enumerate(episodes) if i not in apart]
            held_out += [episodes[i] for i in sorted(apart)]
        return learn, held_out

    def held_out(self, episodes: Sequence[Episode] | Sequence[Listed], count: int) -> set[int]:
        """Which of a round's collection only measure."""
        told = [episode.instruction for episode in episodes] if len(self.experiment.env.tasks) > 1 else []
        return hold_out([episode.success for episode in episodes], count, told)

    def executed(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Episodes as a world model sees them: with what the controller made of the commands."""
        return self.workspaces.executed(episodes)

    def seed_torch(self, purpose: int) -> None:
        """Initial weights depend on the run's seed and on what they are for, not on what ran before."""
        torch.manual_seed(1000 * self.seed + purpose)


def open_job(path: Path, recipe: str, experiment: Experiment, seed: int, *, quiet: bool = False, free: str = "") -> Job:
    """Makes the run's folder, or goes on in it. Raises ValueError when it belongs to another configuration; settings
    whose names begin with ``free`` may differ."""
    experiment.validate()
    if not check_folder(path, recipe, experiment, seed, free=free):
        about = {"commit": commit(), "version": version("wmpo"), "machine": machine()}
        wanted = {"recipe": recipe, "seed": seed, "config": to_json(experiment)}
        write_json(path / "config.json", wanted | about)
    return Job(RunFolder(path), experiment, seed, quiet)


def check_folder(path: Path, recipe: str, experiment: Experiment, seed: int, *, free: str = "") -> bool:
    """Whether there is a run already. Raises ValueError when it has another configuration, or is a comparison."""
    if (path / "compare.json").exists():
        raise ValueError(f"{path} is the folder of a comparison, not of a run; choose another --name")
    saved = begun_experiment(path)
    if saved is None:
        return False
    found = differences(saved, (recipe, experiment, seed))
    differing = [text for text in found if not (free and text.startswith(free))]
    if differing:
        raise ValueError(
            f"{path} was made with other settings ({'; '.join(differing[:4])}); "
            "give this run another folder with --name, or delete that one"
        )
    return True


def differences(found: tuple[str, Experiment, int], wanted: tuple[str, Experiment, int]) -> list[str]:
    """What differs, in words, and matters. Settings that a folder's version did not have yet count as defaults."""
    old, new = (
        {"recipe": recipe, "seed": seed, **flatten(_through_json(to_json(experiment)))}
        for recipe, experiment, seed in (found, wanted)
    )
    return [
        f"{key}: {old.get(key)} there, {new.get(key)} now"
        for key in new | old
        if old.get(key) != new.get(key) and not INDIFFERENT.fullmatch(key)
    ]


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


def begun_experiment(path: Path) -> tuple[str, Experiment, int] | None:
    """The same, but None also where nothing was made yet: the settings of a first command that was refused do not
    stay."""
    made = any((path / name).exists() for name in ("data", "stages", "unfinished", "ledger.jsonl"))
    return saved_experiment(path) if made else None


def existing_job(path: Path) -> Job:
    """A run as it is on disk. Raises ValueError when the folder is none."""
    saved = saved_experiment(path)
    if saved is None:
        raise ValueError(f"{path} is no run, as it has no config.json; give the folder of a run, such as runs/NAME")
    return Job(RunFolder(path), saved[1], saved[2], quiet=True)


def finish(log: StageLog, summary: dict[str, Any], note: str) -> None:
    """Marks a stage as complete, last of all, and drops what only its resumption needed."""
    seconds = log.finish(note)
    log.folder.complete(log.stage, seconds, summary)
    for leftover in (log.folder.path / "unfinished").glob(f"{log.stage}*"):
        leftover.unlink()


def require(job: Job, stage: str, *needed: str) -> None:
    """Raises ValueError that names the command to run first."""
    for name in needed:
        if job.place(name).summary(name) is None:
            command = "world-model" if name == "tokenizer" else name
            raise ValueError(
                f"{stage} needs the stage {name}, which is not complete in {job.place(name).path}; run: wmpo {command}"
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
