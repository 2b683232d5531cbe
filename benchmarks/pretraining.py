"""What pretraining over many tasks buys: a world model aligned to P episodes of a new task, against one from scratch.

    python benchmarks/pretraining.py runs/drawer-open-v3-seed0 runs/plate-slide-v3-seed0
    python benchmarks/pretraining.py --show

The episodes are those of a finished run; a quarter of P is held out there, so 24, 48 and 96 of them are learned from.
Both kinds get the same steps of alignment, the one from scratch those of its tokenizer besides. Measured on the run's
held-out episodes of all rounds: distance of replays from the real frames, chunk by chunk. Success with and without is
another matter: ``wmpo run quickstart --world-model.pretrained none``.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import measure_and_show

from wmpo.data.episode import Episode
from wmpo.report.run import RunFolder
from wmpo.stages import learn as stages
from wmpo.stages.job import Job, existing_job
from wmpo.world_model.small import SmallWorldModelConfig

RESULTS = Path(__file__).parent / "results" / "pretraining"
BUDGETS = (32, 64, 128)


@dataclass
class Chosen(Job):
    """Learns from these episodes."""

    episodes: list[Episode] = field(default_factory=list)
    measured: list[Episode] = field(default_factory=list)

    def collected(self) -> tuple[list[Episode], list[Episode]]:
        return self.episodes, self.measured


def measure(run: Path) -> dict[str, Any]:
    with existing_job(run) as job:
        job.round = job.experiment.num_rounds
        episodes, held_out = job.collected()
        own, rows = job.experiment.world_model, []
        assert isinstance(own, SmallWorldModelConfig), "others have no shipped weights"
        for budget in BUDGETS:
            for pretrained in (own.pretrained, "none"):
                config = replace(own, pretrained=pretrained)
                with tempfile.TemporaryDirectory(dir=run.parent) as scratch:
                    for part in ("data/demonstrations", "stages"):
                        shutil.copytree(run / part, Path(scratch) / part)
                    few = episodes[: round(len(episodes) * budget / BUDGETS[-1])]
                    experiment = replace(job.experiment, world_model=config)
                    chosen = Chosen(RunFolder(Path(scratch)), experiment, job.seed, episodes=few, measured=held_out)
                    stages.tokenizer(chosen)
                    stages.world_model(chosen)
                    found = chosen.folder.summary("world-model") or {}
                about = {"budget": budget, "learned": len(few), "pretrained": pretrained}
                rows.append(about | {key: found[key] for key in ("distance", "tokenizer_distance", "seconds")})
        env = job.experiment.env
    return {"task": env.tasks[0], "seed": job.seed, "rows": rows}


def show(rows: list[dict[str, Any]]) -> str:
    """Mean distance over all chunks, and at the last."""
    lines = [
        "| task | seed | P | pretrained, mean | from scratch | pretrained, last chunk | from scratch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        distance = {(found["budget"], found["pretrained"] == "none"): found["distance"] for found in row["rows"]}
        for budget in BUDGETS:
            own, none = distance[budget, False], distance[budget, True]
            figures = [f"{figure:.4f}" for figure in (np.mean(own), np.mean(none), own[-1], none[-1])]
            lines.append(f"| {row['task']} | {row['seed']} | {budget} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measure_and_show(__doc__, RESULTS, measure, show)
