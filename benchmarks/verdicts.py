"""How well does the success classifier judge, in reality and in the dream, when P = 128 episodes were learned from?

    python benchmarks/verdicts.py runs/drawer-open-v3-seed0 [...]
    python benchmarks/verdicts.py --show

The base policy of a finished run plays 256 episodes. World model and classifier learn from 128 of them, in one round,
and judge the other 128: as they happened, and with their actions replayed in the dream.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finished_runs import changed, command, measure_and_show, redo

from wmpo.stages.job import commit
from wmpo.stages.order import rounds

RESULTS = Path(__file__).parent / "results" / "verdicts"
P, HELD_OUT = 128, 128


def measure(run: Path) -> dict[str, Any]:
    settings = {"num_rounds": 1, "collect.num_episodes": P + HELD_OUT, "collect.num_held_out": HELD_OUT}
    with changed(run, settings) as job:
        order = rounds(1)
        redo(job, order[: order.index(("reward", 1)) + 1])
        found = {stage: job.folder.summary(stage) or {} for stage in ("collect", "world-model", "reward")}
        about = {"task": job.experiment.env.tasks[0], "seed": job.seed}
    return about | found | {"command": command(run), "commit": commit()}


def show(rows: list[dict[str, Any]]) -> str:
    """The best threshold is the one for these very episodes; the other J has that of the run."""
    lines = [
        "| task | seed | n, solved | real F1 | real J | replays: TPR, FPR | J | J with the best threshold |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        real, imagined = row["reward"]["real"], row["reward"]["imagined"]
        best = max(tpr - fpr for fpr, tpr in imagined["roc"])
        figures = [
            *(_with_interval(found, key) for found, key in ((real, "f1"), (real, "j"))),
            f"{imagined['tpr']:.2f}, {imagined['fpr']:.2f}",
            _with_interval(imagined, "j"),
            f"{best:.2f}",
        ]
        lines.append(f"| {row['task']} | {row['seed']} | {real['n']}, {real['positives']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _with_interval(found: dict[str, Any], key: str) -> str:
    low, high = found[f"{key}_interval"]
    return f"{found[key]:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    measure_and_show(__doc__, RESULTS, measure, show)
