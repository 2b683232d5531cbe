"""What ties rounds together: which policy a round begins with, and what its episodes say about the dream before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from wmpo.data.episode import Episode
from wmpo.data.lerobot import num_episodes
from wmpo.envs.imagined import ImaginedEnv
from wmpo.evaluation.audit import fallen, judge, warning
from wmpo.evaluation.statistics import Rates
from wmpo.protocols import PolicyNet, RewardModel, WorldModel
from wmpo.report.run import RunFolder
from wmpo.stages import models
from wmpo.stages.job import Job


def policy_of(job: Job, number: int) -> PolicyNet:
    """The policy that plays in a round: the base policy in the first, later that of the round before."""
    return models.load_policy(*policy_place(job, number))


def policy_place(job: Job, number: int) -> tuple[RunFolder, str]:
    """Folder and name of that policy."""
    return (job.root, "base") if number == 1 else (job.folder_of(number - 1), "improved")


def begins_with(job: Job) -> int:
    """The round whose beginning policy the present one improves further: its own unless real success had fallen."""
    return int((job.folder.summary("collect") or {}).get("begins_with", job.round))


def last_round(job: Job) -> int:
    """The last round whose policy, world model and classifier are complete; 0 when there is none yet."""
    done = [n for n in range(1, job.experiment.num_rounds + 1) if job.folder_of(n).summary("improve") is not None]
    return max(done, default=0)


def handed_in(job: Job) -> tuple[RunFolder, str]:
    """Folder and name of the policy that ``evaluate`` handed in; before that, the one that the last complete round
    improved."""
    if (job.root.summary("evaluate") or {}).get("handed_in") == "base":
        return job.root, "base"
    return job.folder_of(last_round(job)), "improved"


def collected_datasets(job: Job) -> list[Path]:
    """The policies' real episodes, a dataset for each round that has begun."""
    roots = map(job.collected_in, range(1, job.experiment.num_rounds + 1))
    return [root for root in roots if num_episodes(root)]


def imagined_env(job: Job, number: int) -> ImaginedEnv:
    """The dream as a round has learned it."""
    folder = job.folder_of(number)
    return dream_of(job, number, models.load_world_model(folder), models.load_reward(folder))


def dream_of(job: Job, number: int, world_model: WorldModel, reward_model: RewardModel) -> ImaginedEnv:
    """A round's dream, of these parts."""
    return ImaginedEnv(
        world_model,
        reward_model,
        chunk_size=job.experiment.policy.chunk_size,
        max_chunks=job.experiment.max_chunks,
        seed=job.noise_seed_of(number),
        workspaces=job.workspaces,
        share_noise=job.experiment.improve.share_noise,
        score_every=job.experiment.improve.score_every,
    )


def look_back(job: Job, episodes: Sequence[Episode]) -> dict[str, Any]:
    """A later round's new episodes, which nothing has learned from yet, as an audit of the dream in which their policy
    was trained. Where that policy has clearly got worse, ``begins_with`` names the round whose policy goes on."""
    before, iteration = imagined_env(job, job.round - 1), (job.round - 1) * job.experiment.improve.early.num_iterations
    found = judge(
        job.executed(episodes), before.world_model, before.reward_model,
        chunk_size=before.chunk_size, seed=job.seed, iteration=iteration,
    )  # fmt: skip
    earlier = [_count(job, number) for number in range(1, job.round)]
    better = fallen(earlier, (sum(found.solved), found.n))
    if better is None:
        chosen, verdict = job.round, f"the policy of round {job.round - 1}: training goes on"
    else:
        solved, played = earlier[better]
        chosen = better + 1
        verdict = f"real success fell from {100 * solved / played:.0f} %: training goes on from the policy that had it"
    return {"audit": asdict(replace(found, verdict=verdict)), "begins_with": chosen}


def trains_who_collected(job: Job) -> bool:
    """Whether the policy that the round trains is the one that played all held-out episodes."""
    return job.round == 1 and not job.experiment.clone.enabled


def opening_audit(job: Job) -> dict[str, Any]:
    """What a round knows of the dream before it trains in it."""
    collected = job.folder.summary("collect") or {}
    if "audit" in collected:
        return collected["audit"]
    measured = (job.folder.summary("reward") or {})["imagined"]
    figures = {key: measured[key] for key in ("j", "j_interval", "n")}
    real, imagined = measured["positives"] / measured["n"], measured["called"]
    said = {"verdict": "the base policy", "warning": replay_warning(measured)}
    return {"iteration": 0, "real": real, "imagined": imagined, **figures, **said}


def replay_warning(measured: Mapping[str, Any]) -> str:
    """The warning that a classifier's figures on imagined replays call for, or nothing."""
    saved: dict[str, Any] = {field.name: measured[field.name] for field in fields(Rates)}
    saved |= {name: tuple(value) for name, value in saved.items() if isinstance(value, list)}  # JSON has no tuples
    return warning(Rates(**saved), measured["called"])


def _count(job: Job, number: int) -> tuple[int, int]:
    """Solved and played in a round's collection."""
    summary = job.folder_of(number).summary("collect") or {}
    return round(summary["success"] * summary["episodes"]), summary["episodes"]


def counted_on(job: Job, summary: dict[str, Any]) -> dict[str, Any]:
    """A round's summary of ``improve`` with iterations counted over the whole run and the round's opening audit, which
    is of the policy that played this round's episodes. A last round's own first audit would be the same only if that
    policy had played all held-out episodes."""
    each = job.experiment.improve.early.num_iterations
    done, again = (job.round - 1) * each, trains_who_collected(job)
    later = [a | {"iteration": done + a["iteration"]} for a in summary["audits"] if a["iteration"] > 0 or not again]
    kept = summary["kept_iteration"]
    counted = {
        "audits": [opening_audit(job), *later],
        "iteration": done + summary["iteration"],
        "kept_iteration": done + kept if kept else (begins_with(job) - 1) * each,
    }
    return {key: value for key, value in summary.items() if key != "kept"} | counted
