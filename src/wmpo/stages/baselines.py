"""Other ways to spend P real episodes: GRPO in the real environment, DPO, filtered cloning, more demonstrations.

Each leaves ``models/NAME`` in the run's folder. DPO and filtered cloning learn from P episodes of the base policy:
those of WMPO's first round, and as many more as its later rounds play with better policies. So that some pairs share
their start, these begin where the first ones began.

Like WMPO's own policy, each one is watched by a few more real episodes before it is handed in, and the base policy is
kept where it has clearly got worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes, num_episodes, read_episodes
from wmpo.data.splits import simulator_starts, start_seeds
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.audit import loss
from wmpo.evaluation.policy import play_starts
from wmpo.execution.local import LocalSampler
from wmpo.protocols import PolicyNet
from wmpo.report.run import StageLog
from wmpo.rl.grpo import GRPOLearner
from wmpo.stages import models
from wmpo.stages.job import Job, finish, require
from wmpo.stages.record import expert_episodes, play
from wmpo.train.dpo import prefer, rollouts_of
from wmpo.train.fit import fit
from wmpo.train.sft import SFTConfig, cloning
from wmpo.train.wmpo import affordable, improve

EXPERT_STARTS = 50_000
"""Of the run's demonstration starts, where those of more demonstrations begin: far behind the first ones."""


def grpo_real(job: Job) -> None:
    """The same GRPO with the simulator in place of the dream. Groups are taken as they come: to throw real episodes
    away would cost budget."""
    require(job, "grpo-real", "sft")
    log, experiment, budget = job.log("grpo-real"), job.experiment, job.experiment.collect.num_episodes
    config = experiment.improve
    groups = replace(config.groups, num_groups=experiment.baselines.real_groups, dynamic_sampling=False)
    purpose = Purpose("training", "grpo-real", config.temperature, job.seed)
    env = job.real_env(purpose, frame_stride=experiment.policy.chunk_size)
    policy = models.load_policy(job.root, "base")
    seeds = start_seeds("collection", job.seed, 0, budget)
    summary = improve(
        LocalSampler(env, policy),
        GRPOLearner(policy, config.grpo, temperature=config.temperature),
        simulator_starts(seeds, experiment.env.instructions),
        config,
        None,
        seed=job.seed,
        checkpoint=job.root.checkpoint("grpo-real"),
        log=log,
        schedule=affordable(budget, groups),
        kind="real",
    )
    spent = budget // groups.group_size * groups.group_size
    rest = f"; {budget - spent} are less than a group and stay unspent" if spent < budget else ""
    text = f"{summary['iteration']} iterations with {spent} of {budget} real episodes{rest}"
    _hand_in(job, log, policy, {"iterations": summary["iteration"], "episodes": spent}, text)


