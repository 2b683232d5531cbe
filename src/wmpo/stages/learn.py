"""Stages that train: the base policy, the world model, the success classifier, and the policy in imagination."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from wmpo.config import Experiment
from wmpo.data.episode import Episode
from wmpo.data.lerobot import read_episodes
from wmpo.envs.imagined import ImaginedEnv
from wmpo.envs.recorded import RecordedConfig
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.audit import Audit, judge
from wmpo.evaluation.world_model import replay, replay_distance
from wmpo.execution.backend import workers
from wmpo.execution.local import LocalSampler
from wmpo.policy.openvla_oft import OpenVLAOFT
from wmpo.policy.smolvla import SmolVLA
from wmpo.protocols import Policy, PolicyNet, RewardModel
from wmpo.report.run import RunFolder, StageLog
from wmpo.reward.vlm_judge import VLMJudge, VLMJudgeConfig
from wmpo.rollout.run import run_episodes
from wmpo.stages import models
from wmpo.stages.guards import guarded_env, imagined_starts, starts_to_improve
from wmpo.stages.job import Job, finish, require
from wmpo.stages.measure import best_decoding
from wmpo.stages.pretrain import load_pretrained, pretrained_path
from wmpo.stages.record import play
from wmpo.stages.rounds import begins_with, counted_on, dream_of, policy_of
from wmpo.train.distill import distill_world_model
from wmpo.train.reward import RewardNet, calibrate, real_videos, replayed_videos, threshold_of, train_reward
from wmpo.train.sft import clone
from wmpo.train.tokenizer import train_tokenizer
from wmpo.train.video_clips import VideoClips
from wmpo.train.wmpo import AuditPolicy
from wmpo.train.wmpo import improve as train_in_imagination
from wmpo.train.world_model import WorldModelNet, train_world_model
from wmpo.world_model.opensora import OpenSoraWorldModel, OpenSoraWorldModelConfig
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.tokenizer import Tokenizer


def sft(job: Job) -> None:
    """Clones the demonstrations: the base policy. Fewer of them where it would leave too little to learn."""
    require(job, "sft", "demos")
    log, experiment, episodes = job.log("sft"), job.experiment, job.demonstrations()
    most, number = experiment.demos.base_at_most, len(episodes)
    policy = _cloned(job, log, episodes)
    while number > 1 and most < 1 and not experiment.collect.recorded:  # a robot's episodes come without a simulator
        env = job.real_env(Purpose("validation", "base"), frame_stride=experiment.policy.chunk_size)
        solved = best_decoding(job, log, env, policy, f"base of {number}").success
        rate, error = solved.mean(), solved.std() / len(solved) ** 0.5
        if rate - error <= most:
            break
        number -= 1
        log.note(f"solves {100 * rate:.0f} % of {len(solved)} validation starts: cloned again from {number}")
        policy = _cloned(job, log, episodes[:number])
    models.save_policy(job.root, "base", policy, experiment.env.instruction())
    size = sum(p.numel() for p in policy.parameters())
    of = "" if number == len(episodes) else f", of {number} of {len(episodes)} demonstrations"
    summary = {"parameters": size, "demonstrations": number}
    finish(log, summary, f"base policy of {size / 1e6:.1f} M parameters{of}")


def _cloned(job: Job, log: StageLog, episodes: list[Episode]) -> PolicyNet:
    """A new policy, of these demonstrations."""
    config = job.experiment.policy
    actions = torch.from_numpy(np.concatenate([episode.actions for episode in episodes]))
    job.seed_torch(1)
    policy = config.fit(actions, job.experiment.env.image_size, job.experiment.env.views)
    if not (isinstance(policy, OpenVLAOFT | SmolVLA) and policy.config.fine_tuned):
        checkpoint = job.root.checkpoint(f"sft-{len(episodes)}")
        clone(policy, episodes, job.experiment.sft, seed=job.seed, checkpoint=checkpoint, log=log)
    if isinstance(policy, OpenVLAOFT):
        policy.settle()
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
        net = _small_world_model(job, config, net).tokenizer
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


def _new_world_model(job: Job) -> WorldModelNet:
    """Before it has seen anything of the run."""
    config = job.experiment.world_model
    if isinstance(config, OpenSoraWorldModelConfig):
        codec = models.load_policy(job.root, "base").codec
        env = job.experiment.env
        return config.build(torch.tensor(codec.low), torch.tensor(codec.high), env.image_size, env.views)
    net = _small_world_model(job, config, job.experiment.tokenizer.build())
    net.tokenizer.load_state_dict(models.load_tokenizer(job.root).state_dict())
    return net


def _small_world_model(job: Job, config: SmallWorldModelConfig, tokenizer: Tokenizer) -> SmallWorldModel:
    """Actions are scaled by the simulator's bounds, so that a pretrained model fits every policy; without a simulator
    by what is usual in the demonstrations."""
    bounds, env = (-torch.ones(job.action_dim), torch.ones(job.action_dim)), job.experiment.env
    if isinstance(env, RecordedConfig):
        codec = models.load_policy(job.root, "base").codec
        bounds = torch.tensor(codec.low), torch.tensor(codec.high)
    net = config.build(tokenizer, *bounds, env.image_size // 4, env.views)
    if (path := pretrained_path(config.pretrained)) is not None:
        load_pretrained(path, net)
    return net


def world_model(job: Job) -> None:
    """Trains the video model on demonstrations, then on the policy's episodes too; stops by held-out replays. Later
    rounds go on from the last one's, and see their own episodes twice as often as older ones."""
    require(job, "world-model", "tokenizer", "collect")
    log, experiment, folder = job.log("world-model"), job.experiment, job.folder
    config, (learn, held_out) = experiment.world_model_training, map(job.executed, job.collected())
    job.seed_torch(3)
    if job.round == 1:
        net, seen = _new_world_model(job), learn
    else:
        net, config = models.load_world_model(job.folder_of(job.round - 1)), config.refreshed()
        if isinstance(net, OpenSoraWorldModel):
            net.config = replace(net.config, shortcut_steps=0)  # the flow is trained before it is distilled again
        played, held = job.shares()[-1]
        seen = [*learn, *learn[held - played :]]
    notes = train_world_model(
        net,
        job.executed(job.demonstrations()),
        seen,
        held_out,
        config,
        chunk_size=experiment.policy.chunk_size,
        seed=job.noise_seed,
        checkpoint=folder.checkpoint("world-model"),
        log=log,
    )
    if isinstance(net, OpenSoraWorldModel) and experiment.distillation.enabled:
        distill_world_model(
            net, VideoClips(net, [*job.executed(job.demonstrations()), *learn], experiment.policy.chunk_size),
            experiment.distillation, seed=job.noise_seed, checkpoint=folder.checkpoint("world-model-distill"), log=log,
        )  # fmt: skip
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
    net = _success_classifier(job, dream, [*job.executed(job.demonstrations()), *learn], log)
    real = real_videos(held_out, stride)
    imagined = replayed_videos(held_out, replay(dream, held_out, chunk_size, seed=job.seed), stride)
    on_policy = _on_policy(job, dream, net) if experiment.reward_training.on_policy else {}
    measured = calibrate(net, real, imagined, experiment.reward_training, matched=on_policy.get("threshold"))
    models.save_reward(folder, net)
    figures = "; ".join(
        f"{name}: TPR {m['tpr']:.2f} FPR {m['fpr']:.2f} J {m['j']:.2f} F1 {m['f1']:.2f} "
        f"(n = {m['n']}, {m['positives']} solved)"
        for name, m in (("real", measured["real"]), ("imagined", measured["imagined"]))
    )
    if on_policy:
        figures += f"; threshold {measured['threshold']:.1f}: the policy solves as many in the dream as it really did"
    finish(log, measured | {"on_policy": on_policy}, figures)


