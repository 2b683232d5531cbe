"""The few blocks that the small models share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sdp_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, (B, heads, T, d). On a CPU plain products are faster than the fused kernel's
    backward for the short sequences here (measured: 1.6x on a whole training step)."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ v


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the width {dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, asked: int = 0) -> Tensor:
        """For the last ``asked`` tokens; 0: for all."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(sdp_attention(q[:, :, -asked:], k, v).transpose(1, 2).flatten(2))


def mlp(dim: int, ratio: int = 4) -> nn.Sequential:
    """With ReLU: on CPUs without fast tanh, GELU alone took 13 % of a training step."""
    return nn.Sequential(nn.Linear(dim, ratio * dim), nn.ReLU(), nn.Linear(ratio * dim, dim))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = Attention(dim, num_heads), mlp(dim)

    def forward(self, x: Tensor, asked: int = 0) -> Tensor:
        """Of the last ``asked`` tokens; 0: of all."""
        x = x[:, -asked:] + self.attention(self.norm1(x), asked)
        return x + self.mlp(self.norm2(x))


class ResidualConv(nn.Module):
    """Two 3x3 convolutions with a skip; the second begins at zero, so no normalisation is needed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def check_frames(frames: Tensor, size: int, views: Sequence[str], what: str) -> None:
    """Raises ValueError for frames [..., h, w, 3] that are not those of so many square views side by side."""
    height, width = frames.shape[-3:-1]
    if (height, width) != (size, size * len(views)):
        seen = f"{size} px" if len(views) == 1 else f"{size}x{size * len(views)}: {', '.join(views)} side by side"
        raise ValueError(f"frames are {height}x{width}, but this {what} was built for {seen}")


def cut_frames(frames: Tensor, views: Sequence[str]) -> list[Tensor]:
    """Frames [B, h, V * w, 3] as those of each camera. Raises ValueError where they cannot be."""
    if frames.shape[2] % len(views):
        raise ValueError(
            f"frames {frames.shape[2]} pixels wide are not the pictures of {len(views)} cameras side by side "
            f"({', '.join(views)})"
        )
    return list(frames.chunk(len(views), dim=2))


def cut_views(images: Tensor, num_views: int) -> Tensor:
    """Views that stand side by side [B, c, h, V * w] become rows [B * V, c, h, w]."""
    return images.unflatten(-1, (num_views, -1)).movedim(-2, 1).flatten(0, 1)


def join_views(images: Tensor, num_views: int) -> Tensor:
    """The inverse of :func:`cut_views`."""
    return images.unflatten(0, (-1, num_views)).movedim(1, -2).flatten(-2)


def to_unit(frames: Tensor) -> Tensor:
    """uint8 [..., h, w, 3] -> float32 [..., 3, h, w] in [-1, 1]."""
    return frames.movedim(-1, -3).float().mul(2 / 255).sub(1)


def picture_distance(a: Tensor, b: Tensor) -> Tensor:
    """uint8 [M, h, w, 3] twice -> float32 [M]: mean absolute difference of pixels in [-1, 1]."""
    return (a.float() - b.float()).abs().mean(dim=(1, 2, 3)) / 127.5


def to_frames(images: Tensor) -> Tensor:
    """Float [..., 3, h, w] in [-1, 1] -> uint8 [..., h, w, 3]."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 pays: on GPUs that have it, and on CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported())


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor is fast at it, float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_fast_bf16(device))


def train_in_float32(parameters: Iterable[nn.Parameter]) -> bool:
    """Makes trained weights float32, in place; returns whether some were of a smaller type. A bfloat16 weight has 8
    bits, so that an optimiser's step, often a thousandth of its spacing, would be rounded away; the forward pass may be
    in bfloat16 all the same (:func:`autocast`). Frozen weights stay as they are."""
    small = [p for p in parameters if p.requires_grad and p.is_floating_point() and p.itemsize < 4]
    for parameter in small:
        parameter.data = parameter.data.float()
    return bool(small)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