def more(job: Job) -> None:
    """Plays what the base policy's collected episodes lack to P, from the same starts under other noise."""
    require(job, "base-more", "collect")
    log, config, root = job.log("base-more"), job.experiment.collect, job.dataset("more")
    (first, _), *_ = config.shares(job.experiment.num_rounds)
    wanted, seeds = config.num_episodes - first, start_seeds("collection", job.seed, 0, first)
    policy = models.load_policy(job.root, "base")
    env = job.real_env(Purpose("more", "base", config.temperature, job.seed), frame_stride=1)
    while (have := num_episodes(root)) < wanted:
        rows = range(have, min(have + config.shard, wanted))
        starts, again = [seeds[i % first] for i in rows], [1 + i // first for i in rows]
        played = play(
            env, policy, starts, job, temperature=config.temperature, policy_name="base", again=again
        )  # fmt: skip
        append_episodes(root, played, fps=job.fps)
        log.progress(rows.stop, wanted, "episodes")
    finish(log, {"episodes": wanted}, f"{wanted} more episodes of the base policy")


def base_episodes(job: Job) -> list[Episode]:
    """P episodes of the base policy."""
    path = job.dataset("more")
    episodes = read_episodes(job.collected_in(1)) + (read_episodes(path) if path.exists() else [])
    assert len(episodes) == job.experiment.collect.num_episodes, len(episodes)
    return episodes


def dpo(job: Job) -> None:
    """Prefers successes over failures, with the base policy as reference."""
    require(job, "dpo", "sft", "collect", "base-more")
    log, temperature = job.log("dpo"), job.experiment.collect.temperature
    policy = models.load_policy(job.root, "base")
    rollouts = rollouts_of(base_episodes(job), policy, temperature=temperature)
    pairs = prefer(
        policy, rollouts, job.experiment.baselines.dpo,
        temperature=temperature, seed=job.seed, checkpoint=job.root.checkpoint("dpo"), log=log,
    )  # fmt: skip
    found = {"successes": len(pairs.success), "same_start": pairs.same_start}
    text = f"{found['successes']} successes with failures beside them, {found['same_start']} from their own start"
    _hand_in(job, log, policy, found, text)


def rft(job: Job) -> None:
    """Clones demonstrations and successes; later actions than the one that solved the task are left out."""
    require(job, "rft", "sft", "collect", "base-more")
    log, config = job.log("rft"), job.experiment.baselines.rft
    solved = [episode.until_solved() for episode in base_episodes(job) if episode.success]
    policy = models.load_policy(job.root, "base")
    if config.begin == "scratch":
        job.seed_torch(1)  # the weights that the base policy began with
        policy = job.experiment.policy.restore(policy.about())
    _clone(job, log, policy, [*job.demonstrations(), *solved], config.sft)
    _hand_in(job, log, policy, {"successes": len(solved)}, f"cloned {len(solved)} successes and the demonstrations")


def more_demos(job: Job) -> None:
    """P more attempts of the same expert, cloned from the beginning together with the demonstrations: what the same
    number of episodes is worth in an expert's time."""
    require(job, "more-demos", "demos")
    log, experiment, root = job.log("more-demos"), job.experiment, job.dataset("more-demonstrations")
    wanted, attempt = experiment.collect.num_episodes, (job.root.summary("sft") or {}).get("attempt", 0)
    env = job.real_env(Purpose("more-demonstrations", "expert"), frame_stride=1)
    while (have := num_episodes(root)) < wanted:
        count = min(experiment.collect.shard, wanted - have)
        seeds = start_seeds("demonstrations", job.seed, EXPERT_STARTS + have, count)
        played = expert_episodes(job, env, seeds, experiment.demos.noise_of(attempt))
        append_episodes(root, played, fps=job.fps)
        log.progress(have + count, wanted, "episodes")
    solved = [episode for episode in read_episodes(root) if episode.success]
    episodes = [*job.demonstrations(), *solved]
    actions = torch.from_numpy(np.concatenate([episode.actions for episode in episodes]))
    job.seed_torch(1)  # the weights that the base policy began with
    policy = experiment.policy.fit(actions, experiment.env.image_size, experiment.env.views)
    _clone(job, log, policy, episodes, experiment.baselines.more_demos)
    _hand_in(job, log, policy, {"successes": len(solved)}, f"cloned {len(solved)} of {wanted} more demonstrations")


def _clone(job: Job, log: StageLog, policy: PolicyNet, episodes: list[Episode], config: SFTConfig) -> None:
    training = cloning(policy, episodes, config, seed=job.seed)
    fit(training, config.fit, checkpoint=job.root.checkpoint(log.stage), log=log)


def base_audit(job: Job) -> None:
    """The base policy's outcomes with which those of other policies are compared."""
    require(job, "base-audit", "sft")
    log = job.log("base-audit")
    solved = _audit(job, models.load_policy(job.root, "base"), "base")
    finish(log, {"solved": solved}, f"solves {sum(solved)} of {len(solved)} starts" if solved else "audits are off")


def _audit(job: Job, policy: PolicyNet, name: str) -> list[bool]:
    """Real outcomes from validation starts behind those on which decodings are chosen; none if audits are off, or if
    there are too few for a policy and the base policy beside it."""
    config, temperature = job.experiment.improve.audit, job.experiment.improve.temperature
    if config.max_audits < 2:
        return []
    seeds = start_seeds("validation", job.seed, job.experiment.evaluate.num_validation, config.num_episodes)
    purpose = Purpose("audit", name, temperature, job.seed)
    env = job.real_env(purpose, frame_stride=job.experiment.policy.chunk_size)
    starts = simulator_starts(seeds, job.experiment.env.instructions)
    return play_starts(env, policy, starts, temperature, seed=job.seed).success.tolist()


def _hand_in(job: Job, log: StageLog, policy: PolicyNet, summary: Mapping[str, object], text: str) -> None:
    """Saves the policy under its method's name, or the base policy if this one lost more starts than chance explains
    (one standard error, as WMPO's audits have it)."""
    require(job, log.stage, "base-audit")
    before = (job.root.summary("base-audit") or {})["solved"]
    after = _audit(job, policy, log.stage)
    kept = "base" if loss(before, after) > 1 else log.stage
    if kept == "base":
        policy = models.load_policy(job.root, "base")
    models.save_policy(job.root, log.stage, policy, job.experiment.env.instructions)
    seen = f"; audit {sum(before)} -> {sum(after)} of {len(after)}" if after else ""
    worse = ": the base policy is kept" if kept == "base" else ""
    finish(log, {**summary, "kept": kept, "audit": after}, f"{text}{seen}{worse}")
