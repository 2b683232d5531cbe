"""What each part of the method is worth: the first round of finished runs again, every time with one thing changed.

    python benchmarks/ablations.py runs/drawer-open-v3-seed0 runs/plate-slide-v3-seed0
    python benchmarks/ablations.py --show

A round, because a whole run for each of them would take days on two cores: demonstrations, base policy and the first
round's episodes are the run's, and only what the change touches is made anew. The policies play the run's test
starts, greedy and sampled as in the dream; every outcome is kept in results/ablations. What is there is not run again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import again, gained, named

RESULTS = Path(__file__).parent / "results" / "ablations"
PLAIN, TWO_FRAMES = "as it is", "chunks of two frames"


@dataclass(frozen=True)
class Variant:
    """What is changed, and the first stage that it touches."""

    first: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    against: str = PLAIN


TEMPERATURE = {"collect.temperature": 1.0, "improve.temperature": 1.0}
CHUNKS = {"policy.chunk_size": 8, "max_chunks": 6}
VARIANTS = {
    PLAIN: Variant(),
    "no noise on context frames": Variant("world-model", {"world_model_training.context_noise": 0.0}),
    "aligned to demonstrations only": Variant("world-model", {"world_model_training.pretrain_share": 1.0}),
    "not pretrained": Variant("tokenizer", {"world_model.pretrained": "none"}),
    "four sampling steps a frame": Variant("world-model", {"world_model.euler_steps": 4}),
    "no dynamic sampling": Variant("improve", {"improve.groups.dynamic_sampling": False}),
    "no higher upper clip": Variant("improve", {"improve.grpo.clip.high": 0.2}),
    "one ratio a chunk": Variant("improve", {"improve.grpo.clip.ratio": "chunk"}),
    "short episodes, of four chunks": Variant(
        "improve", {"improve.guards.branch_share": 0.95, "improve.guards.branch_chunks": 4}
    ),
    "temperature 1": Variant("collect", TEMPERATURE),
    "no cloning before imagination": Variant("clone", {"clone.enabled": False}),
    TWO_FRAMES: Variant("sft", CHUNKS),
    "the same, told one action a chunk": Variant("sft", CHUNKS | {"world_model.frame_actions": False}, TWO_FRAMES),
}


def place(run: Path, variant: str) -> Path:
    return RESULTS / f"{named(run)}-{variant.replace(' ', '_').replace(',', '')}.json"


def measure(run: Path, name: str) -> dict[str, Any]:
    variant = VARIANTS[name]
    found = again(run, 1, variant.first, variant.settings)
    stages = found.pop("stages")
    figures = {
        "distance": stages["world-model"]["distance"],
        "imagined": {key: stages["reward"]["imagined"][key] for key in ("tpr", "fpr", "j", "n")},
        "collected": stages["collect"]["success"],
        "stopped": stages["improve"]["stopped"],
    }
    return found | {"variant": name, "settings": variant.settings} | figures


def show(rows: list[dict[str, Any]]) -> str:
    """Each variant over the runs that have both it and what it is compared with."""
    known = {(row["variant"], row["run"]): row for row in rows}
    lines = [
        "| variant | runs | greedy | against it (95 %) | sampled | against it (95 %) | replays, mean | J |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, variant in VARIANTS.items():
        found = [row for row in rows if row["variant"] == name and (variant.against, row["run"]) in known]
        if not found:
            continue
        cells = []
        for key in ("greedy", "sampled"):
            mean, difference = gained(found, [known[variant.against, row["run"]] for row in found], key)
            cells += [mean, "" if name == variant.against else difference]
        distance = np.mean([np.mean(row["distance"]) for row in found])
        j = np.mean([row["imagined"]["j"] for row in found])
        against = "" if variant.against in (PLAIN, name) else f" (against {variant.against})"
        lines.append(f"| {name}{against} | {len(found)} | {' | '.join(cells)} | {distance:.4f} | {j:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--show", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for run in [] if args.show else args.runs:
        for variant in args.variants:
            if not (path := place(run, variant)).exists():
                path.write_text(json.dumps(measure(run, variant)) + "\n")
    print(show([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


if __name__ == "__main__":
    main()
