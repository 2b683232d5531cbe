"""Guards of ``improve``: the second dream, starts in the middle of episodes, and what the guards are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from wmpo.data.episode import Episode
from wmpo.envs.imagined import ImaginedEnv, Shadow
from wmpo.evaluation.world_model import replay
from wmpo.nn import picture_distance
from wmpo.reward.detector import score_video
from wmpo.rng import keyed
from wmpo.stages.job import Job
from wmpo.stages.rounds import imagined_env
from wmpo.types import Starts
from wmpo.world_model.small import SmallWorldModel


def guarded_env(job: Job, held_out: Sequence[Episode]) -> tuple[ImaginedEnv, dict[str, Any]]:
    """The present round's dream with the guards that are switched on, and their audit: what each of them would have
    dropped of held-out replays, whose outcomes are known, and how often it was right."""
    guards, dream = job.experiment.improve.guards, imagined_env(job, job.round)
    if not guards.needs_shadow:
        return dream, {}
    model = dream.world_model
    assert isinstance(model, SmallWorldModel)
    dream.shadow = Shadow(model.refined(), dream.reward_model, seed=dream.seed)
    both = [
        replay(world_model, held_out, dream.chunk_size, seed=seed)
        for world_model, seed in ((model, job.seed), (model.refined(), job.seed + 1))
    ]
    first, second = (np.array([_solved(dream, video) for video in videos]) for videos in both)
    doubt = np.array([float(picture_distance(a, b).max()) for a, b in zip(*both, strict=True)])
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


def _solved(dream: ImaginedEnv, video: torch.Tensor) -> bool:
    return bool((score_video(dream.reward_model, video) > dream.reward_model.threshold).any())


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
    guards, starts = job.experiment.improve.guards, imagined_starts(episodes)
    count = round(len(episodes) * guards.branch_share / (1 - guards.branch_share))
    if count == 0:
        return starts
    size, context = job.experiment.policy.chunk_size, job.experiment.world_model.num_context
    stride, limit = job.experiment.world_model.frame_stride, job.experiment.max_chunks
    places = [
        (i, chunk)
        for i, episode in enumerate(episodes)
        for chunk in range(1, min(limit, (episode.solved_at if episode.success else len(episode.actions)) // size))
    ]
    rng = keyed(job.noise_seed, "improve/branches")
    chosen = [places[k] for k in rng.choice(len(places), size=count, replace=count > len(places))]
    rows = torch.cat([torch.arange(len(episodes)), torch.tensor([i for i, _ in chosen])])
    chunks = torch.cat([torch.zeros(len(episodes), dtype=torch.long), torch.tensor([chunk for _, chunk in chosen])])
    frames = []
    for i, chunk in zip(rows.tolist(), chunks.tolist(), strict=True):
        past = [max(0, chunk * size - stride * k) for k in reversed(range(context))]
        frames.append(torch.from_numpy(episodes[i].frames[past]))
    begun = torch.where(chunks > 0, (limit - guards.branch_chunks) * torch.ones_like(chunks), 0)
    identity = torch.arange(len(rows))
    whole = starts.rows(rows).with_ids(identity, identity)
    sums = [
        torch.from_numpy(episodes[i].actions[: chunk * size]).sum(dim=0)
        for i, chunk in zip(rows.tolist(), chunks.tolist(), strict=True)
    ]
    return Starts(
        instruction=whole.instruction,
        sim_seed=whole.sim_seed,
        episode_id=whole.episode_id,
        group=whole.group,
        frames=torch.stack(frames),
        begun=torch.maximum(begun, chunks),
        travelled=torch.stack(sums),
    )
