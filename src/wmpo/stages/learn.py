"""Stages that train: the base policy, the world model, the success classifier, and the policy in imagination."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from wmpo.data.episode import Episode
from wmpo.data.lerobot import read_episodes
from wmpo.envs.imagined import ImaginedEnv
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.audit import Audit, judge
from wmpo.evaluation.world_model import replay, replay_distance
from wmpo.execution.backend import trainer, workers
from wmpo.execution.local import LocalSampler
from wmpo.policy.openvla_oft import OpenVLAOFT
from wmpo.policy.smolvla import SmolVLA
from wmpo.protocols import Policy, PolicyNet, RewardModel
from wmpo.report.run import StageLog
from wmpo.reward.small import SmallReward
from wmpo.reward.vlm_judge import VLMJudge, VLMJudgeConfig
from wmpo.rollout.run import run_in_parts
from wmpo.stages import models
from wmpo.stages.begin import (
    CloneSpec,
    DistillationSpec,
    ImproveSpec,
    RewardSpec,
    SFTSpec,
    WorldModelSpec,
    fields_of,
    first_policy,
    first_world_model,
    new_policy,
    new_reward,
    small_world_model,
    world_model_training,
)
from wmpo.stages.guards import guarded_env, imagined_starts, starts_to_improve
from wmpo.stages.job import Job, finish, require
from wmpo.stages.measure import best_decoding
from wmpo.stages.pretrained import pretrained_path
from wmpo.stages.record import demonstrate, play
from wmpo.stages.rounds import (
    begins_with,
    counted_on,
    dream_of,
    policy_of,
    replay_warning,
    trains_who_collected,
)
from wmpo.train.fit import fit
from wmpo.train.reward import RewardNet, RewardTraining, calibrate, peaks, real_videos, replayed_videos, threshold_of
from wmpo.train.tokenizer import train_tokenizer
from wmpo.train.wmpo import AuditPolicy
from wmpo.train.wmpo import improve as train_in_imagination
from wmpo.train.world_model import WorldModelNet, train_and_check
from wmpo.world_model.opensora import OpenSoraWorldModel, OpenSoraWorldModelConfig


def sft(job: Job) -> None:
    """Clones the demonstrations: the base policy. Noisier ones where it would leave too little to learn."""
    require(job, "sft", "demos")
    log, experiment = job.log("sft"), job.experiment
    config = experiment.demos
    attempts = 1 if experiment.collect.recorded else config.num_attempts  # a robot's come without a simulator
    for attempt in range(attempts):
        chosen = demonstrate(job, log, attempt)
        policy, found = _cloned(job, log, chosen), None
        if attempt + 1 == attempts:
            break
        env = job.real_env(Purpose("validation", "base"), frame_stride=experiment.policy.chunk_size)
        noise = f"noise {config.noise_of(attempt):.2f}"
        found = best_decoding(job, log, env, policy, f"base of {noise}", enough=config.base_at_most)
        if not found.clearly_above(config.base_at_most):
            break
        solved = f"{100 * found.success.mean():.0f} % of {len(found.success)} validation starts"
        log.note(f"demonstrations with {noise}: solves {solved}, cloned again from noisier ones")
    models.save_policy(job.root, "base", policy, experiment.env.instructions)
    size = sum(p.numel() for p in policy.parameters())
    of = f", of demonstrations with noise {config.noise_of(attempt):.2f}" if attempt else ""
    summary = {"parameters": size, "demonstrations": [chosen.start, chosen.stop], "attempt": attempt}
    finish(log, {**summary, "validated": found and found.kept()}, f"base policy of {size / 1e6:.1f} M parameters{of}")


def _cloned(job: Job, log: StageLog, chosen: range) -> PolicyNet:
    """A new policy, of these demonstrations."""
    spec = SFTSpec(*fields_of(job), chosen)
    episodes = spec.episodes(job)
    policy = new_policy(job, episodes)
    if not (isinstance(policy, OpenVLAOFT | SmolVLA) and policy.config.fine_tuned):
        checkpoint = job.root.checkpoint(f"sft-{chosen.start}-{chosen.stop}")
        own = partial(spec.begin, job, policy, episodes)
        with trainer(job.experiment.execution, spec, _module(policy), own) as training:
            fit(training, job.experiment.sft.fit, checkpoint=checkpoint, log=log)
    if isinstance(policy, OpenVLAOFT):
        policy.settle()
    return policy


def _module(policy: PolicyNet) -> nn.Module:
    assert isinstance(policy, nn.Module)
    return policy


def tokenizer(job: Job) -> None:
    """Trains the image tokenizer on the episodes that may be learned from; a pretrained world model brings its own."""
    require(job, "world-model", "demos", "collect")
    log, experiment = job.log("tokenizer"), job.experiment
    job.seed_torch(2)
    config = experiment.world_model
    if isinstance(config, OpenSoraWorldModelConfig):
        finish(log, {}, f"frames as latents of the autoencoder in {config.vae}")
        return
    net = experiment.tokenizer.build()
    pretrained = pretrained_path(config.pretrained)
    if pretrained is not None:
        net = small_world_model(job, config, net).tokenizer
    else:
        train_tokenizer(
            net,
            [*job.demonstrations(), *job.collected()[0]],
            experiment.tokenizer_training,
            seed=job.seed,
            checkpoint=job.root.checkpoint("tokenizer"),
            log=log,
        )
    models.save_tokenizer(job.root, net)
    grid, channels = experiment.env.image_size // 4, experiment.tokenizer.latent_channels
    wide = grid * len(experiment.env.views)
    origin = "" if pretrained is None else f", as pretrained in {pretrained.name}"
    finish(log, {}, f"frames as {grid}x{wide}x{channels} latents{origin}")


def world_model(job: Job) -> None:
    """Trains the video model on demonstrations, then on the policy's episodes too; stops by held-out replays. Later
    rounds go on from the last one's, and see their own episodes twice as often as older ones."""
    require(job, "world-model", "tokenizer", "collect")
    log, experiment, folder = job.log("world-model"), job.experiment, job.folder
    config, (learn, held_out) = world_model_training(job), map(job.executed, job.collected())
    net, spec = first_world_model(job), WorldModelSpec(*fields_of(job))
    with trainer(experiment.execution, spec, net, partial(spec.begin, job, net, learn)) as training:
        notes = train_and_check(
            training,
            net,
            held_out,
            config,
            chunk_size=experiment.policy.chunk_size,
            seed=job.noise_seed,
            checkpoint=folder.checkpoint("world-model"),
            log=log,
        )
    if isinstance(net, OpenSoraWorldModel) and experiment.distillation.enabled:
        finer = DistillationSpec(*fields_of(job))
        with trainer(experiment.execution, finer, net, partial(finer.begin, job, net, learn)) as training:
            fit(training, experiment.distillation.fit, checkpoint=folder.checkpoint("world-model-distill"), log=log)
        net.config = replace(net.config, shortcut_steps=experiment.distillation.shortcut_steps)
    net.eval()
    models.save_world_model(folder, net)
    distance, floor = replay_distance(net, held_out, experiment.policy.chunk_size, seed=job.seed)
    summary = {
        "distance": distance,
        "tokenizer_distance": floor,
        "ratio_last": distance[-1] / floor,
        "held_out": len(held_out),
        "stopped": notes["stopped"],
    }
    text = f"replays {distance[-1]:.4f} from reality after {len(distance)} chunks"
    ratio = f"{summary['ratio_last']:.2f}x the tokenizer's"
    finish(log, summary, f"{text}, {ratio}; {notes['stopped']}")


