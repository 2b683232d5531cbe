"""How well could any dream foresee outcomes? Recorded actions played again in the simulator, each a little off.

    python benchmarks/foreseeable.py runs/drawer-open-v3-seed0 [...]
    python benchmarks/foreseeable.py --show

The simulator is a perfect world model; with noise on every action it is one that is a little wrong about the hand, and
ever more so, since the hand goes where the sum of the actions says: after 25 actions it is off by five times as much in
each direction. What it says of recorded episodes, against what happened, bounds what a world model with such an error
can say. No episode counts towards P: nothing learns from them. Outcomes are kept in results/foreseeable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import measure_and_show, meta_world

from wmpo.data.episode import Episode
from wmpo.data.lerobot import read_episodes
from wmpo.envs.simulator import Simulator
from wmpo.evaluation.statistics import rates
from wmpo.rng import keyed
from wmpo.stages.job import existing_job
from wmpo.stages.rounds import collected_datasets

RESULTS = Path(__file__).parent / "results" / "foreseeable"
NOISE = (0.0, 0.02, 0.05, 0.1, 0.2)
"""Standard deviations of the noise on each action, of a range from -1 to 1."""


def disturbed(episode: Episode, noise: float) -> np.ndarray:
    """The recorded actions, each off by so much [T, A]."""
    rng = keyed(episode.episode_id, "foreseeable", round(1000 * noise))
    return np.stack([action + noise * rng.standard_normal(action.shape) for action in episode.actions])


def again(sim: Simulator, episode: Episode, noise: float) -> bool:
    """Whether these solve the task."""
    sim.reset(episode.start)
    return any(sim.step(action) for action in disturbed(episode, noise))


def displaced(episode: Episode, noise: float, millimetres: float) -> tuple[float, float]:
    """How far from its recorded place the hand is sent, on average over the episode and at its end."""
    apart = disturbed(episode, noise).clip(-1, 1) - episode.actions.clip(-1, 1)
    away = millimetres * np.linalg.norm(apart[:, :3].cumsum(axis=0), axis=1)
    return float(away.mean()), float(away[-1])


def measure(run: Path) -> dict[str, Any]:
    with existing_job(run) as job:
        config = meta_world(job)
        millimetres = 10 * config.action_repeat
        episodes = [episode for root in collected_datasets(job) for episode in read_episodes(root)]
        sim = config.build()
        outcomes = {str(noise): [again(sim, episode, noise) for episode in episodes] for noise in NOISE}
    real = [episode.success for episode in episodes]
    off = {str(noise): np.median([displaced(e, noise, millimetres) for e in episodes], axis=0) for noise in NOISE}
    return {
        "task": config.task, "seed": job.seed,
        "millimetres": millimetres, "real": real, "again": outcomes,
        "hand_off": {noise: pair.round(1).tolist() for noise, pair in off.items()},
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| task | seed | n (solved) | each action off by, mm | hand off by, mean and end, mm | TPR | FPR | J (95 %) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        truth = np.array(row["real"])
        for noise, outcome in row["again"].items():
            found = rates(np.array(outcome), truth)
            low, high = found.j_interval
            mean, end = row["hand_off"][noise]
            lines.append(
                f"| {row['task']} | {row['seed']} | {len(truth)} ({truth.sum()}) | "
                f"{float(noise) * row['millimetres']:.1f} | {mean:.0f}, {end:.0f} | "
                f"{found.tpr:.2f} | {found.fpr:.2f} | {found.j:.2f} [{low:.2f}, {high:.2f}] |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    measure_and_show(__doc__, RESULTS, measure, show)
