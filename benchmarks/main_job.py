"""Runs the main job for several tasks and seeds and keeps what was measured.

    python benchmarks/main_job.py --tasks drawer-open-v3 --seeds 0 1 2
    python benchmarks/main_job.py --show

Each run is `wmpo run quickstart` with 256 test starts, in a folder of its own, and its figures are a file of
results/main_job; finished ones are not run again. Memory is the largest sum of proportional resident memory over the
processes of the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def resident(root: int) -> int:
    """Bytes of memory of a process and all its descendants (proportional shares of shared pages)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
    family, total = {root}, 0
    for pid in sorted(parents):
        if parents[pid] in family:
            family.add(pid)
    for pid in family:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            continue
    return total


def run(task: str, seed: int, runs: Path, extra: list[str], name: str = "") -> dict[str, Any]:
    name = name or f"{task}-seed{seed}"
    command = ["wmpo", "run", "quickstart", "--name", name, "--seed", str(seed), "--env.task", task]
    command += ["--evaluate.num-test", "256", *extra]
    begun, peak, done = time.monotonic(), 0, threading.Event()
    process = subprocess.Popen([sys.executable, "-m", "wmpo", *command[1:], "--runs", str(runs)])

    def watch() -> None:
        nonlocal peak
        while not done.wait(1.0):
            peak = max(peak, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    results = json.loads((runs / name / "results.json").read_text())
    size = sum(file.stat().st_size for file in (runs / name).rglob("*") if file.is_file())
    kept = {k: v for k, v in results.items() if k != "config"}
    for side in ("real", "imagined"):
        kept["reward"][side] = {k: v for k, v in kept["reward"][side].items() if k not in ("roc", "reliability")}
    measured = {"wall_seconds": time.monotonic() - begun, "peak_bytes": peak, "folder_bytes": size}
    return {"command": " ".join(command), "task": task, **measured, **kept}


def show(rows: list[dict[str, Any]]) -> str:
    head = (
        "| task | seed | base, best decoding | improved, best decoding | points (95 %) | greedy | sampled | minutes |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        gain, (low, high) = row["difference"]["best"]["points"], row["difference"]["best"]["interval"]
        best = [f"{100 * row[p]['best']['success']:.1f} ({row[p]['best']['decoding']})" for p in ("base", "improved")]
        others = [f"{row['difference'][key]['points']:+.1f}" for key in ("greedy", "sampled")]
        minutes = sum(row["seconds"].values()) / 60
        lines.append(
            f"| {row['task']} | {row['seed']} | {best[0]} | {best[1]} | {gain:+.1f} [{low:+.1f}, {high:+.1f}] | "
            f"{others[0]} | {others[1]} | {minutes:.1f} |"
        )
    for task in dict.fromkeys(row["task"] for row in rows):
        gains = [row["difference"]["best"]["points"] for row in rows if row["task"] == task]
        lines.append(f"| **{task}, mean of {len(gains)}** | | | | **{np.mean(gains):+.1f}** | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["drawer-open-v3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--show", action="store_true", help="print the table of what is there")
    args, extra = parser.parse_known_args()
    results = HERE / "results" / "main_job"
    results.mkdir(parents=True, exist_ok=True)
    for task in [] if args.show else args.tasks:
        for seed in args.seeds:
            path = results / f"{task}-seed{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(run(task, seed, args.runs, extra), indent=1) + "\n")
    print(show([json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]))


if __name__ == "__main__":
    main()
