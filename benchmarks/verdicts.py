"""How well does the success classifier judge, in reality and in the dream, when P = 128 episodes were learned from?

    python benchmarks/verdicts.py runs/drawer-open-v3-seed0 [...]
    python benchmarks/verdicts.py --show

The base policy of a finished run plays 256 episodes. World model and classifier learn from 128 of them, in one round,
and judge the other 128: as they happened, and with their actions replayed in the dream, once and as the mean of eight
dreams. Beside them judges who is told, in metres, what a dream must guess (learnable.py), and learns from the same 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import changed, measure_and_show, meta_world, redo
from learnable import foresees, told

from wmpo.evaluation.statistics import auroc, best_threshold, rates
from wmpo.evaluation.world_model import replay
from wmpo.stages.job import Job
from wmpo.stages.order import rounds
from wmpo.stages.rounds import imagined_env
from wmpo.train.reward import peaks, replayed_videos

RESULTS = Path(__file__).parent / "results" / "verdicts"
P, HELD_OUT, DREAMS, TRAININGS = 128, 128, 8, 3


def measure(run: Path) -> dict[str, Any]:
    settings = {"num_rounds": 1, "collect.num_episodes": P + HELD_OUT, "collect.num_held_out": HELD_OUT}
    with changed(run, settings) as job:
        task, order = meta_world(job).task, rounds(1)  # another simulator is refused at once
        redo(job, order[: order.index(("reward", 1)) + 1])
        found = {stage: job.folder.summary(stage) or {} for stage in ("collect", "world-model", "reward")}
        about = {"task": task, "seed": job.seed, "scores": scores(job)}
    return about | found


def scores(job: Job) -> dict[str, Any]:
    """The held-out episodes' outcomes, and what each judge gives them: a row a dream, or a training."""
    collected, held_out = job.collected()
    dream, sim = imagined_env(job, 1), meta_world(job).build()
    executed = job.executed(held_out)
    judged = []
    for number in range(DREAMS):
        videos = replay(dream.world_model, executed, dream.chunk_size, seed=job.seed + number)
        judged.append(peaks(dream.reward_model, replayed_videos(executed, videos, dream.world_model.frame_stride)))
    learn, test = ([told(job, sim, e) for e in part] for part in ([*job.demonstrations(), *collected], held_out))
    knowing = [foresees(learn, test, seed) for seed in range(TRAININGS)]
    kinds = {"dreams": judged, "told": knowing}
    return {"solved": [e.success for e in held_out]} | {
        name: [row.round(3).tolist() for row in rows] for name, rows in kinds.items()
    }


def show(rows: list[dict[str, Any]]) -> str:
    """The best threshold is the one for these very episodes; the other J has that of the run."""
    lines = [
        "| task | seed | n, solved | real F1 | real J | replays: TPR, FPR | J | dream: AUROC, best J "
        "| mean of 8 dreams | told |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        real, imagined, found = row["reward"]["real"], row["reward"]["imagined"], row["scores"]
        truth, dreams = np.array(found["solved"]), np.array(found["dreams"])
        figures = [
            *(_with_interval(real, key) for key in ("f1", "j")),
            f"{imagined['tpr']:.2f}, {imagined['fpr']:.2f}",
            _with_interval(imagined, "j"),
            *(_foresight(judged, truth) for judged in (dreams, dreams.mean(0, keepdims=True), np.array(found["told"]))),
        ]
        lines.append(f"| {row['task']} | {row['seed']} | {real['n']}, {real['positives']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _foresight(judged: np.ndarray, truth: np.ndarray) -> str:
    """AUROC and best J, means over dreams or trainings [n, E]."""
    area = np.mean([auroc(score, truth) for score in judged])
    j = np.mean([rates(score > best_threshold(score, truth, "j"), truth).j for score in judged])
    return f"{area:.2f}, {j:.2f}"


def _with_interval(found: dict[str, Any], key: str) -> str:
    low, high = found[f"{key}_interval"]
    return f"{found[key]:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    measure_and_show(__doc__, RESULTS, measure, show)