def reward(job: Job) -> None:
    """Trains the success classifier on real frames and imagined replays, calibrates it on held-out episodes."""
    require(job, "reward", "world-model")
    log, experiment, folder = job.log("reward"), job.experiment, job.folder
    dream = models.load_world_model(folder)
    stride, chunk_size = dream.frame_stride, experiment.policy.chunk_size
    learn, held_out = map(job.executed, job.collected())
    net = _success_classifier(job, dream, learn, log)
    real = peaks(net, real_videos(held_out, stride))  # before imagined logits are levelled, task by task
    on_policy = _on_policy(job, dream, net) if experiment.reward_training.on_policy else {}
    replays = replay(dream, held_out, chunk_size, seed=job.seed)
    imagined = peaks(net, replayed_videos(held_out, replays, stride))
    truth = np.array([episode.success for episode in held_out])
    measured = calibrate(net, real, imagined, truth, experiment.reward_training, matched=on_policy.get("threshold"))
    models.save_reward(folder, net)
    figures = "; ".join(
        f"{name}: TPR {m['tpr']:.2f} FPR {m['fpr']:.2f} J {m['j']:.2f} F1 {m['f1']:.2f} "
        f"(n = {m['n']}, {m['positives']} solved)"
        for name, m in (("real", measured["real"]), ("imagined", measured["imagined"]))
    )
    if on_policy and measured["threshold"] != on_policy["threshold"]:
        log.note("the policy succeeds less often in the dream than really; the threshold is that of replays")
        on_policy = {}
    if on_policy:
        if (target := experiment.reward_training.target) != RewardTraining.target:
            log.note(
                f"target {target} chooses for real videos only; for imagined ones too: --reward-training.no-on-policy"
            )
        figures += f"; threshold {measured['threshold']:.1f}: the policy solves as many in the dream as it really did"
    if said := replay_warning(measured["imagined"]):
        log.note(f"warning: {said}")
    finish(log, measured | {"on_policy": on_policy}, figures)


