"""What a run will take, before anyone pays for it: operations, hours, and memory of each GPU, stage by stage.

Counted from the recipe's settings and its networks (:mod:`wmpo.stages.footprint`), not measured: every imagined episode
lasts to its time limit and dynamic sampling finds its groups at once, so that "at most" is its cap. Checks on held-out
episodes, replays, calibration, audits, evaluation and the simulator are not in it.

Training and imagination reach different parts of a GPU's peak. The defaults are those of one H200 of 989 TFLOP/s:
OpenVLA-7B reached 0.32 in cloning and 0.37 in GRPO (benchmarks/results/learner_full.json), STDiT3-XL/2 in 30 Euler
steps with all frames decoded 0.139 (benchmarks/results/imagination/full.json; 0.12 to 0.13 in fewer steps). Both were
measured before trained weights became float32 and the world model's attention left it; its training never was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wmpo.config import Experiment
from wmpo.division import cut
from wmpo.execution.backend import ExecutionConfig
from wmpo.policy.openvla_oft import OpenVLAOFTConfig
from wmpo.report.run import RunFolder
from wmpo.stages.footprint import (
    DreamFootprint,
    Footprint,
    dream_footprint,
    imagined_chunk,
    learned_decision,
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
    "Part of the peak that training reaches; small networks reach far less."
    imagination_utilisation: float | None = None
    "Part of the peak that imagination reaches; None: the measured 0.14, or --utilisation where that is less."
    gpu_memory: float = 80.0
    "Memory of a GPU in GB (10^9 bytes)."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        if self.gpus < 1 or self.gpus_per_machine < 1:
            raise ValueError(f"--gpus {self.gpus} and --gpus-per-machine {self.gpus_per_machine} must be at least 1")
        if self.tflops <= 0 or self.gpu_memory <= 0:
            raise ValueError(f"--tflops {self.tflops} and --gpu-memory {self.gpu_memory} must be above 0")
        if not (0 < self.utilisation <= 1 and 0 < self.imagining <= 1):
            raise ValueError(
                f"--utilisation {self.utilisation} and --imagination-utilisation {self.imagining} must be above 0 and "
                "at most 1"
            )

    @property
    def imagining(self) -> float:
        """Part of the peak that imagination reaches."""
        given = self.imagination_utilisation
        return min(IMAGINATION, self.utilisation) if given is None else given


IMAGINATION = 0.14
"""Part of the peak that the world model's sampler reached, see above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a backend makes of the GPUs."""

    learning: int = 1
    "GPUs that train."
    shards: int = 1
    "Of these, over which weights, gradients and optimiser are divided."
    imagining: float = 1.0
    "GPUs that imagine, each a whole share of the episodes."
    driver: bool = False
    "Ray's actors train, so the driver has networks of its own, maybe on the same GPU."
    beside: int = 0
    "Ray's samplers that may be on the learner's GPU."
    packed: int = 0
    "Ray's samplers that may be on another one."
    said: str = ""
    "In a line, with the flags."


def use_of(execution: ExecutionConfig, hardware: Hardware) -> Use:
    """``local`` uses one GPU; where several are given, the plan is that of a backend which uses them. Raises ValueError
    when the backend wants more than there are."""
    backend, gpus = execution.backend, hardware.gpus
    if backend == "ray":
        return _ray(execution, hardware)
    if backend == "local" and gpus == 1:
        return Use(said="local trains and imagines on one GPU")
    if backend == "processes":
        gpus = execution.processes or gpus
        if gpus > min(hardware.gpus, hardware.gpus_per_machine):
            raise ValueError(
                f"--execution.backend processes wants {gpus} GPUs of one machine, but --gpus is {hardware.gpus} and "
                f"--gpus-per-machine {hardware.gpus_per_machine}; several machines take --execution.backend torchrun"
            )
    said = f"{backend} trains and imagines on {gpus}"
    if backend == "local":
        fitting = "processes" if gpus <= hardware.gpus_per_machine else "torchrun"
        said = f"local would use one GPU; planned as with --execution.backend {fitting}, which uses {gpus}"
    shards = min(execution.shards or hardware.gpus_per_machine, gpus)
    return Use(learning=gpus, shards=shards, imagining=gpus, said=said)


