"""Every method of a comparison undisturbed, under disruptions and after a push, from the same validation starts.

    wmpo compare quickstart --name c --tasks drawer-open-v3 --methods rft dpo grpo-real wmpo-rft
    python benchmarks/disruptions.py runs/c/drawer-open-v3/seed0    # every outcome goes into results/disruptions
    python benchmarks/disruptions.py --show                         # the table of what is there

Each policy plays at the decoding that the comparison chose for it on other validation starts. A method that handed in
the base policy is left out. Can be interrupted and goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagination import hardware

from wmpo.evaluation.compare import BASE
from wmpo.stages.compare import METHODS
from wmpo.stages.disruptions import FIRST_START, Contestant, conditions, played
from wmpo.stages.job import commit, existing_job
from wmpo.stages.models import load_policy
from wmpo.stages.rounds import last_round
from wmpo.stages.trial import WMPO

RESULTS = Path(__file__).parent / "results" / "disruptions"


def contestants(cell: Path, budget: int) -> Iterator[Contestant]:
    """The tested methods' policies, the base policy first."""
    homes = {"base": "base", "wmpo-rft": f"P{budget}-rft"}
    for method in (BASE, *METHODS):
        folder = cell / homes.get(method, f"P{budget}")
        if not folder.exists():
            continue
        job, whole = existing_job(folder), method in WMPO
        test = job.root.summary(f"{method}-test")
        if not test or test["handed_in"] != method:
            continue
        place = job.folder_of(last_round(job)) if whole else job.root
        yield Contestant(method, load_policy(place, "improved" if whole else method), float(test["temperature"]))


def measured(cell: Path, budget: int) -> dict[str, Any]:
    job = existing_job(cell / "base")
    config, log = job.experiment.disruptions, job.log("disruptions")
    policies, rows, all_conditions = list(contestants(cell, budget)), [], conditions(config)
    for done, (disruption, push) in enumerate(all_conditions, start=1):
        words = push.label if push else disruption.words
        outcomes = {who.name: played(job, log, who, disruption, push) for who in policies}
        rows.append({"words": words, "policies": {name: found.kept() for name, found in outcomes.items()}})
        log.progress(done, len(all_conditions), words)
    return {
        "command": " ".join(["python", *sys.argv]), "commit": commit(), "hardware": hardware(),
        "task": job.experiment.env.task, "seed": job.seed, "budget": budget, "first_start": FIRST_START,
        "push_step": config.push_chunk * job.experiment.policy.chunk_size, "conditions": rows,
    }  # fmt: skip


def show() -> str:
    lines = []
    for path in sorted(RESULTS.glob("methods-*.json")):
        found = json.loads(path.read_text())
        names = list(found["conditions"][0]["policies"])
        lines += [f"{found['task']}, seed {found['seed']}, P = {found['budget']}", "", f"| | {' | '.join(names)} |"]
        lines.append("|---" * (len(names) + 1) + "|")
        for row in found["conditions"]:
            rates = [row["policies"][name]["success"] for name in names]
            lines.append(f"| {row['words']} | " + " | ".join(f"{100 * sum(r) / len(r):.1f}" for r in rates) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", type=Path, help="folders of a task and seed of a comparison")
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    for cell in args.cells:
        found = measured(cell, args.budget)
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"methods-{found['task']}-seed{found['seed']}.json"
        path.write_text(json.dumps(found) + "\n")
    if args.show or args.cells:
        print(show())


if __name__ == "__main__":
    main()
