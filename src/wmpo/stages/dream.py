"""A run's dream as Gymnasium environments: what ``gymnasium.make`` and ``make_vec`` call for ``wmpo/Dream-v0``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wmpo.data.lerobot import read_episodes
from wmpo.envs.gym import Dream, DreamEnv, DreamVectorEnv
from wmpo.stages import models
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import existing_job
from wmpo.stages.rounds import collected_datasets, last_round


def dream_of(run: str | Path) -> Dream:
    """The world model and classifier of the run's last complete round, and the starts of its collected episodes.

    Raises ValueError when the run has none yet.
    """
    job = existing_job(Path(run))
    number = last_round(job)
    if number == 0:
        raise ValueError(f"{run} has no complete round yet; run the stages up to improve first: wmpo run")
    world_model = models.load_world_model(job.folder_of(number))
    bounds = (bound.cpu().numpy().astype(np.float32) for bound in (world_model.action_low, world_model.action_high))
    low, high = bounds
    return Dream(
        world_model=world_model,
        reward_model=models.load_reward(job.folder_of(number)),
        starts=imagined_starts([episode for root in collected_datasets(job) for episode in read_episodes(root)]),
        chunk_size=job.experiment.policy.chunk_size,
        max_chunks=job.experiment.max_chunks,
        low=low,
        high=high,
        workspaces=job.workspaces,
        whole_chunks=not world_model.config.frame_actions,
    )


def dream_vector_env(
    run: str | Path,
    num_envs: int = 1,
    action: str = "chunk",
    render_mode: str | None = None,
) -> DreamVectorEnv:
    """For ``gymnasium.make_vec("wmpo/Dream-v0", num_envs=..., run=...)``."""
    return DreamVectorEnv(dream_of(run), num_envs=num_envs, action=action, render_mode=render_mode)


def dream_env(run: str | Path, action: str = "chunk", render_mode: str | None = None) -> DreamEnv:
    """For ``gymnasium.make("wmpo/Dream-v0", run=...)``."""
    return DreamEnv(dream_vector_env(run, 1, action, render_mode))
