"""How well can P episodes teach anyone to foresee outcomes? A network that is told what a dream must guess.

    python benchmarks/learnable.py runs/drawer-open-v3-seed0 [...]
    python benchmarks/learnable.py --show

The last round's dream judges replays of 192 further episodes of the run's last two policies. Beside it a small network
is told, in metres, where the object begins and where the controller sends the hand after every action, and learns from
the same episodes when the task is solved; it needs no picture. Then it learns from 288 more. What it cannot foresee is
not for want of sharp pictures. No further episode counts towards P.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finished_runs import further, measure_and_show, meta_world
from torch import Tensor, nn

from wmpo.data.episode import Episode
from wmpo.envs.metaworld import MetaWorldSim
from wmpo.evaluation.statistics import auroc, best_threshold, rates
from wmpo.evaluation.world_model import replay
from wmpo.noise import torch_generator
from wmpo.stages.job import Job, existing_job
from wmpo.stages.rounds import imagined_env
from wmpo.train.reward import peaks, replayed_videos

RESULTS = Path(__file__).parent / "results" / "learnable"
TESTED, MORE, FIRST_START = 96, 144, 40_000
"""Episodes of each of the two policies."""
HISTORY, STRIDE, STEPS = 48, 4, 1500
"""Actions that the told network looks back on, actions between its verdicts, and its steps of training."""


def told(job: Job, sim: MetaWorldSim, episode: Episode) -> tuple[Tensor, Tensor]:
    """After every fourth action: where the hand was sent until then, in metres from where the object began, and the
    gripper's commands [F, 48, 4]; and whether the task was solved by then [F]. Before the start it stands still."""
    sim.reset(episode.start)
    hand, thing = sim._obs[:3], sim._obs[4:7]
    actions = job.executed([episode])[0].actions
    sent = hand - thing + 0.01 * sim.config.action_repeat * actions[:, :3].cumsum(axis=0)
    path = np.concatenate([np.repeat([[*(hand - thing), 0.0]], HISTORY, axis=0), np.c_[sent, 0.1 * actions[:, 3]]])
    ends = range(STRIDE, len(actions) + 1, STRIDE)
    solved = [0 <= episode.solved_at <= end for end in ends]
    return torch.tensor(np.stack([path[end : end + HISTORY] for end in ends])).float(), torch.tensor(solved).float()


def foresees(learn: Sequence[tuple[Tensor, Tensor]], test: Sequence[tuple[Tensor, Tensor]], seed: int) -> np.ndarray:
    """The highest logit of each tested episode; half of each batch is solved."""
    paths, solved = (torch.cat(part) for part in zip(*learn, strict=True))
    mean, scale = paths.mean(dim=(0, 1)), paths.std(dim=(0, 1)) + 1e-3
    draw = torch_generator(seed, "learnable", 0)
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv1d(4, 64, 5, stride=2, padding=2), nn.ReLU(), nn.Conv1d(64, 64, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv1d(64, 64, 5, stride=2, padding=2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(64 * HISTORY // 8, 1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
    kinds = [(solved == kind).nonzero().flatten() for kind in (0, 1)]
    for _ in range(STEPS):
        rows = torch.cat([kind[torch.randint(len(kind), (32,), generator=draw)] for kind in kinds])
        logits = net(((paths[rows] - mean) / scale).transpose(1, 2))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, solved[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        return np.array([float(net(((path - mean) / scale).transpose(1, 2)).max()) for path, _ in test])


def measure(run: Path) -> dict[str, Any]:
    with existing_job(run) as job:
        config = meta_world(job)
        job.round = last = job.experiment.num_rounds
        test, more = (
            [e for i in (0, 1) for e in further(job, last + i, FIRST_START + first + i * count, count)]
            for first, count in ((0, TESTED), (1000, MORE))
        )
        learn = [*job.demonstrations(), *job.collected()[0]]
        dream = imagined_env(job, last)
        executed = job.executed(test)
        videos = replay(dream.world_model, executed, dream.chunk_size, seed=job.seed)
        scores = {
            "dream": [peaks(dream.reward_model, replayed_videos(executed, videos, dream.world_model.frame_stride))]
        }
        sim = config.build()
        mine, tested, others = ([told(job, sim, e) for e in part] for part in (learn, test, more))
        for name, part in (("told", mine), ("told, with more", mine + others)):
            scores[name] = [foresees(part, tested, seed) for seed in range(3)]
    return {
        "task": config.task, "seed": job.seed,
        "learned": {"dream": len(learn), "told": len(learn), "told, with more": len(learn) + len(more)},
        "solved": [episode.success for episode in test],
        "scores": {name: [score.round(3).tolist() for score in kinds] for name, kinds in scores.items()},
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> str:
    """Means over three trainings of the network that is told. J has the threshold that is best on these episodes."""
    lines = [
        "| task | seed | n, solved | who judges | learned from | AUROC | best J |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        truth = np.array(row["solved"])
        for name, kinds in row["scores"].items():
            found = [np.array(score) for score in kinds]
            area = np.mean([auroc(score, truth) for score in found])
            j = np.mean([rates(score > best_threshold(score, truth, "j"), truth).j for score in found])
            about = f"| {row['task']} | {row['seed']} | {len(truth)}, {truth.sum()} | {name}"
            lines.append(f"{about} | {row['learned'][name]} | {area:.2f} | {j:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measure_and_show(__doc__, RESULTS, measure, show)
