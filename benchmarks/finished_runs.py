"""What the benchmarks of finished runs share: measure each once, keep it, print one table; and one round again."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wmpo.checkpoint import read_json, write_json
from wmpo.data.episode import Episode
from wmpo.data.splits import start_seeds
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.compare import estimate
from wmpo.stages.job import Job, commit, existing_job, machine
from wmpo.stages.measure import play_once
from wmpo.stages.models import load_policy
from wmpo.stages.order import rounds, run_missing
from wmpo.stages.record import play
from wmpo.stages.rounds import policy_of


def named(run: Path) -> str:
    """A run by its task and seed, wherever its folder lies."""
    about = read_json(run / "config.json")
    env = about["config"]["env"]
    return f"{'+'.join([env['task'], *env.get('more_tasks', [])])}-seed{about['seed']}"


def origin(run: Path) -> dict[str, str]:
    """How a measurement comes about: what to type to make it again, wherever the folder lies, the code that measures
    and that of the run, and the processor."""
    command = f"python benchmarks/{Path(sys.argv[0]).name} runs/{named(run)}"
    code = {"commit": commit(), "run_commit": read_json(run / "config.json")["commit"]}
    return {"command": command, **code, "machine": machine()}


def measure_and_show(
    doc: str | None,
    results: Path,
    measure: Callable[[Path], dict[str, Any]],
    show: Callable[[list[dict[str, Any]]], str],
) -> None:
    """A file for each task and seed; one that is there is not measured again."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--show", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    if strange := [str(run) for run in args.runs if not (run / "config.json").exists()]:
        parser.error(f"{', '.join(strange)}: no folder of a run, whose config.json would be there")
    results.mkdir(parents=True, exist_ok=True)
    for run in [] if args.show else args.runs:
        path = results / f"{named(run)}.json"
        if not path.exists():
            about = origin(run)
            path.write_text(json.dumps(about | measure(run)) + "\n")
    print(show([json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]))


def further(job: Job, number: int, first: int, count: int) -> list[Episode]:
    """Real episodes of the policy that plays in a round, from validation starts on from ``first``, as it was collected
    with; the ledger counts them as ``fidelity``, and nothing of the run learns from them."""
    temperature, name = job.experiment.collect.temperature, job.policy_name_of(number)
    env = job.real_env(Purpose("fidelity", name, temperature, job.seed), frame_stride=1)
    seeds = start_seeds("validation", job.seed, first, count)
    return play(env, policy_of(job, number), seeds, job, temperature=temperature, policy_name=name)


def meta_world(job: Job) -> MetaWorldConfig:
    """The simulator of a run whose metres must be known. Raises ValueError for another."""
    if not isinstance(job.simulator, MetaWorldConfig):
        raise ValueError(f"{job.root.path} is no run of Meta-World, so where things are in metres is not known here")
    return job.simulator


def gained(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], decoding: str) -> tuple[str, str]:
    """Mean success of some runs, and its difference to the same runs without a change, as text. The interval is over
    runs and starts: how a run ends is chance too (dev/LOG.md)."""
    mine, other = (np.array([row["outcomes"][decoding] for row in part], dtype=float) for part in (rows, others))
    found = estimate([mine - other])
    low, high = found.interval
    return f"{100 * mine.mean():.1f} %", f"{found.value:+.1f} [{low:+.1f}, {high:+.1f}]"


@contextmanager
def changed(run: Path, settings: Mapping[str, Any]) -> Iterator[Job]:
    """A copy of a finished run with some settings changed, by their names, as ``improve.share_noise``; it is gone
    afterwards."""
    with tempfile.TemporaryDirectory(dir=run.parent) as scratch:
        copy = Path(scratch) / run.name
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("videos", "unfinished", "*.html", "results.json"))
        config = read_json(copy / "config.json")
        for name, value in settings.items():
            *path, leaf = name.split(".")
            place = config["config"]
            for part in path:
                place = place[part]
            place[leaf] = value
        write_json(copy / "config.json", config)
        with existing_job(copy) as job:
            job.quiet = False
            yield job


def redo(job: Job, stages: list[tuple[str, int]]) -> None:
    """Stages of rounds once more, as if they had never been."""
    for stage, at in [*stages, ("evaluate", 1)]:
        (job.place(stage, at).path / "stages" / f"{stage}.json").unlink(missing_ok=True)
        if stage == "collect":
            shutil.rmtree(job.collected_in(at), ignore_errors=True)
    run_missing(job, stages)


def again(run: Path, number: int, first: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A round of a finished run once more from the stage ``first`` on, with some settings changed; "": nothing again.
    Its policy plays the run's test starts, greedy and sampled as in the dream."""
    about = {"run": named(run)} | origin(run)
    with changed(run, settings) as job:
        order = [("sft", 1), *rounds(number)]
        redo(job, order[order.index((first, 1 if first in ("sft", "tokenizer") else number)) :] if first else [])
        job.round = number
        summaries = {stage: job.place(stage).summary(stage) or {} for stage, _ in rounds(1)}
        policy, log = load_policy(job.folder, "improved"), job.log("again")
        env = job.real_env(Purpose("test", ""), frame_stride=job.experiment.policy.chunk_size)
        decodings = {"greedy": 0.0, "sampled": job.experiment.improve.temperature}
        played = {
            key: play_once(job, log, env, policy, "test", "again", job.experiment.evaluate.num_test, temperature)
            for key, temperature in decodings.items()
        }
    outcomes = {key: found.success.tolist() for key, found in played.items()}
    return about | {"outcomes": outcomes, "stages": summaries}
