"""An action-conditioned video world model for two CPU cores.

A transformer over the latent cells of the F frames of one chunk, in the manner of the paper's STDiT (arXiv 2511.09515)
but small: every frame's *own* actions, with the flow time, shift and scale that frame's tokens in each block
(frame-level AdaLN); the context frames are concatenated to the channels rather than to the sequence, which keeps
sequences short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wmpo.nn import Attention, autocast, best_device, mlp
from wmpo.world_model import flow
from wmpo.world_model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SmallWorldModelConfig:
    """Sizes of the small world model and its flow."""

    dim: int = 256
    "Width of the transformer."
    depth: int = 6
    "Transformer blocks."
    num_heads: int = 4
    "Attention heads."
    frame_stride: int = 2
    "Actions between imagined frames."
    num_context: int = 2
    "Context frames (H), the newest last."
    euler_steps: int = 2
    "Sampling steps of a chunk."
    start_noise: float = 0.5
    "Noise on the last frame where the flow starts, in latent standard deviations."
    anchor: bool = True
    "Whether the episode's first frame is always part of the context."
    frame_actions: bool = True
    "Frame-level action control; off: the whole chunk's actions modulate every frame alike."

    def build(self, tokenizer: Tokenizer, action_low: Tensor, action_high: Tensor, grid: int) -> SmallWorldModel:
        return SmallWorldModel(self, tokenizer, action_low, action_high, grid).to(best_device())


@dataclass(frozen=True, slots=True)
class LatentContext:
    """The newest H latent frames and the first one of the episode."""

    recent: Float[Tensor, "B H C y x"]
    first: Float[Tensor, "B C y x"]


class AdaBlock(nn.Module):
    """Transformer block whose two branches are shifted, scaled and gated per frame (DiT, arXiv 2212.09748)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention, self.mlp = Attention(dim, num_heads), mlp(dim)
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # (B, F, S, D), (B, F, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(2).chunk(6, dim=-1)
        y = self.norm(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(y.flatten(1, 2)).view_as(y)
        y = self.norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.mlp(y)


class SmallWorldModel(nn.Module):
    """A :class:`wmpo.protocols.WorldModel`. The tokenizer belongs to it but is trained before and kept frozen."""

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self, config: SmallWorldModelConfig, tokenizer: Tokenizer, action_low: Tensor, action_high: Tensor, grid: int
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.grid = config, tokenizer.requires_grad_(False), grid
        self.frame_stride = config.frame_stride
        self.register_buffer("action_low", action_low.float())
        self.register_buffer("action_high", action_high.float())
        channels, action_dim = tokenizer.config.latent_channels, len(action_low)
        self.latent_shape = (channels, grid, grid)
        patch, dim = 4 * channels, config.dim  # 2x2 cells make a token
        self.patch_in = nn.Linear(patch * (1 + config.num_context + config.anchor), dim)
        self.position = nn.Parameter(0.02 * torch.randn((grid // 2) ** 2, dim))
        self.time = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.action = nn.Sequential(nn.Linear(config.frame_stride * action_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.frame_index = nn.Parameter(0.02 * torch.randn(16, dim))
        self.blocks = nn.ModuleList(AdaBlock(dim, config.num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.patch_out = nn.Linear(dim, patch)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def train(self, mode: bool = True) -> SmallWorldModel:
        super().train(mode)
        self.tokenizer.eval()  # its batch statistics are frozen
        return self

    def noise_shape(self, chunk_size: int) -> tuple[int, ...]:
        """Of the noise of one row in ``imagine``."""
        return (chunk_size // self.frame_stride, *self.latent_shape)

    def velocity(
        self,
        x: Float[Tensor, "B F C y x"],
        time: Float[Tensor, " B"],
        context: LatentContext,
        chunk: Float[Tensor, "B K A"],
    ) -> Float[Tensor, "B F C y x"]:
        """The flow's velocity for all frames of a chunk at once."""
        frames = x.shape[1]
        known = context.recent.flatten(1, 2)
        if self.config.anchor:
            known = torch.cat([known, context.first], dim=1)
        known = known.unsqueeze(1).expand(-1, frames, -1, -1, -1)
        tokens = self.patch_in(_patchify(torch.cat([x, known], dim=2)))  # (B, F, S, D)
        tokens = tokens + self.position
        condition = self._action_embedding(chunk, frames) + self.time(_sinusoid(time)).unsqueeze(1)
        condition = nn.functional.silu(condition + self.frame_index[:frames])
        for block in self.blocks:
            tokens = block(tokens, condition)
        return _unpatchify(self.patch_out(self.norm(tokens)), self.grid).float()

    def _action_embedding(self, chunk: Tensor, frames: int) -> Tensor:
        unit = 2 * (chunk.to(self.action_low) - self.action_low) / (self.action_high - self.action_low) - 1
        own = self.action(unit.reshape(len(chunk), frames, -1))  # (B, F, D)
        return own if self.config.frame_actions else own.mean(dim=1, keepdim=True).expand_as(own)

    def forward(
        self,
        context: LatentContext,
        chunk: Float[Tensor, "B K A"],
        target: Float[Tensor, "B F C y x"],
        noise: Float[Tensor, "B F C y x"],
        time: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Flow-matching loss; cells that move count more, since nearly all of a picture stands still."""
        last = context.recent[:, -1:].expand_as(target)
        x0 = flow.begin(last, noise, self.config.start_noise)
        predicted = self.velocity(flow.between(x0, target, time), time, context, chunk)
        motion = (target - last).abs().mean(dim=2, keepdim=True)
        weight = 1 + 4 * (motion / 0.5).clamp(max=1)
        error = (predicted - flow.velocity_target(x0, target)).square() * weight
        return error.flatten(1).mean(dim=1)

    @torch.no_grad()
    def begin(self, frames: UInt8[Tensor, "B H h w 3"]) -> LatentContext:
        """From recorded frames, the newest last; fewer than ``num_context`` are repeated at the front."""
        missing = self.config.num_context - frames.shape[1]
        if missing > 0:
            frames = torch.cat([frames[:, :1].expand(-1, missing, -1, -1, -1), frames], dim=1)
        latents = self.tokenizer.encode(frames)
        return LatentContext(latents[:, -self.config.num_context :], latents[:, 0])

    @torch.no_grad()
    def imagine_latents(
        self, context: LatentContext, chunk: Float[Tensor, "B K A"], noise: Float[Tensor, "B F C y x"]
    ) -> tuple[Float[Tensor, "B F C y x"], LatentContext]:
        device = context.recent.device
        chunk, noise = chunk.to(device), noise.to(device)
        x0 = flow.begin(context.recent[:, -1:].expand_as(noise), noise, self.config.start_noise)
        with autocast(device):
            latents = flow.euler(lambda x, t: self.velocity(x, t, context, chunk), x0, self.config.euler_steps)
        recent = torch.cat([context.recent, latents], dim=1)[:, -self.config.num_context :]
        return latents, replace(context, recent=recent)

    def imagine(
        self, context: LatentContext, chunk: Float[Tensor, "B K A"], noise: Float[Tensor, "B F C y x"]
    ) -> tuple[UInt8[Tensor, "B F h w 3"], LatentContext]:
        """The frames after each ``frame_stride`` actions. The predicted latents are the next context, undecoded."""
        latents, context = self.imagine_latents(context, chunk, noise)
        return self.tokenizer.decode(latents), context

    def reconstruct(self, frames: UInt8[Tensor, "M h w 3"]) -> UInt8[Tensor, "M h w 3"]:
        """Frames as imagination can show them at best."""
        return self.tokenizer.reconstruct(frames)

    def select(self, context: LatentContext, rows: Int[Tensor, " R"]) -> LatentContext:
        """The context of some rows."""
        rows = rows.to(context.recent.device)
        return LatentContext(context.recent[rows], context.first[rows])


def _patchify(x: Float[Tensor, "B F C y x"]) -> Float[Tensor, "B F S P"]:
    b, f, c, y, w = x.shape
    return x.view(b, f, c, y // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, f, y * w // 4, 4 * c)


def _unpatchify(tokens: Float[Tensor, "B F S P"], grid: int) -> Float[Tensor, "B F C y x"]:
    b, f, _, p = tokens.shape
    cells = tokens.view(b, f, grid // 2, grid // 2, p // 4, 2, 2)
    return cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, f, p // 4, grid, grid)


def _sinusoid(time: Float[Tensor, " B"], dim: int = 64) -> Float[Tensor, "B dim"]:
    frequency = torch.exp(torch.linspace(0, math.log(1000), dim // 2, device=time.device))
    angle = time.unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
