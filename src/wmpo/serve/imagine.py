"""What a run's dream shows when it is left alone: replays of real episodes, and groups of siblings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from wmpo.data.episode import Episode
from wmpo.evaluation.world_model import replay
from wmpo.nn import picture_distance
from wmpo.protocols import PolicyNet
from wmpo.reward.detector import first_above, score_video
from wmpo.rl.advantage import group_advantages
from wmpo.rollout.run import run_episodes
from wmpo.serve.film import Film, film
from wmpo.stages import models
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import Job
from wmpo.stages.rounds import imagined_env


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A real episode and its actions imagined. Frames count from the start frame, 0; they are ``frame_stride`` actions
    apart."""

    real: Film
    imagined: Film
    solved_frame: int
    "First frame at which the simulator calls the task solved; 0: never."
    called_real: int
    "The same by the classifier, on the real frames as the tokenizer shows them."
    called_imagined: int
    apart: list[float]
    "Mean difference of pixels in [-1, 1] between both at the end of each chunk."
    doubt: list[float]
    "The same between two dreams of these actions, one of them in finer steps and with other noise."


@dataclass(frozen=True, slots=True)
class Sibling:
    """One imagined episode of a group."""

    film: Film
    solved: bool
    steps: int
    advantage: float


@dataclass(frozen=True, slots=True)
class Group:
    """Siblings from one start. A group that all solve or none teaches nothing: its advantages are zero."""

    siblings: list[Sibling]


def replayed(job: Job, number: int, episode: Episode) -> Replayed:
    """One collected episode in the dream of a round."""
    folder, size, executed = job.folder_of(number), job.experiment.policy.chunk_size, job.executed([episode])
    model, judge = models.load_world_model(folder), models.load_reward(folder)
    video = replay(model, executed, size, seed=job.seed)[0]
    second = replay(model.refined(), executed, size, seed=job.seed + 1)[0]
    real = torch.from_numpy(episode.frames[:: model.frame_stride][: len(video)])
    ends = torch.arange(size // model.frame_stride, len(video), size // model.frame_stride)
    scores = [score_video(judge, shown, episode.instruction) for shown in (model.reconstruct(real), video)]
    called = [int(first_above(logits.unsqueeze(0), judge.threshold)) for logits in scores]
    return Replayed(
        real=film(real, scores[0].tolist()),
        imagined=film(video, scores[1].tolist()),
        solved_frame=math.ceil(episode.solved_at / model.frame_stride) if episode.success else 0,
        called_real=called[0],
        called_imagined=called[1],
        apart=picture_distance(real[ends], video[ends]).tolist(),
        doubt=picture_distance(second[ends], video[ends]).tolist(),
    )


def siblings(job: Job, number: int, episode: Episode, policy: PolicyNet, *, temperature: float, draw: int) -> Group:
    """A group as GRPO samples it, from the episode's first frame; ``draw`` keys its noise."""
    dream, size = imagined_env(job, number), job.experiment.improve.groups.group_size
    starts = imagined_starts([episode] * size)
    starts = starts.with_ids(draw * size + torch.arange(size), torch.full((size,), draw))
    played = run_episodes(dream, policy, starts, temperature=temperature, seed=job.seed, record_video=True)
    assert played.video is not None
    advantage = group_advantages(played.success.float(), played.group)
    shown = []
    for i, steps in enumerate(played.num_steps.tolist()):
        video = played.video[i, : 1 + math.ceil(steps / dream.world_model.frame_stride)]
        scores = score_video(dream.reward_model, video, episode.instruction).tolist()
        shown.append(Sibling(film(video, scores), bool(played.success[i]), steps, round(float(advantage[i]), 3)))
    return Group(shown)
