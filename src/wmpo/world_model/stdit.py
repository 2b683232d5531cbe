"""The video transformer of OpenSora 1.2 (STDiT3) with the paper's frame-level action control (arXiv 2511.09515).

Blocks alternate between attention inside a frame and causal attention along time, so context frames never see new ones:
:meth:`STDiT.remember` computes their keys and values once, and every sampling step reuses them. Parameters have the
published names. The text cross-attention of the published weights (0.3e9 numbers) is not built: nothing is said here.

As in the released code, actions modulate the new frames' spatial blocks, and context frames are modulated by their
noise level alone; in the paper actions modulate temporal blocks too (``temporal_actions``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wmpo.hf import WeightFolder, compare

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values of the context frames, (B * S, heads, H, d), one pair for each temporal block."""
PATCH = 2
"""Latent cells along the side of a token."""
_UNUSED = re.compile(
    r"(spatial|temporal)_blocks\.\d+\.cross_attn\..*|y_embedder\..*|fps_embedder\..*|rope\.freqs"
    r"|action_embedder\.none_action\.weight"  # the released code adds it and then discards the sum
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the transformer; the defaults are those of STDiT3-XL/2."""

    width: int = 1152
    "Width of the tokens."
    depth: int = 28
    "Spatial blocks, and as many temporal ones."
    num_heads: int = 16
    "Attention heads."
    mlp_width: int = 4608
    "Hidden width of the blocks' perceptrons."
    channels: int = 4
    "Channels of the latents."
    temporal_actions: bool = False
    "Whether actions modulate temporal blocks too (paper), or spatial ones only (released code and weights)."


class HeadNorm(nn.RMSNorm):
    """In the precision of its input: with float32 weights bfloat16 queries would become float32, by the slow kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys; along time it is causal and rotary."""

    def __init__(self, sizes: Sizes, temporal: bool) -> None:
        super().__init__()
        if sizes.width % sizes.num_heads or sizes.width // sizes.num_heads % 2:
            raise ValueError(f"num_heads {sizes.num_heads} must divide the width {sizes.width} into even parts")
        self.num_heads, self.temporal, head = sizes.num_heads, temporal, sizes.width // sizes.num_heads
        self.qkv, self.proj = nn.Linear(sizes.width, 3 * sizes.width), nn.Linear(sizes.width, sizes.width)
        self.q_norm, self.k_norm = HeadNorm(head, eps=1e-6), HeadNorm(head, eps=1e-6)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(N, L, D) -> the same, and keys and values of all frames so far (N, heads, past + L, d)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, mask = self.q_norm(q), self.k_norm(k), None
        if self.temporal:
            before = 0 if past is None else past[0].shape[2]
            q, k = rotate(q, before), rotate(k, before)
            if past is not None:
                k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril(before)
        seen = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=mask)
        return self.proj(seen.transpose(1, 2).flatten(2)), (k, v)


def rotate(x: Float[Tensor, "N heads L d"], first: int) -> Float[Tensor, "N heads L d"]:
    """Rotary embedding of the positions ``first``, ``first + 1``, ...: neighbouring numbers form a pair."""
    frequency = 10000 ** (-torch.arange(0, x.shape[3], 2, device=x.device) / x.shape[3])
    angle = torch.arange(first, first + x.shape[2], device=x.device).unsqueeze(1) * frequency
    sin, cos = angle.sin(), angle.cos()
    even, odd = x[..., ::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention within frames or along time, then a perceptron, both scaled, shifted and gated frame by frame."""

    def __init__(self, sizes: Sizes, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.attn, self.mlp = Attention(sizes, temporal), Mlp(sizes.width, sizes.mlp_width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, sizes.width) / sizes.width**0.5)

    def forward(
        self, x: Tensor, condition: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, S, D) tokens, (B, T, 6, D) modulation -> tokens, and keys and values."""
        table = (self.scale_shift_table + condition).unsqueeze(3).unbind(2)  # six of (B, T, 1, D)
        h = modulate(x, *table[:2])
        if self.temporal:
            h, memory = self.attn(h.transpose(1, 2).flatten(0, 1), past)
            h = h.unflatten(0, (len(x), -1)).transpose(1, 2)
        else:
            h, memory = self.attn(h.flatten(0, 1), None)
            h = h.unflatten(0, x.shape[:2])
        x = x + table[2] * h
        return x + table[5] * self.mlp(modulate(x, *table[3:5])), memory


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class FinalLayer(nn.Module):
    """From tokens (B, T, S, D) and noise level (B, D) to the numbers of a token's cells."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, sizes.width) / sizes.width**0.5)
        # Published weights also predict a variance, the second half of the channels, that nobody uses.
        self.linear = nn.Linear(sizes.width, PATCH**2 * 2 * sizes.channels)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + level.unsqueeze(1))[:, None, :, None].unbind(2)
        return self.linear(modulate(x, shift, scale))


