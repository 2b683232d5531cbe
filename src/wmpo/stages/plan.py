"""What a run will take, before anyone pays for it: operations, hours, and memory of each GPU, stage by stage.

Counted from the recipe's settings and its networks (:mod:`wmpo.stages.footprint`), not measured: every imagined episode
lasts to its time limit and dynamic sampling finds its groups at once, so that "at most" is its cap. Checks on held-out
episodes, replays, calibration, audits, evaluation and the simulator are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wmpo.config import Experiment
from wmpo.division import cut
from wmpo.policy.openvla_oft import OpenVLAOFTConfig
from wmpo.report.run import RunFolder
from wmpo.stages.footprint import (
    DreamFootprint,
    Footprint,
    dream_footprint,
    policy_footprint,
    reward_footprint,
    tokenizer_footprint,
)
from wmpo.stages.job import Job
from wmpo.train.fit import FitConfig
from wmpo.world_model.small import SmallWorldModelConfig


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run would be given."""

    gpus: int = 1
    "GPUs, all alike."
    gpus_per_machine: int = 8
    "Of these in one machine: the learner is divided over so many."
    tflops: float = 989.0
    "Peak of a GPU in 10^12 operations a second, in the precision that is used; the default is an H100's in bfloat16."
    utilisation: float = 0.3
    "Part of the peak that is reached; small networks reach far less."
    gpu_memory: float = 80.0
    "Memory of a GPU in GB (10^9 bytes)."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        if self.gpus < 1 or self.gpus_per_machine < 1:
            raise ValueError(f"--gpus {self.gpus} and --gpus-per-machine {self.gpus_per_machine} must be at least 1")
        if self.tflops <= 0 or self.gpu_memory <= 0 or not 0 < self.utilisation <= 1:
            raise ValueError(
                f"--tflops {self.tflops} and --gpu-memory {self.gpu_memory} must be above 0, --utilisation "
                f"{self.utilisation} above 0 and at most 1"
            )

    def seconds(self, operations: float, gpus: int) -> float:
        return operations / (gpus * self.tflops * 1e12 * self.utilisation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    others: int = 0
    "Networks that are not trained, and averaged weights."

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.others


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Of a whole run: all rounds together."""

    name: str
    operations: float
    most: float
    "Operations when dynamic sampling needs all its rounds."
    gpus: int
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    networks: tuple[Footprint, ...]
    stages: tuple[Stage, ...]
    real_episodes: int
    real_steps: int


def plan(experiment: Experiment, hardware: Hardware) -> Plan:
    """Raises ValueError for settings that cannot be, or a missing extra that knows a network's shape."""
    experiment.validate()
    hardware.validate()
    action_dim = Job(RunFolder(Path()), experiment, 0).action_dim
    policy, reward = policy_footprint(experiment, action_dim), reward_footprint(experiment)
    dream, settled = dream_footprint(experiment, action_dim), policy
    if isinstance(experiment.policy, OpenVLAOFTConfig):
        settled = policy_footprint(replace(experiment, policy=experiment.policy.settled()), action_dim)
    rounds = experiment.num_rounds
    networks, stages = [policy, dream.net, reward], [_fit("sft", experiment, hardware, policy, experiment.sft.fit)]
    dreamer = experiment.world_model
    if isinstance(dreamer, SmallWorldModelConfig) and dreamer.pretrained == "none":
        networks.append(tokenizer_footprint(experiment))
        alone = replace(hardware, gpus=1)  # batch normalisation is not divided
        stages.append(_fit("tokenizer", experiment, alone, networks[-1], experiment.tokenizer_training.fit))
    stages += [
        _world_model(experiment, hardware, dream),
        _fit("reward", experiment, hardware, reward, experiment.reward_training.fit, rounds),
    ]
    if experiment.clone.enabled:
        stages.append(_fit("clone", experiment, hardware, settled, experiment.clone.sft.fit, rounds))
    stages.append(_improve(experiment, hardware, settled, dream, reward))
    episodes = _real_episodes(experiment)
    steps = episodes * experiment.max_chunks * experiment.policy.chunk_size
    return Plan(networks=tuple(networks), stages=tuple(stages), real_episodes=episodes, real_steps=steps)


def _real_episodes(experiment: Experiment) -> int:
    """Demonstrations, the budget P, audits, and both policies' validation and test."""
    trials = experiment.evaluate.num_test + experiment.evaluate.num_validation * len(experiment.evaluate.temperatures)
    audits = experiment.improve.audit.max_episodes
    demos = experiment.demos.num_episodes * (1 if experiment.demos.recorded else len(experiment.env.tasks))
    return demos + experiment.collect.num_episodes + audits + 2 * trials


def _fit(
    name: str, experiment: Experiment, hardware: Hardware, net: Footprint, config: FitConfig, times: int = 1
) -> Stage:
    done = float(times * config.num_steps * config.batch_size * net.training)
    memory = training_memory(net, config, hardware.gpus, _shards(experiment, hardware))
    return Stage(name=name, operations=done, most=done, gpus=hardware.gpus, memory=memory)


def _shards(experiment: Experiment, hardware: Hardware) -> int:
    """GPUs over which weights, gradients and optimiser are divided."""
    return min(experiment.execution.shards or hardware.gpus_per_machine, hardware.gpus)


def training_memory(net: Footprint, config: FitConfig, gpus: int = 1, shards: int = 1, beside: int = 0) -> Memory:
    """On the fullest of the GPUs, rank 0's, which holds the whole network beside its part."""
    ranks = (cut(config.batch_size, config.micro_batch, rank, gpus) for rank in range(gpus))
    rows = max(rows.stop - rows.start for parts in ranks for rows, _ in parts)
    averaged = 4 * net.trained // shards if config.ema else 0
    return _trained(net, gpus, shards, rows, beside + averaged + (net.weight_bytes if gpus > 1 else 0))


def _trained(net: Footprint, gpus: int, shards: int, rows: int, others: int) -> Memory:
    """16 bytes for each trained weight: itself, its gradient and AdamW's two moments, all float32. One process holds
    all weights once more in bfloat16, as it computes with them; ranks gather a block at a time, which is not counted.
    """
    return Memory(
        weights=net.full_bytes // shards,
        gradients=4 * net.trained // shards,
        optimizer=8 * net.trained // shards,
        activations=rows * net.saved_bytes,
        others=others + (2 * net.trained if gpus == 1 else 0),
    )


def _world_model(experiment: Experiment, hardware: Hardware, dream: DreamFootprint) -> Stage:
    """Steps of later rounds are fewer; contexts are imagined for half of ``max_unroll`` frames on average."""
    config = experiment.world_model_training
    later = config.refreshed()
    done = 0.0
    for each, times in ((config, 1), (later, experiment.num_rounds - 1)):
        unrolled = (1 - each.unroll_from) * each.max_unroll / 2 * dream.frame
        done += times * each.fit.num_steps * each.fit.batch_size * (dream.net.training + unrolled)
    shards = _shards(experiment, hardware)
    memory = training_memory(dream.net, config.fit, hardware.gpus, shards, dream.extra_bytes)
    return Stage(name="world-model", operations=done, most=done, gpus=hardware.gpus, memory=memory)


def _improve(
    experiment: Experiment, hardware: Hardware, policy: Footprint, dream: DreamFootprint, reward: Footprint
) -> Stage:
    """Every GPU imagines and learns: it holds its part of the learner, and all networks that imagination needs."""
    config, chunks = experiment.improve, experiment.max_chunks
    episodes = config.groups.num_groups * config.groups.group_size
    iterations = (experiment.num_rounds - 1) * config.early.num_iterations + config.num_iterations
    imagined = chunks * imagined_chunk(experiment, policy, dream, reward)
    learned = chunks * config.grpo.num_epochs * learned_decision(experiment, policy)
    caps = config.groups.max_rounds if config.groups.dynamic_sampling else 1
    shards = _shards(experiment, hardware)
    copies = policy.full_bytes  # what is published
    if hardware.gpus > 1:
        copies = 2 * policy.weight_bytes  # the same in the samplers' type and, beside a sharded learner, rank 0's own
    networks = copies + dream.net.weight_bytes + dream.extra_bytes + reward.weight_bytes
    minibatch = -(-episodes * chunks // (config.grpo.num_minibatches * hardware.gpus))
    memory = _trained(policy, hardware.gpus, shards, min(config.grpo.micro_batch, minibatch), networks)
    return Stage(
        name="improve",
        operations=float(iterations * episodes * (imagined + learned)),
        most=float(iterations * episodes * (caps * imagined + learned)),
        gpus=hardware.gpus,
        memory=memory,
    )


def imagined_chunk(experiment: Experiment, policy: Footprint, dream: DreamFootprint, reward: Footprint) -> int:
    """Operations of one chunk of one imagined episode: decide, imagine, judge every frame."""
    frames = experiment.policy.chunk_size // experiment.world_model.frame_stride
    return policy.forward + dream.imagine + frames * reward.forward


def learned_decision(experiment: Experiment, policy: Footprint) -> int:
    """Operations of one decision's gradient; recomputed activations cost another forward pass."""
    config = experiment.policy
    again = isinstance(config, OpenVLAOFTConfig) and config.gradient_checkpointing
    return policy.training + again * policy.forward


def describe(found: Plan, hardware: Hardware) -> str:
    """Tables for a terminal."""
    given = f"{hardware.gpus} x {hardware.gpu_memory:g} GB, {hardware.tflops:g} TFLOP/s"
    lines = [
        f"GPUs: {given} at {100 * hardware.utilisation:g} %; operations and activations of a network: of one sample",
        "",
        _row("network", "parameters", "trained", "weights", "forward", "backward", "activations"),
    ]
    for net in found.networks:
        operations = (f"{_short(each)}FLOP" for each in (net.forward, net.backward))
        sizes = _short(net.parameters), _short(net.trained), _size(net.weight_bytes)
        lines.append(_row(net.name, *sizes, *operations, _size(net.saved_bytes)))
    titles = ("FLOP", "GPUs", "weights", "gradients", "AdamW", "activations", "others", "a GPU", "time", "at most")
    lines += ["", _row("stage", *titles)]
    total = [0.0, 0.0]
    for stage in found.stages:
        seconds = [hardware.seconds(done, stage.gpus) for done in (stage.operations, stage.most)]
        total = [a + b for a, b in zip(total, seconds, strict=True)]
        memory = stage.memory
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.others, memory.total)
        cells = _short(stage.operations), str(stage.gpus), *map(_size, parts), *map(_duration, seconds)
        lines.append(_row(stage.name, *cells))
    lines.append(_row("together", *[""] * 8, *map(_duration, total)))
    longest = found.real_steps // max(found.real_episodes, 1)
    lines.append(f"and {found.real_episodes} real episodes of up to {longest} steps, whose time is not in these,")
    lines.append("nor that of checks on held-out episodes, of replays and of calibration")
    return "\n".join(lines + _warnings(found, hardware))


def _row(name: str, *cells: str) -> str:
    return f"{name:13}" + "".join(f"{cell:>12}" for cell in cells)


def _warnings(found: Plan, hardware: Hardware) -> list[str]:
    return [
        f"{stage.name} does not fit into {hardware.gpu_memory:g} GB; what helps: {remedy(stage.name)}"
        for stage in found.stages
        if stage.memory.total > hardware.gpu_memory * 1e9
    ]


def remedy(stage: str) -> str:
    """Flags that make a stage take less memory."""
    return _REMEDIES.get(stage, "its fit.micro-batch, or more GPUs")


_REMEDIES = {
    "tokenizer": "a smaller batch (--tokenizer-training.fit.batch-size)",
    "improve": "more GPUs with --execution.shards, --policy.improve-lora-rank, --improve.grpo.micro-batch or "
    "--policy.gradient-checkpointing",
}


def _short(number: float) -> str:
    units: tuple[tuple[float, str], ...] = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    scale, unit = next(((s, u) for s, u in units if number >= s), (1.0, ""))
    return f"{number / scale:.3g} {unit}".rstrip()


def _size(nbytes: float) -> str:
    return f"{_short(nbytes)}B"


def _duration(seconds: float) -> str:
    units = ((3600, "h"), (60, "min"), (1, "s"))
    number, unit = next((seconds / each, name) for each, name in units if seconds >= each or each == 1)
    return f"{number:.1f} {unit}"
