"""Records that cross package borders.

Dimension letters, used everywhere::

    B episodes (= P starts x G siblings)   T chunks in an episode     K actions in a chunk
    A action dimensions                    N = K * A action tokens    V bins of one token
    S denoising steps of a flow-matching policy: its tokens are paths of S + 1 numbers (:mod:`wmpo.denoising`)
    F frames imagined or rendered a chunk (K / frame_stride)          H context frames
    h, w height and width in pixels        M decisions in a minibatch

Frames are uint8 HWC outside the models. Actions are in the environment's units outside the models. Frame ``f`` of an
episode is the one reached after ``f`` actions; if frame ``f`` is the first solved one, actions ``0 .. f-1`` were
executed and none later counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Where episodes begin. A simulator needs only ``sim_seed``; an imagined environment needs ``frames``.

    ``episode_id`` keys every random draw of the row (see :mod:`wmpo.rng`), so it must be unique within a run;
    ``group`` marks GRPO siblings, which share a start.
    """

    instruction: tuple[str, ...]
    sim_seed: Int[Tensor, " B"]
    episode_id: Int[Tensor, " B"]
    group: Int[Tensor, " B"]
    frames: UInt8[Tensor, "B H h w 3"] | None = None
    begun: Int[Tensor, " B"] | None = None
    "Chunks of the time limit that are over already, for imagined episodes that begin in the middle; None: none."
    travelled: Float[Tensor, "B A"] | None = None
    "Sum of the actions that were executed before, in the same case."

    def __len__(self) -> int:
        return len(self.instruction)

    def rows(self, index: Int[Tensor, " R"]) -> Starts:
        """The chosen rows, in the given order."""
        return Starts(
            instruction=tuple(self.instruction[i] for i in index.tolist()),
            sim_seed=self.sim_seed[index],
            episode_id=self.episode_id[index],
            group=self.group[index],
            frames=None if self.frames is None else self.frames[index],
            begun=None if self.begun is None else self.begun[index],
            travelled=None if self.travelled is None else self.travelled[index],
        )

    def with_ids(self, episode_id: Int[Tensor, " B"], group: Int[Tensor, " B"]) -> Starts:
        return replace(self, episode_id=episode_id, group=group)

    def cycled(self, count: int) -> Starts:
        """``count`` rows: these over and over, each an episode of its own."""
        rows = torch.arange(count)
        return self.rows(rows % len(self)).with_ids(rows, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the policy sees: only what a pixel world model can imagine."""

    frame: UInt8[Tensor, "B h w 3"]
    instruction: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkStep:
    """The outcome of one action chunk. ``steps`` counts the executed actions of the chunk (0 for a frozen row).

    ``trusted`` is False where a guard doubts what was imagined; None: nothing is doubted.
    """

    frames: UInt8[Tensor, "B F h w 3"]
    terminated: Bool[Tensor, " B"]
    truncated: Bool[Tensor, " B"]
    steps: Int[Tensor, " B"]
    trusted: Bool[Tensor, " B"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """Played episodes, padded to T chunks. ``executed`` is the loss mask: tokens of actions that were really played.

    Only ``trusted`` episodes are learned from. ``video`` (on request) holds the start frame and then every
    frame the environment returned.
    """

    frame: UInt8[Tensor, "B T h w 3"]
    instruction: tuple[str, ...]
    tokens: Int[Tensor, "B T N"] | Float[Tensor, "B T N _"]
    logprob: Float[Tensor, "B T N"]
    executed: Bool[Tensor, "B T N"]
    success: Bool[Tensor, " B"]
    num_steps: Int[Tensor, " B"]
    sim_seed: Int[Tensor, " B"]
    group: Int[Tensor, " B"]
    episode_id: Int[Tensor, " B"]
    trusted: Bool[Tensor, " B"]
    video: UInt8[Tensor, "B L h w 3"] | None = None

    def __len__(self) -> int:
        return len(self.instruction)

    def rows(self, index: Int[Tensor, " R"]) -> Rollouts:
        """The chosen episodes, in the given order."""
        picked = {name: getattr(self, name)[index] for name in _ROLLOUT_TENSORS}
        video = None if self.video is None else self.video[index]
        return Rollouts(instruction=tuple(self.instruction[i] for i in index.tolist()), video=video, **picked)


_ROLLOUT_TENSORS = (
    "frame", "tokens", "logprob", "executed", "success", "num_steps", "sim_seed", "group", "episode_id", "trusted",
)  # fmt: skip


def concatenate(parts: list[Rollouts]) -> Rollouts:
    """Joins rollouts along the episodes, padding shorter ones: nothing executed, the video's last frame repeated."""
    if not parts:
        raise ValueError("no rollouts to concatenate")
    chunks = max(part.tokens.shape[1] for part in parts)
    joined = {}
    for name in _ROLLOUT_TENSORS:
        tensors = [getattr(part, name) for part in parts]
        joined[name] = torch.cat([_pad(t, chunks) if name in _PER_CHUNK else t for t in tensors])
    videos = [part.video for part in parts if part.video is not None]
    length = max((video.shape[1] for video in videos), default=0)
    frozen = [torch.cat([v, v[:, -1:].expand(-1, length - v.shape[1], -1, -1, -1)], dim=1) for v in videos]
    instruction = tuple(text for part in parts for text in part.instruction)
    video = torch.cat(frozen) if len(videos) == len(parts) else None
    return Rollouts(instruction=instruction, video=video, **joined)


_PER_CHUNK = ("frame", "tokens", "logprob", "executed")


def _pad(tensor: Tensor, chunks: int) -> Tensor:
    missing = chunks - tensor.shape[1]
    return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """Decisions for one optimiser step.

    ``num_episodes`` is the number of episodes of the *whole* minibatch over all workers and micro-batches, and
    ``weight`` is 1 / (executed tokens of the decision's episode): with them the loss is a plain sum, so 1 worker = n
    workers.
    """

    frame: UInt8[Tensor, "M h w 3"]
    instruction: tuple[str, ...]
    tokens: Int[Tensor, "M N"] | Float[Tensor, "M N _"]
    old_logprob: Float[Tensor, "M N"]
    mask: Bool[Tensor, "M N"]
    advantage: Float[Tensor, " M"]
    weight: Float[Tensor, " M"]
    num_episodes: int

    def __len__(self) -> int:
        return len(self.instruction)

    def rows(self, index: slice) -> Minibatch:
        """A micro-batch: the global divisor stays."""
        return Minibatch(
            frame=self.frame[index],
            instruction=self.instruction[index],
            tokens=self.tokens[index],
            old_logprob=self.old_logprob[index],
            mask=self.mask[index],
            advantage=self.advantage[index],
            weight=self.weight[index],
            num_episodes=self.num_episodes,
        )