class STDiT(nn.Module):
    """Noisy latents of new frames, those of context frames, actions and noise level -> velocity of the new frames."""

    x_embedder: Any
    t_embedder: Any
    t_block: Any
    action_embedder: Any
    step_embedder: Any

    def __init__(self, sizes: Sizes, clues: int) -> None:
        """``clues``: numbers that say a frame's actions."""
        super().__init__()
        d, self.sizes, self.clues = sizes.width, sizes, clues
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv3d(sizes.channels, d, (1, PATCH, PATCH), (1, PATCH, PATCH))})
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))})
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        acts = nn.Sequential(nn.Linear(clues, 4 * d), nn.SiLU(), nn.Linear(4 * d, d))
        self.action_embedder = nn.ModuleDict({"fc": acts})
        self.step_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))})
        self.spatial_blocks = nn.ModuleList(Block(sizes, temporal=False) for _ in range(sizes.depth))
        self.temporal_blocks = nn.ModuleList(Block(sizes, temporal=True) for _ in range(sizes.depth))
        self.final_layer = FinalLayer(sizes)
        for block in self.temporal_blocks:  # a new model begins with frames that do not mix, as the published one did
            nn.init.zeros_(block.attn.proj.weight)  # type: ignore[union-attr,arg-type]
            nn.init.zeros_(block.mlp.fc2.weight)  # type: ignore[union-attr,arg-type]
        # Steps say nothing before distillation: published weights, which lack this, give their own velocity.
        nn.init.zeros_(self.step_embedder["mlp"][2].weight)
        nn.init.zeros_(self.step_embedder["mlp"][2].bias)

    def compile_blocks(self) -> None:
        """Blocks share their code, so they are compiled once for all; names of parameters stay."""
        for block in [*self.spatial_blocks, *self.temporal_blocks]:
            block.compile(dynamic=True)  # rows become fewer as episodes end

    def embed(self, latents: Float[Tensor, "B T C y x"], scale: float) -> Float[Tensor, "B T S D"]:
        """Tokens with their place in the picture; places are counted in 1/512ths of a picture of 512 px.
        ``scale``: pixels of the square with the picture's area, as in OpenSora."""
        conv = self.x_embedder["proj"]
        flat = F.conv2d(latents.flatten(0, 1), conv.weight.squeeze(2), conv.bias, stride=PATCH)
        height, width = flat.shape[-2:]
        base = round((height * width) ** 0.5)
        place = places(height, width, self.sizes.width, base, scale / 512, flat.device)
        return (flat.flatten(2).transpose(1, 2) + place.to(flat)).unflatten(0, latents.shape[:2])

    def level(self, time: Float[Tensor, " B"], step: Float[Tensor, " B"] | None = None) -> Float[Tensor, "B D"]:
        """Embedding of a noise level, 0 (clean) to 1000 (pure noise), and of the step that is taken from there."""
        step = torch.zeros_like(time) if step is None else step
        wave, size = (waves(number).to(self.t_block[1].weight.dtype) for number in (time, step))
        return self.t_embedder["mlp"](wave) + self.step_embedder["mlp"](size)

    def conditions(
        self, time: Tensor, actions: Tensor | None, frames: int, step: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Modulation (B, T, 6, D) of spatial and of temporal blocks."""
        base = self.level(time, step).unsqueeze(1).expand(-1, frames, -1)
        plain = self.t_block(base).unflatten(2, (6, -1))
        if actions is None:
            return plain, plain
        acting = self.t_block(base + self.action_embedder["fc"](actions.to(base.dtype))).unflatten(2, (6, -1))
        return acting, acting if self.sizes.temporal_actions else plain

    def remember(self, context: Float[Tensor, "B H C y x"], level: float, scale: float) -> Memory:
        """Keys and values of context frames at a noise level: all that new frames need of them, in every sampling step.
        Only temporal blocks have any: spatial attention stays inside a frame."""
        time = torch.full((len(context),), level, device=context.device)
        _, memory = self._run(self.embed(context, scale), *self.conditions(time, None, context.shape[1]), None)
        return memory

    def forward(
        self,
        x: Float[Tensor, "B F C y x"],
        time: Float[Tensor, " B"],
        actions: Float[Tensor, "B F n"],
        memory: Memory,
        scale: float,
        step: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B F C y x"]:
        """``time``: noise level, 1000 (pure noise) to 0. The velocity leads from noise to the frame; it is the mean one
        over the next ``step`` noise levels if the weights are distilled, and that at ``time`` where ``step`` is 0."""
        tokens = self.embed(x, scale)
        tokens, _ = self._run(tokens, *self.conditions(time, actions, x.shape[1], step), memory)
        out = self.final_layer(tokens, self.level(time, step))
        out = out.unflatten(2, (x.shape[3] // PATCH, x.shape[4] // PATCH)).unflatten(4, (PATCH, PATCH, -1))
        return out.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)[:, :, : self.sizes.channels].float()

    def _run(self, x: Tensor, spatial: Tensor, temporal: Tensor, past: Memory | None) -> tuple[Tensor, Memory]:
        memory = []
        for i, (within, along) in enumerate(zip(self.spatial_blocks, self.temporal_blocks, strict=True)):
            x, _ = within(x, spatial)
            x, pair = along(x, temporal, None if past is None else past[i])
            memory.append(pair)
        return x, memory


def select(memory: Memory, rows: Int[Tensor, " R"], count: int) -> Memory:
    """Keys and values of some of the ``count`` rows of a batch, in the given order; rows may repeat."""
    pairs = [tuple(t.unflatten(0, (count, -1))[rows].flatten(0, 1) for t in pair) for pair in memory]
    return [(keys, values) for keys, values in pairs]


def waves(number: Float[Tensor, " B"]) -> Float[Tensor, "B 256"]:
    """Cosines and sines of 128 frequencies, from 1 to 1/10000."""
    frequency = torch.exp(-math.log(10000) * torch.arange(128, device=number.device) / 128)
    angle = number.float().unsqueeze(1) * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def places(height: int, width: int, dim: int, base: int, scale: float, device: torch.device) -> Float[Tensor, "S dim"]:
    """Sines and cosines of column, then row, of each token."""
    frequency = 10000 ** (-torch.arange(0, dim // 2, 2, device=device) / (dim // 2))
    column = torch.arange(width, device=device) / scale * base / width
    row = torch.arange(height, device=device) / scale * base / height
    angle = [line.unsqueeze(1) * frequency for line in (column, row)]
    across, down = (torch.cat([a.sin(), a.cos()], dim=1) for a in angle)
    grid = [across.unsqueeze(0).expand(height, -1, -1), down.unsqueeze(1).expand(-1, width, -1)]
    return torch.cat(grid, dim=2).flatten(0, 1)


def load(folder: WeightFolder, clues: int, temporal_actions: bool) -> STDiT:
    """A published STDiT-v3 (then the action embedding begins anew) or WMPO world model, or one that was distilled;
    sizes are read off the weights. Without an embedding of steps a new one that changes nothing stands in.

    Raises ValueError that lists what is missing or does not fit.
    """
    width, channels, _, _, _ = folder.shape("x_embedder.proj.weight")
    found = [re.match(r"spatial_blocks\.(\d+)\.", name) for name in folder.names()]
    depth = 1 + max((int(match[1]) for match in found if match), default=-1)
    sizes = Sizes(
        width=width, channels=channels, depth=depth, temporal_actions=temporal_actions,
        num_heads=width // folder.shape("spatial_blocks.0.attn.q_norm.weight")[0],
        mlp_width=folder.shape("spatial_blocks.0.mlp.fc1.weight")[0],
    )  # fmt: skip
    net = STDiT(sizes, clues)
    state: dict[str, Tensor] = {}
    for _, tensors in folder.shards():
        state |= {n: t for n, t in tensors.items() if not _UNUSED.fullmatch(n)}
    own: dict[str, Any] = net.state_dict()
    given = {n.split(".")[0] for n in state}
    absent = {"action_embedder", "step_embedder"} - given
    fresh = {n: t for n, t in own.items() if n.split(".")[0] in absent}
    state = {name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in state.items()} | fresh
    compare({n: tuple(t.shape) for n, t in own.items()}, {n: tuple(t.shape) for n, t in state.items()}, folder.path)
    net.load_state_dict(state)
    return net
