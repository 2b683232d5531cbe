"""Is a dream that lies found out? A world model that has seen successes only turns failures into successes.

    python benchmarks/planted_failure.py runs/drawer-open-v3-seed0 [...]

The first round of a finished run again with an audit after every iteration of improve: once in its own dream, and once
in that of a world model that learns from the same episodes without the failures (the success classifier, trained anew
on its replays, learns from all). What is said at each audit, and when, is kept in results/planted_failure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from finished_runs import named

from wmpo.checkpoint import read_json, write_json
from wmpo.data.episode import Episode
from wmpo.report.run import RunFolder
from wmpo.stages import learn as stages
from wmpo.stages.job import Job, commit, existing_job

RESULTS = Path(__file__).parent / "results" / "planted_failure"


class SuccessesOnly(Job):
    """Learns from no failure."""

    def collected(self) -> tuple[list[Episode], list[Episode]]:
        learn, held_out = super().collected()
        return [episode for episode in learn if episode.success], held_out


def one_round(run: Path, scratch: Path, *, dream: bool) -> RunFolder:
    """A copy of the first round's policies, and with ``dream`` of its world model and classifier, as a run of one round
    with audits."""
    copy, stages, models = scratch / run.name, ["demos", "sft", "collect", "tokenizer", "clone"], ["base", "cloned"]
    if dream:
        stages, models = [*stages, "world-model", "reward"], [*models, "world_model", "reward"]
    shutil.copytree(run / "data", copy / "data")
    names = [f"models/{name}.safetensors" for name in (*models, "tokenizer")] + [
        f"stages/{name}.json" for name in stages
    ]
    for file in names:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / file, copy / file)
    found = read_json(run / "config.json")
    config = found["config"]
    rounds, collect = config["num_rounds"], config["collect"]
    num_episodes, num_held_out = existing_job(run).experiment.collect.shares(rounds)[0]
    config["collect"] = collect | {"num_episodes": num_episodes, "num_held_out": num_held_out}
    config["improve"]["audit"] |= {"every": 1, "num_episodes": num_held_out, "max_episodes": 4 * num_held_out}
    config["num_rounds"] = 1
    write_json(copy / "config.json", found)
    return RunFolder(copy)


def measure(run: Path, *, failures: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=run.parent) as scratch:
        place = one_round(run, Path(scratch), dream=failures)
        with existing_job(place.path) as job:
            job.quiet = False
            if not failures:
                stages.world_model(SuccessesOnly(place, job.experiment, job.seed))
                stages.reward(job)
            stages.improve(job)
            summary = job.folder.summary("improve") or {}
    return {key: summary[key] for key in ("audits", "stopped", "kept_iteration")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        name = named(run)
        path = RESULTS / f"{name}.json"
        if not path.exists():
            found = {seen: measure(run, failures=seen == "all") for seen in ("all", "successes only")}
            path.write_text(json.dumps(found | {"command": " ".join(sys.argv), "commit": commit()}, indent=1) + "\n")
        for seen, result in json.loads(path.read_text()).items():
            if seen in ("command", "commit"):
                continue
            print(f"{name}, world model of {seen}: kept {result['kept_iteration']}; {result['stopped']}")
            for audit in result["audits"]:
                figures = f"real {audit['real']:.2f}, imagined {audit['imagined']:.2f}, J {audit['j']}"
                print(f"  {audit['iteration']}: {figures}; {audit['warning'] or audit['verdict']}")


if __name__ == "__main__":
    main()
