"""The smallest real instances of every part, and fakes of one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wmpo.envs.clock import Clock
from wmpo.policy.codec import ActionCodec
from wmpo.policy.small import SmallPolicy, SmallPolicyConfig
from wmpo.reward.small import SmallReward, SmallRewardConfig
from wmpo.types import ChunkStep, Minibatch, Observation, Rollouts, Starts
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.tokenizer import TokenizerConfig

SIZE, CHUNK, ACTIONS, BINS = 16, 4, 2, 5


def small_policy(seed: int = 0, chunk_size: int = CHUNK, actions: int = ACTIONS) -> SmallPolicy:
    torch.manual_seed(seed)
    codec = ActionCodec((-1.0,) * actions, (1.0,) * actions, chunk_size, BINS)
    config = SmallPolicyConfig(dim=16, depth=1, num_heads=2, num_bins=BINS, chunk_size=chunk_size)
    return config.build(codec, SIZE).eval()


def small_world_model(seed: int = 0, **config: object) -> SmallWorldModel:
    """With random instead of zero output layers, so that something moves."""
    torch.manual_seed(seed)
    tokenizer = TokenizerConfig(channels=8, latent_channels=3).build().eval()
    config = {"frame_stride": 2, "robot": (16, 16, 8)} | config
    sizes = SmallWorldModelConfig(channels=(8, 8), blocks=1, condition=16, **config)  # type: ignore[arg-type]
    model = sizes.build(tokenizer, -torch.ones(ACTIONS), torch.ones(ACTIONS), SIZE // 4)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(model.robot.last.weight, std=0.02)  # drawn over all else, it would hide the rest
    return model.eval()


def small_reward(seed: int = 0, window: int = 2) -> SmallReward:
    torch.manual_seed(seed)
    return SmallRewardConfig(channels=4, window=window).build(SIZE).eval()


class Brightness(nn.Module):
    """A reward model whose logit is the brightness of the clip's last frame and, a little, of the ones before."""

    def __init__(self, window: int, threshold: float) -> None:
        super().__init__()
        self.window, self.threshold = window, threshold

    def forward(self, clips: UInt8[Tensor, "M W h w 3"], instructions: Sequence[str]) -> Float[Tensor, " M"]:
        weight = 0.5 ** torch.arange(self.window - 1, -1, -1).float()
        return clips.float().mean(dim=(2, 3, 4)) @ weight


class TablePolicy(nn.Module):
    """Logits that do not look at anything: the smallest trainable policy."""

    def __init__(self, codec: ActionCodec, logits: Tensor) -> None:
        super().__init__()
        self.codec, self.logits = codec, nn.Parameter(logits.clone())

    def prepare(self, observation: Observation) -> Mapping[str, Tensor]:
        return {"frame": observation.frame}

    def forward(self, frame: UInt8[Tensor, "B h w 3"]) -> Float[Tensor, "B N V"]:
        return self.logits.expand(len(frame), -1, -1)


class BanditEnv:
    """One chunk; solved iff the first number of the first action lies in [low, high)."""

    chunk_size, max_chunks = 2, 1

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def reset(self, starts: Starts) -> Observation:
        self.frame = torch.zeros(len(starts), SIZE, SIZE, 3, dtype=torch.uint8)
        self.clock = Clock(len(starts), self.chunk_size, self.max_chunks)
        return Observation(frame=self.frame, instruction=starts.instruction)

    def step(self, chunk: Float[Tensor, "B K A"]) -> ChunkStep:
        solved = (chunk[:, 0, 0] >= self.low) & (chunk[:, 0, 0] < self.high)
        frames = self.frame.unsqueeze(1).repeat(1, self.chunk_size, 1, 1, 1)
        return self.clock.tick(frames, torch.where(solved, self.chunk_size, 0))


def some_starts(count: int, *, frames: int | None = None, seed: int = 0) -> Starts:
    """``frames`` context frames of random pictures, or none."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, frames or 1, SIZE, SIZE, 3)
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Starts(
        instruction=("push the block",) * count,
        sim_seed=torch.arange(count),
        episode_id=torch.arange(count) + 100,
        group=torch.arange(count) // 2,
        frames=pictures if frames else None,
    )


def rollouts_of(
    success: list[bool], group: list[int], chunks: int = 2, num_tokens: int = 4, bins: int = BINS
) -> Rollouts:
    """Random tokens; the executed part of every episode has another length."""
    count, generator = len(success), torch.Generator().manual_seed(0)
    length = torch.arange(count) % (chunks * num_tokens) + 1
    executed = torch.arange(chunks * num_tokens) < length.unsqueeze(1)
    return Rollouts(
        frame=torch.randint(0, 256, (count, chunks, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator),
        instruction=tuple(f"episode {i}" for i in range(count)),
        tokens=torch.randint(0, bins, (count, chunks, num_tokens), generator=generator),
        logprob=-2 * torch.rand(count, chunks, num_tokens, generator=generator),
        executed=executed.unflatten(1, (chunks, num_tokens)),
        success=torch.tensor(success),
        num_steps=length,
        sim_seed=torch.arange(count),
        group=torch.tensor(group),
        episode_id=torch.arange(count),
        trusted=torch.ones(count, dtype=torch.bool),
    )


def decisions(count: int, policy: nn.Module, num_tokens: int = 4, seed: int = 0) -> Minibatch:
    """A minibatch with mixed masks and advantages, sampled a little off the policy."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    mask = torch.arange(num_tokens) < torch.randint(1, num_tokens + 1, (count, 1), generator=generator)
    return Minibatch(
        frame=frame,
        instruction=("push the block",) * count,
        tokens=torch.randint(0, BINS, (count, num_tokens), generator=generator),
        old_logprob=-1.6 + 0.2 * torch.randn(count, num_tokens, generator=generator),
        mask=mask,
        advantage=torch.randn(count, generator=generator),
        weight=1 / mask.sum(dim=1).float(),
        num_episodes=count,
    )