def _on_policy(job: Job, dream: WorldModelNet, net: RewardModel) -> dict[str, float]:
    """The threshold at which the policy that will be improved solves as many in the dream, three times from each of
    the same starts, as when its episodes were collected; {} if it solved all or none.

    Replays do not see this: a policy that looks at imagined frames goes on as if what they show were true, so the same
    policy succeeds more often there than its recorded actions do.
    """
    number = begins_with(job)  # a policy that was dropped lives on what only the dream shows
    episodes = read_episodes(job.collected_in(number))
    rate = float(np.mean([episode.success for episode in episodes]))
    if not 0 < rate < 1:
        return {}
    starts = imagined_starts(episodes)
    net.threshold = math.inf  # episodes are imagined to their end
    env = dream_of(job, job.round, dream, net)
    config = job.experiment.improve
    parts = run_in_parts(
        env, policy_of(job, number), starts.cycled(3 * len(starts)), config.micro_batch,
        temperature=config.temperature, seed=job.noise_seed,
    )  # fmt: skip
    peak = torch.cat([env.peak for _ in parts]).numpy()
    if isinstance(net, SmallReward) and len(net.instructions) > 1:
        peak = _level(net, peak, episodes)
    return {"threshold": threshold_of(peak, rate), "success": rate, "n": len(episodes)}


def _level(net: SmallReward, peak: np.ndarray, episodes: list[Episode]) -> np.ndarray:
    """Counts each task's logits from the one at which as many of its own episodes succeed in the dream as really did,
    so that no task is seen more rosily than another. Returns the highest logits so counted."""
    told, solved = np.array([e.instruction for e in episodes]), np.array([e.success for e in episodes])
    peak = peak.reshape(-1, len(episodes)).copy()
    for place, sentence in enumerate(net.instructions):
        own = told == sentence
        if own.any():  # none is solved above the highest of them, where none was really solved
            level = threshold_of(peak[:, own].ravel(), float(solved[own].mean()))
            net.levels[place] += level
            peak[:, own] -= level
    return peak.ravel()


