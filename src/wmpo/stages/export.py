"""Episodes of a run as a dataset for other programs: real ones, and ones that were only dreamt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from wmpo.data.episode import Episode
from wmpo.data.importing import write_new
from wmpo.data.lerobot import num_episodes as num_episodes_of
from wmpo.data.lerobot import open_lerobot, read_episodes
from wmpo.data.source import Keys
from wmpo.envs.imagined import ImaginedEnv
from wmpo.protocols import PolicyNet
from wmpo.rollout.run import run_episodes
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import Job, existing_job
from wmpo.stages.record import episodes_of
from wmpo.stages.rounds import collected_datasets, imagined_env, last_round, policy_of

What = Literal["collected", "demonstrations", "imagined"]
BATCH = 32
"""Episodes imagined side by side."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    num_episodes: int
    num_solved: int


def export(run: Path, target: Path, what: What, *, num_episodes: int, temperature: float | None) -> Exported:
    """Writes the episodes as the new LeRobot v3.0 dataset ``target``.

    Real ones stay as they were recorded, bit for bit, of all rounds. Imagined ones begin where collected ones began,
    sampled as in training unless there is a ``temperature``; the world model draws a frame every ``frame_stride``
    actions, and the last one is held in between. They are marked in ``meta/origin.json`` and as policy "improved,
    imagined". Raises ValueError when the run does not have them yet or the target exists.
    """
    job = existing_job(run)
    number = last_round(job)
    origin = {"run": run.name, "seed": job.seed, "episodes": what, "imagined": what == "imagined"}
    if what == "imagined":
        if number == 0:
            raise ValueError(f"{run} has no improved policy yet; run the stages up to improve first: wmpo run")
        dream, policy = imagined_env(job, number), policy_of(job, number + 1)
        stride = dream.world_model.frame_stride
        temperature = job.experiment.improve.temperature if temperature is None else temperature
        origin |= {"round": number, "temperature": temperature, "frame_stride": stride}
        episodes = _imagined(job, dream, policy, num_episodes, temperature)
    else:
        roots = [job.dataset(what)] if what == "demonstrations" else collected_datasets(job)
        if not any(num_episodes_of(root) for root in roots):
            stage = "demos" if what == "demonstrations" else "collect"
            raise ValueError(f"{run} has no episodes of that kind yet; run: wmpo {stage}")
        episodes = (episode for root in roots for episode in open_lerobot(root, Keys()).episodes)
    solved: list[bool] = []

    def counted() -> Iterator[Episode]:
        for episode in episodes:
            solved.append(episode.success)
            yield episode

    write_new(target, counted(), fps=job.fps, origin=origin)
    return Exported(len(solved), sum(solved))


def _imagined(job: Job, dream: ImaginedEnv, policy: PolicyNet, count: int, temperature: float) -> Iterator[Episode]:
    """The policy's dreams from the starts of collected episodes, in turn; each has noise of its own."""
    starts = imagined_starts([episode for root in collected_datasets(job) for episode in read_episodes(root)])
    for begin in range(0, count, BATCH):
        ids = torch.arange(begin, min(begin + BATCH, count))
        rows = ids % len(starts)
        played = run_episodes(
            dream, policy, starts.rows(rows).with_ids(ids, rows), temperature=temperature, seed=job.seed,
            record_video=True,
        )  # fmt: skip
        assert played.video is not None
        stride, views = dream.world_model.frame_stride, job.experiment.env.views
        held = torch.arange((played.video.shape[1] - 1) * stride + 1) // stride
        yield from episodes_of(replace(played, video=played.video[:, held]), policy, "improved, imagined", views)
