"""What each guard of ``improve`` is worth: the last round of finished runs again, once for each guard.

    python benchmarks/guards.py runs/drawer-open-v3-seed0 runs/drawer-open-v3-seed1 runs/drawer-open-v3-seed2
    python benchmarks/guards.py --show

World model, classifier and the policy to begin with are those of the run, so that only the guard differs. The policies
play the run's test starts, greedy and sampled as in the dream; every outcome is kept in results/guards. What is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import named

from wmpo.checkpoint import read_json, write_json
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.statistics import paired_difference
from wmpo.stages.job import commit, existing_job
from wmpo.stages.learn import improve
from wmpo.stages.measure import play_once
from wmpo.stages.models import load_policy

RESULTS = Path(__file__).parent / "results" / "guards"
GUARDS: dict[str, dict[str, Any]] = {
    "none": {},
    "verify": {"guards": {"verify": True}},
    "trust": {"guards": {"trust": 0.9}},
    "branches": {"guards": {"branch_share": 0.5}},
    "shared noise": {"share_noise": True},
}


def again(run: Path, guard: str, scratch: Path) -> dict[str, Any]:
    """The last round's improve in a copy of the run, and its test."""
    copy = scratch / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("videos", "unfinished", "*.html", "results.json"))
    config = read_json(copy / "config.json")
    settings = config["config"]["improve"]
    settings["guards"] |= GUARDS[guard].get("guards", {})
    settings |= {key: value for key, value in GUARDS[guard].items() if key != "guards"}
    write_json(copy / "config.json", config)
    with existing_job(copy) as job:
        job.quiet, job.round = False, job.experiment.num_rounds
        for stage in ("improve", "evaluate"):
            (job.place(stage).path / "stages" / f"{stage}.json").unlink()
        improve(job)
        summary = job.folder.summary("improve") or {}
        policy, log = load_policy(job.folder, "improved"), job.log("guards")
        env = job.real_env(Purpose("test", ""), frame_stride=job.experiment.policy.chunk_size)
        played = {
            key: play_once(job, log, env, policy, "test", guard, job.experiment.evaluate.num_test, temperature)
            for key, temperature in (("greedy", 0.0), ("sampled", job.experiment.improve.temperature))
        }
    shutil.rmtree(copy)
    return {
        "run": named(run), "guard": guard, "settings": settings, "commit": commit(),
        "kept_iteration": summary["kept_iteration"], "stopped": summary["stopped"],
        "guards": summary.get("guards", {}), "audits": summary["audits"],
        "outcomes": {key: outcomes.success.tolist() for key, outcomes in played.items()},
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> str:
    """Success of each guard, and its paired difference to none over the starts of all runs that have both."""
    plain = {row["run"]: row["outcomes"] for row in rows if row["guard"] == "none"}
    lines = [
        "| guard | runs | greedy | against none (95 %) | sampled | against none (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for guard in GUARDS:
        found = [row for row in rows if row["guard"] == guard and row["run"] in plain]
        if not found:
            continue
        cells = []
        for key in ("greedy", "sampled"):
            with_guard = np.concatenate([row["outcomes"][key] for row in found])
            without = np.concatenate([plain[row["run"]][key] for row in found])
            points, (low, high) = paired_difference(without, with_guard)
            cells += [f"{100 * with_guard.mean():.1f} %", f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"]
        lines.append(f"| {guard} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--guards", nargs="+", choices=GUARDS, default=list(GUARDS))
    parser.add_argument("--show", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for run in [] if args.show else args.runs:
        for guard in args.guards:
            path = RESULTS / f"{named(run)}-{guard.replace(' ', '_')}.json"
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=run.parent) as scratch:
                    found = again(run, guard, Path(scratch))
                path.write_text(json.dumps(found | {"command": " ".join(sys.argv)}) + "\n")
    print(show([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


if __name__ == "__main__":
    main()
