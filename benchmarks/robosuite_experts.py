"""How often the scripted experts of the robosuite tasks succeed, and how fast the simulator is.

    python benchmarks/robosuite_experts.py [Square StackThree ThreePieceAssembly] [--episodes 32] [--noise 0 0.1]

Plays validation starts, which no demonstration begins from, in one process with a frame after every action. Needs the
extra ``robosuite``. What was measured is kept in results/robosuite_experts.json; other tasks and noises in it stay.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from wmpo.data.splits import start_seeds
from wmpo.envs.robosuite import RobosuiteConfig
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.evaluation.statistics import wilson
from wmpo.stages.job import commit, machine

RESULTS = Path(__file__).parent / "results" / "robosuite_experts.json"
LIMITS = {"Square": 184, "StackThree": 320, "ThreePieceAssembly": 384}
"""The paper's time limits, in actions."""


def measure(config: RobosuiteConfig, noise: float, episodes: int) -> dict[str, Any]:
    seeds = start_seeds("validation", 0, 0, episodes)
    with SimulatedEnv(
        config, chunk_size=8, max_chunks=LIMITS[config.task] // 8, frame_stride=1, ledger=None, num_workers=1
    ) as env:
        env.purpose = Purpose("benchmark", "expert")
        env.play_expert(seeds[:1], noise=noise, frame_stride=1)  # builds the model and compiles the controller
        begin = time.monotonic()
        played = env.play_expert(seeds, noise=noise, frame_stride=1)
        seconds = time.monotonic() - begin
    steps = [len(actions) for _, actions, _ in played]
    solved = [at for _, _, at in played if at >= 0]
    return {
        "success": len(solved) / episodes,
        "interval": list(wilson(len(solved), episodes)),
        "n": episodes,
        "first_start": seeds[0],
        "steps_to_success": [min(solved), sum(solved) / len(solved), max(solved)] if solved else None,
        "failed_starts": [seed for seed, (_, _, at) in zip(seeds, played, strict=True) if at < 0],
        "steps_per_second": sum(steps) / seconds,
        "limit": LIMITS[config.task],
        "commit": commit(),
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(LIMITS), help="by default all")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0], help="on the expert's actions")
    parser.add_argument("--mimicgen-path", default="", help="play MimicGen's classes of a checkout instead")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for task in args.tasks:
        for noise in args.noise:
            config = RobosuiteConfig(task=task, mimicgen_path=args.mimicgen_path)
            found = measure(config, noise, args.episodes)
            label = f"{task}{' of MimicGen' if args.mimicgen_path else ''}, noise {noise:g}"
            results[label] = found
            low, high = (100 * share for share in found["interval"])
            rate = f"{100 * found['success']:.0f} % [{low:.0f}, {high:.0f}] of {found['n']}"
            print(f"{label}: {rate}, {found['steps_per_second']:.0f} steps/s", flush=True)
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