def _success_classifier(job: Job, dream: WorldModelNet, learn: list[Episode], log: StageLog) -> RewardNet | VLMJudge:
    """Trained on real frames and imagined replays; a vision-language model judges as it is."""
    config, experiment = job.experiment.reward, job.experiment
    if isinstance(config, VLMJudgeConfig):
        told = experiment.env.instructions
        return config.build(told[0] if len(told) == 1 else "")
    net, spec = new_reward(job), RewardSpec(*fields_of(job))
    with trainer(experiment.execution, spec, net, partial(spec.begin, job, net, dream, learn)) as training:
        fit(training, experiment.reward_training.fit, checkpoint=job.folder.checkpoint("reward"), log=log)
    return net


def clone_successes(job: Job) -> None:
    """Filtered cloning of the real successes so far, held-out ones left aside, and of the demonstrations: the policy
    with which the round's imagination begins. Without it imagination moves a policy from some starts to others."""
    require(job, "clone", "collect")
    log, config, policy = job.log("clone"), job.experiment.clone, policy_of(job, begins_with(job))
    if not config.enabled:
        finish(log, {"successes": 0}, "switched off (--clone.enabled)")
        return
    spec = CloneSpec(*fields_of(job))
    solved = spec.solved(job)
    with trainer(job.experiment.execution, spec, _module(policy), partial(spec.begin, job, policy, solved)) as training:
        fit(training, config.sft.fit, checkpoint=job.folder.checkpoint("clone"), log=log)
    models.save_policy(job.folder, "cloned", policy, job.experiment.env.instructions)
    finish(log, {"successes": len(solved)}, f"cloned {len(solved)} real successes and the demonstrations")


def improve(job: Job) -> None:
    """GRPO on imagined episodes that begin where collected ones began. A policy that is handed in, that of the last
    round or of every one of a lifelong run, is audited with real episodes from held-out starts; else the next
    round's episodes are the audit."""
    require(job, "improve", "reward", "clone")
    log, experiment, folder = job.log("improve"), job.experiment, job.folder
    config, (learn, held_out) = experiment.improve, map(job.executed, job.collected())
    if job.round < experiment.num_rounds:
        config = config.early
        if not experiment.collect.every_round:
            config = replace(config, audit=replace(config.audit, max_episodes=0))
    (dream, guards), policy = guarded_env(job, held_out), first_policy(job)
    own = LocalSampler(dream, policy, config.micro_batch)  # it never plays while the learner is amid a step
    with workers(
        experiment.execution, ImproveSpec(*fields_of(job)), own, policy, config.grpo, temperature=config.temperature
    ) as (sampler, learner):  # fmt: skip
        summary = train_in_imagination(
            sampler,
            learner,
            starts_to_improve(job, learn),
            config,
            _auditor(job, dream, held_out[-config.audit.num_episodes :]),
            seed=job.noise_seed,
            checkpoint=folder.checkpoint("improve"),
            log=log,
            begun=job.round > 1,
        )
    models.save_policy(folder, "improved", policy, experiment.env.instructions)
    summary = counted_on(job, summary) | ({"guards": guards} if guards else {})
    for name, worth in guards.items():
        dropped = f"{worth['dropped']} of {worth['n']} held-out replays, {worth['rightly']} rightly"
        log.note(f"guard {name}: would have dropped {dropped}")
    finish(log, summary, f"kept the policy of iteration {summary['kept_iteration']}; {summary['stopped']}")


def _auditor(job: Job, dream: ImaginedEnv, held_out: list[Episode]) -> AuditPolicy:
    """Plays from where held-out episodes began. These are themselves the first audit where the policy to begin with is
    the one that played them."""
    temperature = job.experiment.improve.temperature

    def audit(policy: Policy, iteration: int) -> Audit:
        episodes = held_out
        if iteration > 0 or not trains_who_collected(job):
            purpose = Purpose("audit", f"round {job.round}, iteration {iteration}", temperature, job.seed)
            starts, name = [episode.start for episode in held_out], purpose.policy
            real = job.real_env(purpose, frame_stride=1)
            episodes = job.executed(play(real, policy, starts, job, temperature=temperature, policy_name=name))
        return judge(
            episodes, dream.world_model, dream.reward_model,
            chunk_size=dream.chunk_size, seed=job.seed, iteration=iteration,
        )  # fmt: skip

    return audit
