"""A whole experiment as one value. Recipes make it, the command line changes its leaves, the run's folder keeps it."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from wmpo.envs.disrupt import Disruption, Push
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.recorded import RecordedConfig
from wmpo.envs.robosuite import RobosuiteConfig
from wmpo.execution.backend import ExecutionConfig
from wmpo.policy.openvla_oft import OpenVLAOFTConfig
from wmpo.policy.small import SmallPolicyConfig
from wmpo.policy.small_flow import SmallFlowPolicyConfig
from wmpo.policy.smolvla import SmolVLAConfig
from wmpo.reward.small import SmallRewardConfig
from wmpo.reward.videomae import VideoMAERewardConfig
from wmpo.reward.vlm_judge import VLMJudgeConfig
from wmpo.train.distill import DistillConfig
from wmpo.train.dpo import DPOConfig
from wmpo.train.fit import FitConfig
from wmpo.train.reward import RewardTraining
from wmpo.train.sft import CloneConfig, RFTConfig, SFTConfig
from wmpo.train.tokenizer import TokenizerTraining
from wmpo.train.wmpo import ImproveConfig
from wmpo.train.world_model import WorldModelTraining
from wmpo.world_model.opensora import OpenSoraWorldModelConfig
from wmpo.world_model.small import SmallWorldModelConfig
from wmpo.world_model.tokenizer import TokenizerConfig

PolicyConfig = SmallPolicyConfig | SmallFlowPolicyConfig | OpenVLAOFTConfig | SmolVLAConfig
WorldModelConfig = SmallWorldModelConfig | OpenSoraWorldModelConfig
RewardConfig = SmallRewardConfig | VideoMAERewardConfig | VLMJudgeConfig
"""The kinds of networks. A recipe chooses; saved settings are told apart by their names."""


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """Demonstrations of the scripted expert."""

    num_episodes: int = 3
    "Successful episodes to record, of each task; of recorded ones how many are taken in all."
    noise: float = 0.3
    "Standard deviation of the noise on the expert's actions."
    recorded: str = ""
    "A dataset of solved episodes to take instead: the first ones of it, and no expert plays."
    base_at_most: float = 1.0
    """While the base policy clearly solves more of the validation starts than this share, it is cloned again from as
    many demonstrations with a quarter more noise, up to three times: the paper's base policies solve 20 to 50 %, which
    leaves something to learn. (One of fewer demonstrations is weak too, but always does the same.) 1: never, as for
    recorded demonstrations."""

    def noise_of(self, attempt: int) -> float:
        """Standard deviation of the noise in attempt 0, 1, ... at a base policy."""
        return self.noise * 1.25**attempt

    @property
    def num_attempts(self) -> int:
        """How often a base policy is cloned at most."""
        return 1 if self.recorded or self.base_at_most == 1 else 4


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """The real episodes that world model and reward model learn from."""

    num_episodes: int = 128
    "The rollout budget P, over all rounds."
    temperature: float = 0.25
    "Sampling temperature of the policy. At 1 a clone of noisy demonstrations adds their noise to its own."
    num_held_out: int = 32
    "Of these, the episodes that only measure: fidelity of the world model, threshold of the reward model."
    shard: int = 32
    "Episodes that are written at once; an interruption loses at most these."
    every_round: bool = False
    "Lifelong: num_episodes and num_held_out are those of each round, not of all together."
    recorded: str = ""
    "A dataset from ``wmpo robot collect``: episodes are taken from it in their order, and no simulator plays."

    def shares(self, num_rounds: int) -> list[tuple[int, int]]:
        """(episodes, of these held out) in each round: a double share first, then equal ones."""
        if self.every_round:
            return [(self.num_episodes, self.num_held_out)] * num_rounds
        rest = num_rounds - 1
        episodes, held_out = self.num_episodes // (num_rounds + 1), self.num_held_out // (num_rounds + 1)
        first = self.num_episodes - rest * episodes, self.num_held_out - rest * held_out
        return [first, *[(episodes, held_out)] * rest]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Success of base and improved policy in the real environment."""

    num_test: int = 128
    "Test starts, as many as in the paper; the same for both policies and for every run."
    num_validation: int = 64
    "Validation starts on which each policy's best decoding is chosen, and the policy to hand in."
    temperatures: tuple[float, ...] = (0.0, 0.25, 1.0)
    "Decodings to choose from; 0 is greedy. Some base policies are best at 1."
    num_throughput: int = 32
    "Episodes for the comparison of simulated with imagined speed."
    num_videos: int = 6
    "Test starts shown before and after."


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    """What ``wmpo fidelity`` measures."""

    num_starts: int = 64
    "Validation starts from which each policy plays, really and in the dream."
    temperatures: tuple[float, ...] = (0.0, 0.25, 1.0)
    "Decodings of each round's policy; each is a policy of its own strength."
    num_videos: int = 4
    "Worst replays that are shown."


