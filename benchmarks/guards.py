"""What each guard of ``improve`` is worth: the last round of finished runs again, once for each guard.

    python benchmarks/guards.py runs/drawer-open-v3-seed0 runs/drawer-open-v3-seed1 runs/drawer-open-v3-seed2
    python benchmarks/guards.py --show

World model, classifier and the policy to begin with are those of the run, so that only the guard differs. The policies
play the run's test starts, greedy and sampled as in the dream; every outcome is kept in results/guards. What is there
is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from finished_runs import again, gained, named

from wmpo.stages.job import existing_job

RESULTS = Path(__file__).parent / "results" / "guards"
GUARDS: dict[str, dict[str, Any]] = {
    "none": {},
    "verify": {"improve.guards.verify": True},
    "trust": {"improve.guards.trust": 0.9},
    "branches": {"improve.guards.branch_share": 0.5},
    "shared noise": {"improve.share_noise": True},
}


def measure(run: Path, guard: str) -> dict[str, Any]:
    found = again(run, existing_job(run).experiment.num_rounds, "improve", GUARDS[guard])
    improve = found.pop("stages")["improve"]
    kept = {key: improve.get(key) for key in ("kept_iteration", "stopped", "guards", "audits")}
    return found | {"guard": guard, "settings": GUARDS[guard]} | kept


def show(rows: list[dict[str, Any]]) -> str:
    """Success of each guard, and its difference to none over the runs that have both."""
    plain = {row["run"]: row for row in rows if row["guard"] == "none"}
    lines = [
        "| guard | runs | greedy | against none (95 %) | sampled | against none (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for guard in GUARDS:
        found = [row for row in rows if row["guard"] == guard and row["run"] in plain]
        if not found:
            continue
        cells: list[str] = []
        for key in ("greedy", "sampled"):
            cells += gained(found, [plain[row["run"]] for row in found], key)
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
                path.write_text(json.dumps(measure(run, guard)) + "\n")
    print(show([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


if __name__ == "__main__":
    main()
