"""What each part of the method is worth: the main job again, every time with one flag changed.

    python benchmarks/ablations.py --tasks drawer-open-v3 plate-slide-v3 --seeds 0 1 2
    python benchmarks/ablations.py --show

Every variant is a whole `wmpo run quickstart` in a folder of its own, from the same demonstrations and the same base
policy (they depend on the seed alone). Its figures and the outcome of every test start are a file of results/ablations;
finished ones are not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from main_job import run

from wmpo.evaluation.statistics import paired_difference

RESULTS = Path(__file__).parent / "results" / "ablations"
PLAIN = "as it is"
VARIANTS = {
    PLAIN: "",
    "no noise on context frames": "--world-model-training.context-noise 0",
    "world model aligned to demonstrations only": "--world-model-training.pretrain-share 1",
    "world model not pretrained": "--world-model.pretrained none",
    "four sampling steps a frame": "--world-model.euler-steps 4",
    "no dynamic sampling": "--improve.groups.no-dynamic-sampling",
    "no higher upper clip": "--improve.grpo.clip.high 0.2",
    "one ratio a chunk": "--improve.grpo.clip.ratio chunk",
    "temperature 1": "--collect.temperature 1 --improve.temperature 1 --evaluate.temperatures 0 1",
    "no cloning before imagination": "--clone.no-enabled",
    "one round": "--num-rounds 1 --improve.num-iterations 12",
}


def place(task: str, seed: int, variant: str) -> Path:
    return RESULTS / f"{task}-seed{seed}-{variant.replace(' ', '_')}.json"


def measure(task: str, seed: int, variant: str, runs: Path, extra: list[str]) -> dict[str, Any]:
    name = f"{task}-seed{seed}-{variant.replace(' ', '_')}"
    found = run(task, seed, runs, [*VARIANTS[variant].split(), *extra], name=name)
    outcomes = json.loads((runs / name / "outcomes.json").read_text())
    raw = {who: {key: outcomes[who][key]["success"] for key in ("greedy", "best")} for who in ("base", "improved")}
    return {"variant": variant, "outcomes": raw, **found}


def show(rows: list[dict[str, Any]]) -> str:
    """Each variant over the tasks and seeds that both it and the unchanged recipe have."""
    plain = {(row["task"], row["seed"]): row for row in rows if row["variant"] == PLAIN}
    head = "| variant | runs | gain over base, best decoding | against as it is (95 %) | replays, last chunk | J |"
    lines = [head, "|---|---|---|---|---|---|"]
    for variant in VARIANTS:
        found = [row for row in rows if row["variant"] == variant and (row["task"], row["seed"]) in plain]
        if not found:
            continue
        gain = np.mean([row["difference"]["best"]["points"] for row in found])
        mine, as_it_is = (
            np.concatenate([row["outcomes"]["improved"]["best"] for row in some])
            for some in (found, [plain[row["task"], row["seed"]] for row in found])
        )
        points, (low, high) = paired_difference(as_it_is, mine)
        ratio = np.mean([row["world_model"]["ratio_last"] for row in found])
        j = np.mean([row["reward"]["imagined"]["j"] for row in found])
        against = "" if variant == PLAIN else f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"
        lines.append(f"| {variant} | {len(found)} | {gain:+.1f} | {against} | {ratio:.2f}x | {j:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["drawer-open-v3", "plate-slide-v3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--show", action="store_true", help="print the table of what is there")
    args, extra = parser.parse_known_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in [] if args.show else args.seeds:
        for task in args.tasks:
            for variant in args.variants:
                path = place(task, seed, variant)
                if not path.exists():
                    path.write_text(json.dumps(measure(task, seed, variant, args.runs, extra)) + "\n")
    print(show([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


if __name__ == "__main__":
    main()