@dataclass(frozen=True, kw_only=True)
class DisruptionsConfig:
    """What ``wmpo disruptions`` measures."""

    num_starts: int = 64
    "Validation starts from which both policies play, undisturbed and under each disruption."
    played: tuple[str, ...] = (
        "light:0.5", "light:1.5", "table:0.5", "object:0.5", "camera-turn:5", "camera-shift:3", "position:3",
    )  # fmt: skip
    "KIND:STRENGTH of each disruption; kinds, units and ranges: KINDS in envs/disrupt.py."
    push_centimetres: float = 5.0
    "How far the hand is displaced."
    push_chunk: int = 3
    "After how many chunks."
    num_videos: int = 4
    "Pushed starts of which both policies' videos are shown."

    def disruptions(self) -> list[Disruption]:
        """Each once and in order, without ``none``: undisturbed episodes are always played."""
        return [d for d in dict.fromkeys(map(Disruption.parse, self.played)) if d.kind != "none"]

    def push(self) -> Push:
        return Push(self.push_centimetres, self.push_chunk)

    def validate(self, max_chunks: int) -> None:
        """Raises ValueError, naming flag and value, for what cannot be played."""
        for flag, read in (("played", self.disruptions), ("push-centimetres", self.push)):
            try:
                read()
            except ValueError as error:
                raise ValueError(f"--disruptions.{flag}: {error}") from error
        if self.push_chunk >= max_chunks:
            raise ValueError(
                f"disruptions.push_chunk {self.push_chunk} must be below max_chunks {max_chunks}: a policy that is "
                "pushed needs time to recover"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretraining of tokenizer and world model over many tasks (``wmpo pretrain``)."""

    excluded: tuple[str, ...] = (
        "drawer-open-v3", "button-press-topdown-v3", "plate-slide-v3", "window-open-v3", "door-open-v3",
        "peg-insert-side-v3",
    )  # fmt: skip
    "Tasks that are never seen: those on which runs are judged."
    num_episodes: int = 96
    "Episodes of each task; the last one only measures."
    num_steps: int = 40
    "Actions in an episode."
    tokenizer: TokenizerTraining = field(
        default_factory=lambda: TokenizerTraining(fit=FitConfig(num_steps=1500, batch_size=32, learning_rate=3e-3))
    )
    "Training of the tokenizer."
    world_model: WorldModelTraining = field(
        default_factory=lambda: WorldModelTraining(
            fit=FitConfig(num_steps=12000, batch_size=16, learning_rate=1.5e-3, ema=0.998, checkpoint_seconds=120),
            pretrain_share=1.0, unroll_from=0.75, check_every=4000, patience=10,
        )
    )  # fmt: skip
    "Training of the video model."


@dataclass(frozen=True, kw_only=True)
class BaselinesConfig:
    """The methods that ``wmpo compare`` sets beside WMPO, at the same budget of real episodes."""

    dpo: DPOConfig = field(default_factory=DPOConfig)
    "Preferences among the base policy's episodes."
    rft: RFTConfig = field(default_factory=RFTConfig)
    "Filtered cloning."
    more_demos: SFTConfig = field(
        default_factory=lambda: SFTConfig(fit=FitConfig(num_steps=1500, batch_size=32, learning_rate=6e-4))
    )
    "Cloning of the expert's P more episodes; more steps than the base policy's, for there is more to learn."
    real_groups: int = 4
    "Groups of an iteration of GRPO in the real environment: fewer than imagined ones, for more updates at budget P."


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a run, except its seed."""

    env: MetaWorldConfig | RobosuiteConfig | RecordedConfig = field(default_factory=MetaWorldConfig)
    "The task; its recipe decides the simulator, or that there is none."
    max_chunks: int = 12
    "Time limit of an episode in chunks."
    num_workers: int = 0
    "Simulator processes of this machine; 0: one per core. Ray's are --execution.cluster.simulators."
    num_rounds: int = 2
    """Times that collect, world-model, reward, clone and improve follow each other; the budget P is divided among them.
    A third one takes half as long again and gained some points (dev/LOG.md)."""
    demos: DemosConfig = field(default_factory=DemosConfig)
    policy: PolicyConfig = field(default_factory=SmallPolicyConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenizer_training: TokenizerTraining = field(default_factory=TokenizerTraining)
    world_model: WorldModelConfig = field(default_factory=SmallWorldModelConfig)
    world_model_training: WorldModelTraining = field(default_factory=WorldModelTraining)
    distillation: DistillConfig = field(default_factory=DistillConfig)
    reward: RewardConfig = field(default_factory=SmallRewardConfig)
    reward_training: RewardTraining = field(default_factory=RewardTraining)
    clone: CloneConfig = field(default_factory=CloneConfig)
    improve: ImproveConfig = field(default_factory=ImproveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    disruptions: DisruptionsConfig = field(default_factory=DisruptionsConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def validate(self) -> None:
        """Raises ValueError, naming flag and value, for what cannot work together."""
        self.env.validate()
        self.policy.validate()
        self.world_model.validate(self.env.image_size)
        for name, value in flatten(to_json(self)).items():
            _check_number(name, value)
        if not isinstance(self.env, RecordedConfig):  # nothing is played, so nothing is disrupted
            self.disruptions.validate(self.max_chunks)
        self.execution.cluster.validate()
        self._check_chunks()
        self.distillation.validate()
        for training in (self.tokenizer_training, self.pretrain.tokenizer):
            training.validate()
        if self.distillation.enabled and isinstance(self.world_model, SmallWorldModelConfig):
            raise ValueError("distillation.enabled: the small world model takes one step already; leave it off")
        held, total = self.collect.num_held_out, self.collect.num_episodes
        if not 2 <= held < total:
            raise ValueError(f"collect.num_held_out {held} must be at least 2 and below collect.num_episodes {total}")
        for episodes, held_out in self.collect.shares(self.num_rounds):
            if not 1 <= held_out < episodes:
                raise ValueError(
                    f"a round would have {episodes} episodes and hold {held_out} of them out, but needs at least one "
                    "to learn from and one held out; raise collect.num_episodes or collect.num_held_out, or lower "
                    f"num_rounds {self.num_rounds}"
                )
        if isinstance(self.env, RecordedConfig) and not (self.demos.recorded and self.collect.recorded):
            raise ValueError(
                "nothing can be played without a simulator: name datasets with --demos.recorded and --collect.recorded"
            )
        audit = self.improve.audit
        if audit.max_audits and self.collect.recorded:
            raise ValueError(
                "audits are played in the simulator, but collect.recorded takes its episodes from a robot; switch "
                "audits off: --improve.audit.max-episodes 0"
            )
        if audit.max_audits and audit.num_episodes > held:
            raise ValueError(
                f"improve.audit.num_episodes {audit.num_episodes} must be at most collect.num_held_out {held}: audits "
                "begin where held-out episodes began"
            )
        playing, collecting = self.improve.temperature, self.collect.temperature
        if audit.max_audits and playing != collecting:
            raise ValueError(
                f"improve.temperature {playing} must be collect.temperature {collecting}: audits are compared "
                "with collected episodes (or switch them off: --improve.audit.max-episodes 0)"
            )
        tested, tasks = self.evaluate, len(self.env.tasks)
        for name, starts in (("num_test", tested.num_test), ("num_validation", tested.num_validation)):
            if starts < tasks:
                raise ValueError(f"evaluate.{name} {starts} is too few starts for {tasks} tasks in turn")
        if self.improve.groups.group_size < 2:
            raise ValueError(f"improve.groups.group_size {self.improve.groups.group_size}: siblings need at least 2")

    def _check_chunks(self) -> None:
        chunk, stride = self.policy.chunk_size, self.world_model.frame_stride
        if chunk % stride:
            raise ValueError(f"world_model.frame_stride {stride} must divide policy.chunk_size {chunk}")
        if not self.world_model.frame_actions and chunk == stride:
            raise ValueError(
                f"world_model.no-frame-actions asks for chunks of several frames, but policy.chunk_size {chunk} is one "
                f"frame; add --policy.chunk-size {2 * chunk} --max-chunks {max(1, self.max_chunks // 2)}"
            )
        every = self.improve.score_every
        if every < 1 or chunk // stride % every:
            raise ValueError(
                f"improve.score_every {every} must divide the {chunk // stride} imagined frames of a chunk"
            )


def _check_number(name: str, value: Any) -> None:
    """Ranges of settings, by the last part of their names."""
    last = name.rsplit(".", 1)[-1]
    least, most = _AT_LEAST.get(last, -math.inf), _AT_MOST.get(last, math.inf)
    if name.endswith("fit.micro_batch") or name == "improve.micro_batch":
        least = 0
    if isinstance(value, tuple) and not value and last not in _MAY_BE_EMPTY:
        raise ValueError(f"{name} must not be empty")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, not {number}")
        if isinstance(number, int | float) and number < least:
            raise ValueError(f"{name} must be at least {least:g}, not {number}")
        if isinstance(number, int | float) and number > most:
            raise ValueError(f"{name} must be at most {most:g}, not {number}")


_MAY_BE_EMPTY = ("more_cameras", "more_tasks")
"""Settings that are lists and need no entry."""
_AT_MOST: dict[str, float] = {
    "ema": 0.99999,
    "pretrain_share": 1,
    "unroll_from": 1,
    "refresh_share": 1,
    "dropout": 0.99,
    "max_fpr": 1,
    "trust": 1,
    "base_at_most": 1,
    "branch_share": 0.95,
}
_AT_LEAST: dict[str, float] = {
    "num_episodes": 1, "num_steps": 1, "batch_size": 2, "learning_rate": 1e-12, "max_chunks": 1, "chunk_size": 1,
    "frame_stride": 1, "num_context": 1, "euler_steps": 1, "num_iterations": 1, "early_iterations": 0,
    "num_groups": 1, "max_rounds": 1,
    "num_test": 2, "num_validation": 2, "num_starts": 2, "num_throughput": 1, "num_minibatches": 1, "num_epochs": 1,
    "micro_batch": 1, "every": 1, "check_every": 1, "window": 1, "num_bins": 2, "temperature": 0, "shard": 1,
    "num_replays": 1, "warmup_steps": 1, "num_rounds": 1, "refresh_share": 0.01, "max_fpr": 0,
    "trust": 0.01, "base_at_most": 0.01, "branch_share": 0, "branch_chunks": 1, "real_groups": 1, "beta": 1e-6,
    "imitation": 0, "num_workers": 0, "processes": 0, "shards": 0, "num_videos": 0, "temperatures": 0,
    "ema": 0, "channels": 4, "encoder_channels": 4, "latent_channels": 1, "dim": 4,
    "depth": 1, "num_heads": 1, "blocks": 1, "condition": 8, "pretrain_share": 0, "unroll_from": 0, "dropout": 0,
}  # fmt: skip


def to_json(config: Any) -> dict[str, Any]:
    """Nested settings. Where a field may hold several kinds of configuration, ``kind`` names the one that it holds."""
    hints, content = typing.get_type_hints(type(config)), dict[str, Any]()
    for own in dataclasses.fields(config):
        value = getattr(config, own.name)
        if dataclasses.is_dataclass(value):
            kind = {"kind": type(value).__name__} if isinstance(hints[own.name], types.UnionType) else {}
            value = kind | to_json(value)
        content[own.name] = value
    return content


def from_json(kind: Any, content: dict[str, Any]) -> Any:
    """The inverse of :func:`to_json`; of a union, the named kind or else the first that knows all names.

    Raises ValueError for names that this version does not know.
    """
    if isinstance(kind, types.UnionType):
        kinds = {each.__name__: each for each in typing.get_args(kind)}
        knowing = (each for each in kinds.values() if set(content) <= set(typing.get_type_hints(each)))
        name = content.get("kind") or next(knowing, next(iter(kinds.values()))).__name__
        if name not in kinds:
            raise ValueError(f"kind {name!r} is none of {', '.join(kinds)}")
        kind, content = kinds[name], {key: value for key, value in content.items() if key != "kind"}
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}")
    return kind(**{name: _convert(hints[name], value) for name, value in content.items()})


def _convert(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType) or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return from_json(hint, value)
    if typing.get_origin(hint) in (tuple, types.GenericAlias):
        return tuple(value)
    return value


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, as the command line spells them."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