def _on_policy(job: Job, dream: WorldModelNet, net: RewardModel) -> dict[str, float]:
    """The threshold at which the policy that played the round's episodes solves as many in the dream, twice from each
    of the same starts, as it really did; {} if it solved all or none.

    Replays do not see this: a policy that looks at imagined frames goes on as if what they show were true, so the same
    policy succeeds more often there than its recorded actions do.
    """
    episodes = read_episodes(job.dataset("collected"))
    rate = float(np.mean([episode.success for episode in episodes]))
    if not 0 < rate < 1:
        return {}
    starts = imagined_starts(episodes)
    twice = torch.arange(2 * len(starts))
    net.threshold = math.inf  # episodes are imagined to their end
    env = dream_of(job, job.round, dream, net)
    temperature = job.experiment.improve.temperature
    run_episodes(
        env, policy_of(job, job.round), starts.rows(twice % len(starts)).with_ids(twice, twice),
        temperature=temperature, seed=job.noise_seed,
    )  # fmt: skip
    return {"threshold": threshold_of(env.peak.numpy(), rate), "success": rate, "n": len(episodes)}


def _success_classifier(job: Job, dream: WorldModelNet, learn: list[Episode], log: StageLog) -> RewardNet | VLMJudge:
    """Trained on real frames and imagined replays; a vision-language model judges as it is."""
    config, experiment = job.experiment.reward, job.experiment
    if isinstance(config, VLMJudgeConfig):
        return config.build(experiment.env.instruction())
    stride = dream.frame_stride
    clips = real_videos(learn, stride, dream)
    for phase in range(stride):
        clips += real_videos(learn, stride, phase=phase)
    for i in range(experiment.reward_training.num_replays):
        clips += replayed_videos(learn, replay(dream, learn, experiment.policy.chunk_size, seed=job.seed + i), stride)
    job.seed_torch(4)
    net = config.build(experiment.env.image_size, experiment.env.views)
    train_reward(
        net, clips, experiment.reward_training,
        seed=job.noise_seed, checkpoint=job.folder.checkpoint("reward"), log=log,
    )  # fmt: skip
    return net


