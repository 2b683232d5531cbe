"""How often the scripted experts of the robosuite tasks succeed.

    python benchmarks/robosuite_experts.py Square StackThree ThreePieceAssembly [--episodes 20] [--noise 0.1]

Plays validation starts, which no demonstration begins from, within the paper's time limits. Needs the extra
``robosuite``. Each task has a file in results/robosuite_experts; what is in it already is not played again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wmpo.data.splits import start_seeds
from wmpo.envs.robosuite import RobosuiteConfig
from wmpo.envs.simulated import SimulatedEnv
from wmpo.evaluation.statistics import wilson
from wmpo.stages.job import commit

RESULTS = Path(__file__).parent / "results" / "robosuite_experts"
CHUNK, CHUNKS = 8, {"Square": 23, "StackThree": 40, "ThreePieceAssembly": 48}
"""Actions in a chunk, and the paper's time limits in chunks."""


def measure(config: RobosuiteConfig, noise: float, episodes: int, workers: int, file: Path) -> None:
    """Plays the starts that are missing, and writes the file after every few of them."""
    found = json.loads(file.read_text()) if file.exists() else {"solved_at": {}}
    solved_at = found["solved_at"]
    missing = [seed for seed in start_seeds("validation", 0, 0, episodes) if str(seed) not in solved_at]
    with SimulatedEnv(
        config, chunk_size=CHUNK, max_chunks=CHUNKS[config.task], frame_stride=CHUNK, ledger=None, num_workers=workers
    ) as env:
        for first in range(0, len(missing), 2 * workers):
            seeds = missing[first : first + 2 * workers]
            played = env.play_expert(seeds, noise=noise, frame_stride=CHUNK)
            solved_at |= {str(seed): solved for seed, (_, _, solved) in zip(seeds, played, strict=True)}
            steps = sorted(at for at in solved_at.values() if at >= 0)
            summary = {
                "success": len(steps) / len(solved_at),
                "interval": list(wilson(len(steps), len(solved_at))),
                "n": len(solved_at),
                "mean_steps": sum(steps) / len(steps) if steps else None,
                "limit": CHUNK * CHUNKS[config.task],
                "noise": noise,
                "commit": commit(),
            }
            file.write_text(json.dumps(summary | {"solved_at": solved_at}, indent=1) + "\n")
            print(f"{file.stem}: {len(steps)} of {len(solved_at)} solved", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=list(CHUNKS))
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.0, help="on the expert's actions")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mimicgen-path", default="", help="play MimicGen's classes of a checkout instead")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        config = RobosuiteConfig(task=task, image_size=64, mimicgen_path=args.mimicgen_path)
        name = f"{'mimicgen_' if args.mimicgen_path else ''}{task}{f'_noise_{args.noise:g}' if args.noise else ''}"
        measure(config, args.noise, args.episodes, args.workers, RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()
