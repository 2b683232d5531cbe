"""Guards of ``improve``: the second dream, starts in the middle of episodes, and what the guards are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wmpo.data.episode import Episode
from wmpo.envs.imagined import ImaginedEnv, Shadow
from wmpo.evaluation.world_model import replay
from wmpo.nn import picture_distance
from wmpo.protocols import WorldModel
from wmpo.reward.detector import show_success
from wmpo.rng import keyed
from wmpo.stages.job import Job
from wmpo.stages.rounds import imagined_env
from wmpo.types import Starts


def guarded_env(job: Job, held_out: Sequence[Episode]) -> tuple[ImaginedEnv, dict[str, Any]]:
    """The present round's dream with the guards that are switched on, and their audit: what each of them would have
    dropped of held-out replays, whose outcomes are known, and how often it was right."""
    guards, dream = job.experiment.improve.guards, imagined_env(job, job.round)
    if not guards.needs_shadow:
        return dream, {}
    model = cast_shadow(dream)
    both = [
        replay(world_model, held_out, dream.chunk_size, seed=seed)
        for world_model, seed in ((model, job.seed), (model.refined(), job.seed + 1))
    ]
    told = [episode.instruction for episode in held_out]
    first, second = (show_success(dream.reward_model, videos, told) for videos in both)
    each = dream.chunk_size // model.frame_stride  # dreams are compared at the ends of chunks, as in ImaginedEnv
    doubt = np.array([float(picture_distance(a, b)[each::each].max()) for a, b in zip(*both, strict=True)])
    truth = np.array([episode.success for episode in held_out])
    audit: dict[str, Any] = {}
    if guards.verify:
        dream.verify, dropped = True, first & ~second
        audit["verify"] = _worth(dropped, dropped & ~truth, len(truth))
    if guards.trust < 1:
        dream.max_doubt = float(np.quantile(doubt, guards.trust))
        dropped = doubt > dream.max_doubt
        audit["trust"] = _worth(dropped, dropped & (first != truth), len(truth)) | {"max_doubt": dream.max_doubt}
    return dream, audit


def cast_shadow(dream: ImaginedEnv) -> WorldModel:
    """Lets the dream be imagined a second time, in finer steps; returns its world model."""
    model = dream.world_model
    dream.shadow = Shadow(model.refined(), dream.reward_model, seed=dream.seed)
    return model


def _worth(dropped: np.ndarray, rightly: np.ndarray, count: int) -> dict[str, Any]:
    return {"n": count, "dropped": int(dropped.sum()), "rightly": int(rightly.sum())}


def imagined_starts(episodes: Sequence[Episode]) -> Starts:
    """The first frames of real episodes."""
    ids = torch.tensor([episode.start for episode in episodes])
    return Starts(
        instruction=tuple(episode.instruction for episode in episodes),
        sim_seed=ids,
        episode_id=ids,
        group=torch.arange(len(ids)),
        frames=torch.stack([torch.from_numpy(episode.frames[:1]) for episode in episodes]),
    )


def starts_to_improve(job: Job, episodes: Sequence[Episode]) -> Starts:
    """The only real frames that GRPO sees: where episodes (as executed) began and, if asked for, chunk borders in the
    middle of them, from where an imagined episode is a few chunks long."""
    guards, limit = job.experiment.improve.guards, job.experiment.max_chunks
    size, stride = job.experiment.policy.chunk_size, job.experiment.world_model.frame_stride
    inside = [
        (i, chunk)
        for i, episode in enumerate(episodes)
        for chunk in range(1, min(limit, (episode.solved_at if episode.success else len(episode.actions)) // size))
    ]
    count = round(len(episodes) * guards.branch_share / (1 - guards.branch_share)) if inside else 0
    if count == 0:
        return imagined_starts(episodes)
    drawn = keyed(job.noise_seed, "improve/branches").choice(len(inside), size=count, replace=count > len(inside))
    places = [(i, 0) for i in range(len(episodes))] + [inside[k] for k in drawn]
    past = stride * np.arange(job.experiment.world_model.num_context)[::-1]
    frames = [episodes[i].frames[np.maximum(0, chunk * size - past)] for i, chunk in places]
    travelled = [episodes[i].actions[: chunk * size].sum(axis=0) for i, chunk in places]
    identity = torch.arange(len(places))
    return replace(
        imagined_starts([episodes[i] for i, _ in places]).with_ids(identity, identity),
        frames=torch.from_numpy(np.stack(frames)),
        begun=torch.tensor([max(chunk, limit - guards.branch_chunks) if chunk else 0 for _, chunk in places]),
        travelled=torch.from_numpy(np.stack(travelled)),
    )
