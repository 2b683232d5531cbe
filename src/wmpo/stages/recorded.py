"""Runs from recorded episodes alone: what their recipe leaves open is read from the datasets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wmpo.config import Experiment
from wmpo.data.damage import DatasetError
from wmpo.data.lerobot import list_episodes, num_episodes, open_lerobot
from wmpo.data.source import Keys
from wmpo.envs.recorded import RecordedConfig

HELD_OUT = 4
"""Every fourth of the collected episodes only measures, unless the user says how many."""


def described(experiment: Experiment) -> Experiment:
    """With the robot as the demonstrations show it, all recorded episodes, and the time of the longest collected one;
    what is set stays, and experiments that play in a simulator stay as they are.

    Raises ValueError when a dataset is not named or not there, and DatasetError when it is damaged.
    """
    env, demos, collect = experiment.env, experiment.demos, experiment.collect
    if not isinstance(env, RecordedConfig):
        return experiment
    if env.is_known and min(experiment.max_chunks, demos.num_episodes, collect.num_episodes, collect.num_held_out) > 0:
        return experiment
    played = list_episodes(_dataset("--collect.recorded", collect.recorded, "episodes of a policy, failures included"))
    demonstrated = _dataset("--demos.recorded", demos.recorded, "solved demonstrations")
    env, chunk = _seen(env, demonstrated), experiment.policy.chunk_size
    count = collect.num_episodes or len(played)
    longest = max(episode.num_actions for episode in played)
    return replace(
        experiment,
        env=env,
        max_chunks=experiment.max_chunks or -(-longest // chunk),
        demos=replace(demos, num_episodes=demos.num_episodes or num_episodes(demonstrated)),
        collect=replace(
            collect, num_episodes=count, num_held_out=collect.num_held_out or max(2, count // HELD_OUT)
        ),
    )  # fmt: skip


def _dataset(flag: str, name: str, what: str) -> Path:
    if not name or not num_episodes(Path(name)):
        raise ValueError(
            f"{flag} {name or 'is not given, and it'} must be a dataset with {what}; wmpo data import makes one of "
            "yours, wmpo robot collect records one"
        )
    return Path(name)


def _seen(env: RecordedConfig, root: Path) -> RecordedConfig:
    """As the first demonstration has it."""
    source = open_lerobot(root, Keys())
    first = next(iter(source.episodes))
    height, width = first.frames.shape[1], first.frames.shape[2] // len(first.views)
    if height != width or height % 16:
        raise DatasetError(
            f"{root} has pictures of {height}x{width} pixels, but networks here take squares of a multiple of 16; wmpo "
            "data import --image-size makes them so"
        )
    if source.fps is None:
        raise DatasetError(f"{root} has no whole number of frames a second; wmpo data import --fps names one")
    return replace(
        env,
        task=env.task or first.instruction,
        image_size=env.image_size or height,
        views=env.views or first.views,
        action_dim=env.action_dim or first.actions.shape[1],
        rate=env.rate or source.fps,
    )
