"""The folder of a finished run of two rounds, made in a moment: real files, networks that have learned nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes
from wmpo.policy.codec import ActionCodec
from wmpo.recipes import tiny
from wmpo.report.run import RunFolder
from wmpo.stages import models
from wmpo.stages.job import Job, open_job

SENTENCE = "press the button"


def recorded(number: int, steps: int, *, size: int = 32, policy: str = "base") -> Episode:
    generator = np.random.default_rng(number)
    return Episode(
        frames=generator.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
        actions=generator.uniform(-1, 1, (steps, 4)).astype(np.float32),
        solved_at=steps if number % 2 else -1,
        instruction=SENTENCE,
        start=20_000_000 + number,
        episode_id=20_000_000 + number,
        policy=policy,
    )


def finished_run(path: Path, *, rounds: int = 2, threshold: float = 0.0, group_size: int = 4) -> Job:
    """``rounds`` complete rounds of two. ``threshold`` of the success classifier: -1e9 solves all, 1e9 nothing."""
    small = tiny()
    groups = replace(small.improve.groups, group_size=group_size)
    job = open_job(path, "tiny", replace(small, improve=replace(small.improve, groups=groups)), seed=0, quiet=True)
    demos = [recorded(100 + i, 5, policy="expert") for i in range(2)]
    append_episodes(job.dataset("demonstrations"), demos, fps=job.fps)
    experiment, size = job.experiment, job.experiment.env.image_size
    torch.manual_seed(0)
    codec = ActionCodec((-1.0, -2.0, 0.0, 5.0), (1.0, 2.0, 0.5, 6.0), experiment.policy.chunk_size, 11)
    models.save_policy(job.root, "base", _random(experiment.policy.build(codec, size)), (SENTENCE,))
    for number in range(1, rounds + 1):
        folder: RunFolder = job.folder_of(number)
        played = [recorded(10 * number + i, 8) for i in range(3)]
        append_episodes(folder.path / "data/collected", played, fps=job.fps)
        dream = experiment.world_model.build(experiment.tokenizer.build(), -torch.ones(4), torch.ones(4), size // 4)
        models.save_world_model(folder, _random(dream))
        judge = experiment.reward.build(size)
        judge.threshold = threshold
        models.save_reward(folder, judge)
        models.save_policy(folder, "improved", _random(experiment.policy.build(codec, size)), (SENTENCE,))
        folder.complete("improve", 1.0, {})
    return job


def _random(network: nn.Module) -> Any:
    """Random instead of zero output layers, so that something moves."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network