def clone_successes(job: Job) -> None:
    """Filtered cloning of the real successes so far, held-out ones left aside, and of the demonstrations: the policy
    with which the round's imagination begins. Without it imagination moves a policy from some starts to others."""
    require(job, "clone", "collect")
    log, config, policy = job.log("clone"), job.experiment.clone, policy_of(job, begins_with(job))
    if not config.enabled:
        finish(log, {"successes": 0}, "switched off (--clone.enabled)")
        return
    solved = [episode.until_solved() for episode in job.collected()[0] if episode.success]
    clone(
        policy, [*job.demonstrations(), *solved], config.sft,
        seed=job.noise_seed, checkpoint=job.folder.checkpoint("clone"), log=log,
    )  # fmt: skip
    models.save_policy(job.folder, "cloned", policy, job.experiment.env.instruction())
    finish(log, {"successes": len(solved)}, f"cloned {len(solved)} real successes and the demonstrations")


def improve(job: Job) -> None:
    """GRPO on imagined episodes that begin where collected ones began; in the last round audits with real ones from
    held-out starts, before that the next round's episodes are the audit."""
    require(job, "improve", "reward", "clone")
    log, experiment, folder = job.log("improve"), job.experiment, job.folder
    config, (learn, held_out) = experiment.improve, map(job.executed, job.collected())
    if job.round < experiment.num_rounds:
        config = replace(config, audit=replace(config.audit, max_episodes=0))
    (dream, guards), policy = guarded_env(job, held_out), first_policy(job)
    own = LocalSampler(dream, policy)  # it never plays while the learner is amid a step
    spec = ImproveSpec(job.root.path.resolve(), experiment, job.seed, job.round)
    with workers(
        experiment.execution, spec, own, policy, config.grpo, temperature=config.temperature
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
    models.save_policy(folder, "improved", policy, experiment.env.instruction())
    summary = counted_on(job, summary) | ({"guards": guards} if guards else {})
    for name, worth in guards.items():
        dropped = f"{worth['dropped']} of {worth['n']} held-out replays, {worth['rightly']} rightly"
        log.note(f"guard {name}: would have dropped {dropped}")
    finish(log, summary, f"kept the policy of iteration {summary['kept_iteration']}; {summary['stopped']}")


@dataclass(frozen=True)
class ImproveSpec:
    """A :class:`wmpo.execution.local.WorkerSpec`: the run's folder, from which other processes build the round's dream
    and policy. All machines must see it under the same path."""

    path: Path
    experiment: Experiment
    seed: int
    round: int

    def _job(self) -> Job:
        job = Job(RunFolder(self.path), self.experiment, self.seed, quiet=True, round=self.round)
        if not job.root.model("base").exists():
            raise ValueError(f"{self.path} is not there on {platform.node()}; all machines must share this folder")
        return job

    def sampler(self) -> LocalSampler:
        job = self._job()
        guarded = self.experiment.improve.guards.needs_shadow
        dream, _ = guarded_env(job, job.executed(job.collected()[1]) if guarded else [])
        return LocalSampler(dream, first_policy(job))

    def policy(self) -> PolicyNet:
        return first_policy(self._job())


def first_policy(job: Job) -> PolicyNet:
    """The policy with which the round's imagination begins."""
    if job.experiment.clone.enabled:
        return models.load_policy(job.folder, "cloned")
    return policy_of(job, begins_with(job))


def _auditor(job: Job, dream: ImaginedEnv, held_out: list[Episode]) -> AuditPolicy:
    """A round begins with an audit of held-out episodes of the P; its policies play from the same starts."""
    temperature = job.experiment.improve.temperature

    def audit(policy: Policy, iteration: int) -> Audit:
        episodes = held_out
        if iteration > 0:
            purpose = Purpose("audit", f"round {job.round}, iteration {iteration}", temperature, job.seed)
            starts, name = [episode.start for episode in held_out], purpose.policy
            real = job.real_env(purpose, frame_stride=1)
            episodes = job.executed(play(real, policy, starts, job, temperature=temperature, policy_name=name))
        return judge(
            episodes, dream.world_model, dream.reward_model,
            chunk_size=dream.chunk_size, seed=job.seed, iteration=iteration,
        )  # fmt: skip

    return audit