def _ray(execution: ExecutionConfig, hardware: Hardware) -> Use:
    """Learners and samplers have GPUs of their own, or shares of one. Where samplers are given none, each GPU beside
    the learners' has one."""
    cluster, gpus, many = execution.cluster, hardware.gpus, execution.cluster.learners
    cluster.validate()
    samplers, each, learner = cluster.samplers, cluster.gpus_per_sampler, cluster.learner_gpus or 1.0
    if not each and gpus == many == 1:
        samplers, each, learner = 1, 0.5, 0.5
    elif not each:
        samplers, each, learner = max(gpus - many, 1), 1.0, 1.0
    packed = min(max(int(1 / each + 1e-9), 1), samplers)
    beside = min(int((1 - learner) / each + 1e-9), samplers)
    wanted = many + -(-(samplers - beside) // packed) * max(int(each), 1)
    if wanted > gpus:
        raise ValueError(
            f"{samplers} samplers with --execution.cluster.gpus-per-sampler {each:g} and {many} learners want {wanted} "
            f"GPUs, but --gpus is {gpus}; raise it, or lower --execution.cluster.samplers or learners"
        )
    flags = f"learners {many}", f"learner-gpus {learner:g}", f"samplers {samplers}", f"gpus-per-sampler {each:g}"
    said = " ".join(f"--execution.cluster.{flag}" for flag in flags)
    said = f"ray trains on {many} and imagines on {samplers / packed:g} ({said})"
    shards, imagining = min(execution.shards or hardware.gpus_per_machine, many), samplers / packed
    return Use(
        learning=many, shards=shards, imagining=imagining, driver=True, beside=beside, packed=packed, said=said
    )  # fmt: skip


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
    learned: float
    "Operations of training."
    imagined: float = 0.0
    "Operations without gradients: imagined chunks with decisions and verdicts, imagined contexts of training clips."
    most: float = 0.0
    "The same when dynamic sampling needs all its rounds."
    gpus: int
    "That train."
    imagining: float
    "GPUs that imagine."
    memory: Memory

    @property
    def operations(self) -> float:
        return self.learned + self.imagined

    def seconds(self, hardware: Hardware) -> tuple[float, float]:
        """Expected, and at most: one GPU's time to train and to imagine, one after the other."""
        learned = self.learned / (self.gpus * hardware.utilisation)
        each = (done / (self.imagining * hardware.imagining) for done in (self.imagined, self.most))
        expected, most = ((learned + imagined) / (hardware.tflops * 1e12) for imagined in each)
        return expected, most


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    networks: tuple[Footprint, ...]
    stages: tuple[Stage, ...]
    use: Use
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
    rounds, use = experiment.num_rounds, use_of(experiment.execution, hardware)
    cloned = learned_decision(experiment, policy)
    networks, stages = [policy, dream.net, reward], [_fit("sft", use, policy, experiment.sft.fit, cloned)]
    dreamer = experiment.world_model
    if isinstance(dreamer, SmallWorldModelConfig) and dreamer.pretrained == "none":
        networks.append(tokenizer_footprint(experiment))
        alone, fit = Use(), experiment.tokenizer_training.fit  # batch normalisation is not divided
        stages.append(_fit("tokenizer", alone, networks[-1], fit, networks[-1].training))
    stages += [
        _world_model(experiment, use, dream),
        _fit("reward", use, reward, experiment.reward_training.fit, rounds * reward.training),
    ]
    if experiment.clone.enabled:
        cloned = rounds * learned_decision(experiment, settled)
        stages.append(_fit("clone", use, settled, experiment.clone.sft.fit, cloned))
    stages.append(_improve(experiment, use, settled, dream, reward))
    episodes = _real_episodes(experiment)
    steps = episodes * experiment.max_chunks * experiment.policy.chunk_size
    return Plan(networks=tuple(networks), stages=tuple(stages), use=use, real_episodes=episodes, real_steps=steps)


def _real_episodes(experiment: Experiment) -> int:
    """Demonstrations, the budget P, audits, and both policies' validation and test."""
    trials = experiment.evaluate.num_test + experiment.evaluate.num_validation * len(experiment.evaluate.temperatures)
    audits = experiment.improve.audit.max_episodes
    demos = experiment.demos.num_episodes * (1 if experiment.demos.recorded else len(experiment.env.tasks))
    return demos + experiment.collect.num_episodes + audits + 2 * trials


def _fit(name: str, use: Use, net: Footprint, config: FitConfig, each: int) -> Stage:
    """``each``: operations of one sample, of all rounds."""
    done = float(config.num_steps * config.batch_size * each)
    memory = _fit_memory(use, net, config)
    return Stage(name=name, learned=done, gpus=use.learning, imagining=use.learning, memory=memory)


def _fit_memory(use: Use, net: Footprint, config: FitConfig, beside: int = 0) -> Memory:
    """``beside``: bytes of frozen networks, which go wherever ``net`` is. Of Ray's learners none holds the whole."""
    driver = (net.weight_bytes if use.learning == 1 else 0) + beside if use.driver else 0
    return training_memory(net, config, use.learning, use.shards, beside + driver)


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


def _world_model(experiment: Experiment, use: Use, dream: DreamFootprint) -> Stage:
    """Steps of later rounds are fewer; contexts are imagined for half of ``max_unroll`` frames on average."""
    config = experiment.world_model_training
    later = config.refreshed()
    learned, imagined = 0.0, 0.0
    for each, times in ((config, 1), (later, experiment.num_rounds - 1)):
        samples = times * each.fit.num_steps * each.fit.batch_size
        learned += samples * dream.net.training
        imagined += samples * (1 - each.unroll_from) * each.max_unroll / 2 * dream.frame
    memory = _fit_memory(use, dream.net, config.fit, dream.extra_bytes)
    return Stage(
        name="world-model",
        learned=learned,
        imagined=imagined,
        most=imagined,
        gpus=use.learning,
        imagining=use.learning,
        memory=memory,
    )


def _improve(experiment: Experiment, use: Use, policy: Footprint, dream: DreamFootprint, reward: Footprint) -> Stage:
    config, chunks = experiment.improve, experiment.max_chunks
    episodes = config.groups.num_groups * config.groups.group_size
    iterations = (experiment.num_rounds - 1) * config.early.num_iterations + config.num_iterations
    imagined = float(iterations * episodes * chunks * imagined_chunk(experiment, policy, dream, reward))
    learned = iterations * episodes * chunks * config.grpo.num_epochs * learned_decision(experiment, policy)
    caps = config.groups.max_rounds if config.groups.dynamic_sampling else 1
    minibatch = -(-episodes * chunks // (config.grpo.num_minibatches * use.learning))
    return Stage(
        name="improve",
        learned=float(learned),
        imagined=imagined,
        most=caps * imagined,
        gpus=use.learning,
        imagining=use.imagining,
        memory=_improve_memory(use, min(config.grpo.micro_batch, minibatch), policy, dream, reward),
    )


def _improve_memory(use: Use, rows: int, policy: Footprint, dream: DreamFootprint, reward: Footprint) -> Memory:
    """GPUs that imagine and learn hold their part of the learner and all networks that imagination needs. Under Ray
    these are the samplers', and the driver's, which may be on the learner's GPU or on a sampler's."""
    networks = dream.net.weight_bytes + dream.extra_bytes + reward.weight_bytes
    published = policy.full_bytes if use.learning == 1 else policy.weight_bytes  # of shards: in the samplers' type
    others = published + networks + (policy.weight_bytes if use.learning > 1 else 0)  # rank 0's own
    if use.driver:
        others = published + (1 + use.beside) * (policy.weight_bytes + networks)
    learner = _trained(policy, use.learning, use.shards, rows, others)
    sampler = Memory(others=(1 + use.packed) * (policy.weight_bytes + networks) if use.driver else 0)
    return max(learner, sampler, key=lambda memory: memory.total)


def describe(found: Plan, hardware: Hardware) -> str:
    """Tables for a terminal."""
    given = f"{hardware.gpus} x {hardware.gpu_memory:g} GB, {hardware.tflops:g} TFLOP/s"
    reached = f"{100 * hardware.utilisation:g} % in training, {100 * hardware.imagining:g} % in imagination"
    lines = [
        f"GPUs: {given}, {reached}",
        f"backend: {found.use.said}",
        "operations and activations of a network: of one sample",
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
        seconds = stage.seconds(hardware)
        total = [a + b for a, b in zip(total, seconds, strict=True)]
        memory = stage.memory
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.others, memory.total)
        gpus = f"{stage.gpus}" if stage.imagining == stage.gpus else f"{stage.gpus} + {stage.imagining:g}"
        cells = _short(stage.operations), gpus, *map(_size, parts), *map(_duration, seconds)
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
    return _REMEDIES.get(stage, "its fit.micro-batch, or more GPUs with --execution.backend torchrun or ray")


_REMEDIES = {
    "tokenizer": "a smaller batch (--tokenizer-training.fit.batch-size)",
    "improve": "more GPUs with --execution.shards of backend torchrun or --execution.cluster.learners of ray, "
    "--policy.improve-lora-rank, --improve.grpo.micro-batch or --policy.gradient-checkpointing",
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
