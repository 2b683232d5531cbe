"""Videos and pictures of a run, for its report."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from wmpo.checkpoint import write_json
from wmpo.data.episode import Episode
from wmpo.data.splits import start_seeds
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.evaluation.policy import decoding
from wmpo.evaluation.world_model import replay
from wmpo.protocols import PolicyNet
from wmpo.report.video import side_by_side, strip, write_video
from wmpo.rollout.run import run_episodes
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import Job
from wmpo.stages.models import load_world_model
from wmpo.stages.record import play
from wmpo.stages.rounds import imagined_env

Index = list[dict[str, str]]


def make_videos(job: Job, policies: dict[str, PolicyNet], temperatures: dict[str, float], env: SimulatedEnv) -> None:
    """Writes ``videos/``: replays beside reality, test starts before and after, and episodes that were only dreamt."""
    index = _replays(job) + _before_after(job, policies, temperatures, env) + _dreams(job, policies["improved"])
    write_json(job.root.path / "videos" / "index.json", index)


def _replays(job: Job) -> Index:
    model = load_world_model(job.folder)
    held_out = job.executed(job.collected()[1])
    solved = [e for e in held_out if e.success][:3]
    failed = [e for e in held_out if not e.success][:3]
    chosen = [*solved, *failed]
    videos = replay(model, chosen, job.experiment.policy.chunk_size, seed=job.seed)
    stride, index, rows = model.frame_stride, [], []
    for i, (episode, video) in enumerate(zip(chosen, videos, strict=True)):
        name = f"replay-{i}.mp4"
        real, imagined = show_replay(job, name, episode, video, stride)
        outcome = "solved" if episode.success else "failed"
        index.append({"file": name, "section": "replay", "caption": f"Held-out episode, {outcome} in reality"})
        if i in (0, len(solved)):
            rows += [real, imagined]
    picture = strip(rows, ["real", "imagined"] * (len(rows) // 2), columns=10)
    picture.save(job.root.path / "videos" / "strip.png")
    return index


def show_replay(
    job: Job, name: str, episode: Episode, video: UInt8[Tensor, "L h w 3"], stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Writes a replay beside the real video, at half speed; returns both."""
    real, imagined = episode.frames[::stride][: len(video)], video.numpy()
    write_video(job.root.path / "videos" / name, side_by_side(real, imagined), fps=max(1, job.fps // stride // 2))
    return real, imagined


def _before_after(job: Job, policies: dict[str, PolicyNet], temperatures: dict[str, float], env: SimulatedEnv) -> Index:
    """Starts after the tested ones, so that no test episode is played twice."""
    config = job.experiment.evaluate
    if config.num_videos == 0:
        return []
    seeds = start_seeds("test", job.seed, config.num_test, config.num_videos)
    played: dict[str, list[Episode]] = {}
    for name, policy in policies.items():
        env.purpose, env.frame_stride = Purpose("videos", name, temperatures[name], job.seed), 1
        played[name] = play(env, policy, seeds, job, temperature=temperatures[name], policy_name=name)
    index = []
    for i, (before, after) in enumerate(zip(played["base"], played["improved"], strict=True)):
        name = f"before-after-{i}.mp4"
        write_video(job.root.path / "videos" / name, side_by_side(before.frames, after.frames), fps=job.fps // 2)
        words = [f"{who} {'solves it' if e.success else 'fails'}" for who, e in (("base", before), ("improved", after))]
        caption = f"{words[0]} ({decoding(temperatures['base'])}), {words[1]} ({decoding(temperatures['improved'])})"
        index.append({"file": name, "section": "before-after", "caption": caption})
    return index


def _dreams(job: Job, policy: PolicyNet) -> Index:
    starts = imagined_starts(job.collected()[0][:4])
    env = imagined_env(job, job.round)
    rollouts = run_episodes(env, policy, starts, temperature=1.0, seed=job.seed, record_video=True)
    assert rollouts.video is not None
    index = []
    stride: Any = env.world_model.frame_stride
    for i in range(len(rollouts)):
        length = 1 + int(np.ceil(int(rollouts.num_steps[i]) / stride))
        name, solved = f"imagined-{i}.mp4", bool(rollouts.success[i])
        frames = rollouts.video[i, :length].numpy()
        write_video(job.root.path / "videos" / name, frames, fps=max(1, job.fps // stride // 2))
        caption = f"Improved policy, {'judged solved' if solved else 'not solved'} in imagination"
        index.append({"file": name, "section": "imagined", "caption": caption})
    return index
