"""Stages that record real episodes: the expert's demonstrations, and the policy's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes, list_episodes, num_episodes, open_lerobot, read_episodes
from wmpo.data.source import Keys
from wmpo.data.splits import Split, simulator_starts, start_seeds
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.evaluation.audit import signed
from wmpo.protocols import Policy
from wmpo.report.run import RunFolder, StageLog
from wmpo.rng import alternating
from wmpo.rollout.run import run_episodes
from wmpo.stages.job import Job, finish, require
from wmpo.stages.rounds import look_back, policy_of, policy_place
from wmpo.types import Rollouts

REPETITION = 1_000_000_000
"""Between the identities of episodes from the same start; above every simulator seed."""


def demos(job: Job) -> None:
    """Records successful episodes of the scripted expert, with noise on its actions."""
    log, config, root = job.log("demos"), job.experiment.demos, job.dataset("demonstrations")
    if config.recorded and num_episodes(root) == 0:
        taken = taken_from(
            job, Path(config.recorded), 0, config.num_episodes, "record more of them", split="demonstrations"
        )
        if failed := [i for i, episode in enumerate(taken) if not episode.success]:
            raise ValueError(f"{config.recorded}: episodes {failed[:4]} are not solved, so they demonstrate nothing")
        append_episodes(root, [episode.until_solved() for episode in taken], fps=job.fps)
    demonstrate(job, log, 0)
    steps = [len(e.actions) for e in read_episodes(root)]
    mean = sum(steps) / len(steps)
    finish(log, {"episodes": len(steps), "mean_steps": mean}, f"{len(steps)} demonstrations, {mean:.0f} steps long")


def demonstrate(job: Job, log: StageLog, attempt: int) -> range:
    """Which episodes of the dataset are the demonstrations of this attempt at a base policy: all recorded ones, or the
    expert's. Those are played where they are missing: as many solved ones of each task as are wanted, with more noise
    on their actions than in the attempt before."""
    config, root = job.experiment.demos, job.dataset("demonstrations")
    if config.recorded:
        return range(num_episodes(root))
    tasks = job.experiment.env.tasks
    wanted = len(tasks) * config.num_episodes
    chosen = range(attempt * wanted, (attempt + 1) * wanted)
    kept = [listed.start for listed in list_episodes(root)[chosen.start :]]  # an interrupted stage goes on
    if len(kept) >= wanted:
        return chosen
    most = len(tasks) * (20 + 10 * config.num_episodes)
    (first,) = start_seeds("demonstrations", job.seed, attempt * most, 1)
    tried = kept[-1] - first + 1 if kept else 0
    short = {task: config.num_episodes - sum(alternating(start, tasks) == task for start in kept) for task in tasks}
    solved: list[Episode] = []
    env = job.real_env(Purpose("demonstrations", "expert"), frame_stride=1)
    while count := min(8, max(short.values())):
        if tried >= most:
            task = max(short, key=lambda task: short[task])
            raise ValueError(
                f"the expert of {task} solved {config.num_episodes - short[task]} of {tried // len(tasks)} episodes "
                f"within {job.experiment.max_chunks} chunks; raise --max-chunks or lower --demos.noise"
            )
        seeds = start_seeds("demonstrations", job.seed, attempt * most + tried, len(tasks) * count)
        needed = [seed for seed in seeds if short[alternating(seed, tasks)]]
        for episode in expert_episodes(job, env, needed, config.noise_of(attempt)):
            if episode.success and short[task := alternating(episode.start, tasks)]:
                solved.append(episode)
                short[task] -= 1
        tried += len(seeds)
        log.progress(wanted - sum(short.values()), wanted, "episodes")
        if len(solved) >= job.experiment.collect.shard:
            append_episodes(root, solved, fps=job.fps)
            solved = []
    if solved:
        append_episodes(root, solved, fps=job.fps)
    return chosen


def expert_episodes(job: Job, env: SimulatedEnv, seeds: list[int], noise: float) -> list[Episode]:
    """The scripted expert with noise on its actions, solved or not."""
    played, config = env.play_expert(seeds, noise=noise, frame_stride=1), job.experiment.env
    return [
        Episode(
            frames=frames, actions=actions, solved_at=solved_at, instruction=alternating(seed, config.instructions),
            start=seed, episode_id=seed, policy="expert", views=config.views,
        )
        for seed, (frames, actions, solved_at) in zip(seeds, played, strict=True)
    ]  # fmt: skip


def collect(job: Job) -> None:
    """Plays this round's share of the P episodes with the policy as it is, at sampling temperature: what everything
    later learns from. From the second round on they are also an audit of the last round's dream."""
    require(job, "collect", "sft")
    log, config, root = job.log("collect"), job.experiment.collect, job.dataset("collected")
    *before, (wanted, _) = job.shares()
    earlier = sum(episodes for episodes, _ in before)
    if config.recorded:
        file = RunFolder.model(*policy_place(job, job.round))
        more = f"record more: wmpo robot collect SETUP.py --policy {file} --to {config.recorded}"
        if num_episodes(root) == 0:
            append_episodes(root, taken_from(job, Path(config.recorded), earlier, wanted, more), fps=job.fps)
    else:
        policy = policy_of(job, job.round)
        env = job.real_env(Purpose("collection", job.policy_name, config.temperature, job.seed), frame_stride=1)
        while (have := num_episodes(root)) < wanted:
            count = min(config.shard, wanted - have)
            seeds = start_seeds("collection", job.seed, earlier + have, count)
            episodes = play(env, policy, seeds, job, temperature=config.temperature, policy_name=job.policy_name)
            append_episodes(root, episodes, fps=job.fps)
            log.progress(have + count, wanted, "episodes")
    played = read_episodes(root)
    success = [e.success for e in played]
    rate = sum(success) / len(success)
    summary: dict[str, Any] = {"episodes": len(success), "success": rate}
    text = f"{len(success)} episodes, {100 * rate:.0f} % solved"
    if job.round > 1:
        summary |= look_back(job, played)
        audit = summary["audit"]
        if audit["warning"]:
            log.note(f"warning: {audit['warning']}")
        text += f", {100 * audit['imagined']:.0f} % in the last dream (J {signed(audit['j'])}); {audit['verdict']}"
    elif rate in (0.0, 1.0):
        kind = "succeeded" if rate else "failed"
        raise ValueError(
            f"all {len(success)} collected episodes {kind}: neither reward nor policy can learn from that; make the "
            f"base policy {'weaker' if rate else 'stronger'} (--demos.num-episodes, --sft.fit.num-steps) in a new run "
            "(--name)"
        )
    finish(log, summary, text)


