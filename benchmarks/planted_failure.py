"""Is a dream that lies found out? A world model that has seen successes only turns failures into successes.

    python benchmarks/planted_failure.py runs/drawer-open-v3-seed0 [...]
    python benchmarks/planted_failure.py --show

The first round of a finished run again with an audit after every iteration of improve: in its own dream, in that of a
world model from scratch, and in that of one from scratch that learns from the successes among the same episodes only
(pretrained ones have seen how things fail; the success classifier, trained anew, learns from all). Audits replay 64
real episodes of the policy as it is: 16 held-out ones and more from validation starts, since the interval of J over 16
holds 0 for good dreams too.
What is said at each audit is kept in results/planted_failure.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finished_runs import further, measure_and_show

from wmpo.checkpoint import read_json, write_json
from wmpo.data.episode import Episode
from wmpo.report.run import RunFolder
from wmpo.stages import learn as stages
from wmpo.stages.job import Job, existing_job

RESULTS = Path(__file__).parent / "results" / "planted_failure"
AUDITED, ITERATIONS, FIRST_START = 64, 2, 30_000
DREAMS = ("own", "from scratch", "planted")


@dataclass
class Watched(Job):
    """Knows more episodes to audit with."""

    more: list[Episode] = field(default_factory=list)
    failures: bool = True
    "Whether anything is learned from failures."

    def collected(self) -> tuple[list[Episode], list[Episode]]:
        learn, held_out = super().collected()
        return [e for e in learn if self.failures or e.success], held_out + self.more


def one_round(run: Path, scratch: Path, *, own_dream: bool) -> RunFolder:
    """A copy of the first round's policies, perhaps of its world model and classifier, as a run of one round."""
    copy, names, models = scratch / run.name, ["demos", "sft", "collect", "clone"], ["base", "cloned"]
    if own_dream:
        names, models = [*names, "tokenizer", "world-model", "reward"], [*models, "tokenizer", "world_model", "reward"]
    shutil.copytree(run / "data", copy / "data")
    for file in (*(f"models/{name}.safetensors" for name in models), *(f"stages/{name}.json" for name in names)):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / file, copy / file)
    found = read_json(run / "config.json")
    config = found["config"]
    num_episodes, num_held_out = existing_job(run).experiment.collect.shares(config["num_rounds"])[0]
    config["collect"] |= {"num_episodes": num_episodes, "num_held_out": num_held_out}
    audits = {"every": 1, "num_episodes": AUDITED, "max_episodes": (1 + ITERATIONS) * AUDITED}
    config["improve"] |= {"num_iterations": ITERATIONS, "audit": audits}
    config["num_rounds"] = 1
    if not own_dream:
        config["world_model"]["pretrained"] = "none"
    write_json(copy / "config.json", found)
    return RunFolder(copy)


def in_dream(run: Path, more: list[Episode], dream: str) -> dict[str, Any]:
    own = dream == "own"
    with tempfile.TemporaryDirectory(dir=run.parent) as scratch:
        place = one_round(run, Path(scratch), own_dream=own)
        made = existing_job(place.path)
        with Watched(place, made.experiment, made.seed, more=more, failures=dream != "planted") as job:
            if not own:
                stages.tokenizer(job)
                stages.world_model(job)
                with Watched(place, made.experiment, made.seed, more=more) as judge:
                    stages.reward(judge)
            stages.improve(job)
            summary = job.folder.summary("improve") or {}
            reward = (job.folder.summary("reward") or {})["imagined"]
    kept = {key: summary[key] for key in ("audits", "stopped", "kept_iteration")}
    return kept | {"imagined": {key: reward[key] for key in ("tpr", "fpr", "j", "n", "called")}}


def measure(run: Path) -> dict[str, Any]:
    config = read_json(run / "config.json")
    first = existing_job(run).experiment.collect.shares(config["config"]["num_rounds"])[0]
    with existing_job(run) as job:
        more = further(job, 1, FIRST_START, AUDITED - first[1])
    found = {dream: in_dream(run, more, dream) for dream in DREAMS}
    about = {"task": config["config"]["env"]["task"], "seed": config["seed"]}
    return about | found


def show(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| task | seed | dream | after | real | imagined | J (95 %) | what is said |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name in DREAMS:
            for audit in row.get(name, {"audits": []})["audits"]:
                low, high = audit["j_interval"]
                j = "" if audit["j"] is None else f"{audit['j']:+.2f} [{low:+.2f}, {high:+.2f}]"
                said = audit["warning"].split(";")[0] or "nothing"
                rates = f"{100 * audit['real']:.0f} % | {100 * audit['imagined']:.0f} %"
                lines.append(
                    f"| {row['task']} | {row['seed']} | {name} | {audit['iteration']} | {rates} | {j} | {said} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    measure_and_show(__doc__, RESULTS, measure, show)