def taken_from(job: Job, source: Path, first: int, count: int, more: str, split: Split = "robot") -> list[Episode]:
    """Episodes ``first .. first + count - 1`` of a recorded dataset, each with a start of its own, named as those of
    ``split`` are.

    Raises ValueError when there are fewer, which says what to do (``more``), or when they are not as this run's.
    """
    have = num_episodes(source)
    if have < first + count:
        raise ValueError(
            f"{source} holds {have} episodes, but {first + count} are needed by now; {more} "
            f"--num-episodes {first + count}"
        )
    opened = open_lerobot(source, Keys())
    episodes = list(islice(opened.episodes, first, first + count))
    env, seen = job.experiment.env, episodes[0].views
    size, told = env.image_size, {episode.instruction for episode in episodes}
    if len(env.tasks) > 1 and (other := told - set(env.instructions)):
        raise ValueError(
            f"{source} has episodes of {other.pop()!r}, which is none of this run's tasks (--env.task, "
            f"--env.more-tasks): {', '.join(env.instructions)}"
        )
    if len(seen) != len(env.views) or (len(seen) > 1 and seen != env.views):
        raise ValueError(
            f"{source} has the cameras {', '.join(seen)} where this run has {', '.join(env.views)}; wmpo data import "
            "--camera chooses and orders them"
        )
    for wanted, found, fix in (
        (
            job.fps,
            opened.fps,
            "a run has one rate: of its simulator (see --env.*) or its demonstrations",
        ),
        (
            (size, size * len(env.views), 3),
            episodes[0].frames.shape[1:],
            "change --env.image-size, or wmpo data import --image-size",
        ),
        (
            job.action_dim,
            episodes[0].actions.shape[1],
            "begin with the recipe recorded, whose actions are those of its datasets",
        ),
    ):
        if found != wanted:
            raise ValueError(f"{source} has {found} where this run has {wanted}; {fix}")
    starts = start_seeds(split, job.seed, first, count)
    return [
        replace(episode, start=i, episode_id=i, views=env.views) for i, episode in zip(starts, episodes, strict=True)
    ]


def play(
    env: SimulatedEnv,
    policy: Policy,
    seeds: list[int],
    job: Job,
    *,
    temperature: float,
    policy_name: str,
    again: Sequence[int] = (),
) -> list[Episode]:
    """Real episodes as records. ``env`` must render every step.

    ``again`` says how often each start was played before by the same policy: the noise of its actions is another one.
    """
    starts = simulator_starts(seeds, job.experiment.env.instructions)
    if again:
        starts = starts.with_ids(starts.episode_id + REPETITION * torch.tensor(again), starts.group)
    rollouts = run_episodes(env, policy, starts, temperature=temperature, seed=job.seed, record_video=True)
    return episodes_of(rollouts, policy, policy_name, job.experiment.env.views)


def episodes_of(rollouts: Rollouts, policy: Policy, name: str, views: tuple[str, ...]) -> list[Episode]:
    """Cuts the padding off; the chunk in which the task was solved is kept to its end."""
    assert rollouts.video is not None
    episodes = []
    for i in range(len(rollouts)):
        chunks = int(rollouts.executed[i].any(dim=1).sum())
        actions: torch.Tensor = policy.codec.decode(rollouts.tokens[i, :chunks]).flatten(0, 1)
        episodes.append(
            Episode(
                frames=rollouts.video[i, : len(actions) + 1].numpy(),
                actions=actions.numpy(),
                solved_at=int(rollouts.num_steps[i]) if rollouts.success[i] else -1,
                instruction=rollouts.instruction[i],
                start=int(rollouts.sim_seed[i]),
                episode_id=int(rollouts.episode_id[i]),
                policy=name,
                views=views,
            )
        )
    return episodes
