"""A vision-language-action policy of about a million parameters, for two CPU cores.

One frame and a sentence go in; the logits of a whole chunk of discrete action tokens come out at once (parallel
decoding, as in OpenVLA-OFT). The sentence is read as UTF-8 bytes through attention, so any sentence works and tasks can
share a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wmpo.nn import Block, ResidualConv, best_device, check_frames, to_unit
from wmpo.policy.codec import ActionCodec, PathCodec
from wmpo.types import Observation
from wmpo.views import ONE_VIEW


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Sizes that the small policies share."""

    dim: int = 128
    "Width of the transformer."
    depth: int = 3
    "Transformer blocks."
    num_heads: int = 4
    "Attention heads."
    chunk_size: int = 4
    "Actions decoded at once (K)."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        if self.dim % self.num_heads:
            raise ValueError(f"policy.num_heads {self.num_heads} must divide policy.dim {self.dim}")


@dataclass(frozen=True, kw_only=True)
class SmallPolicyConfig(TrunkConfig):
    """Sizes of the small policy."""

    num_bins: int = 41
    "Bins of one action token."

    def build(self, codec: ActionCodec, image_size: int, views: tuple[str, ...] = ONE_VIEW) -> SmallPolicy:
        return SmallPolicy(self, codec, image_size, views).to(best_device())

    def fit(self, actions: Float[Tensor, "S A"], image_size: int, views: tuple[str, ...] = ONE_VIEW) -> SmallPolicy:
        """An untrained policy for actions such as the recorded ones."""
        return self.build(ActionCodec.fit(actions, self.chunk_size, self.num_bins), image_size, views)

    def restore(self, about: dict[str, Any]) -> SmallPolicy:
        """An untrained policy as another one's ``about()`` says."""
        views = tuple(about.get("views", ONE_VIEW))  # older files have one
        return self.build(ActionCodec.restore(about["codec"]), about["image_size"], views)


class TextEncoder(nn.Module):
    """Sentences [B, L] of UTF-8 bytes (0 = padding) to (B, 4, D) tokens by cross-attention of learned queries."""

    MAX_BYTES = 64

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.byte = nn.Embedding(256, dim)
        self.position = nn.Parameter(0.02 * torch.randn(self.MAX_BYTES, dim))
        self.queries = nn.Parameter(0.02 * torch.randn(4, dim))
        self.block = Block(dim, num_heads)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def forward(self, text: Tensor) -> Tensor:
        unique, inverse = torch.unique(text, dim=0, return_inverse=True)  # a batch has few different sentences
        x = self.block(self.byte(unique) + self.position[: unique.shape[1]])
        queries = self.queries.expand(len(unique), -1, -1)
        tokens, _ = self.attention(queries, x, x, key_padding_mask=unique == 0, need_weights=False)
        return tokens.index_select(0, inverse)  # indexing adds up gradients in the order in which threads come

    @classmethod
    def encode(cls, sentences: tuple[str, ...]) -> Tensor:
        """UTF-8 bytes, cut to MAX_BYTES; a leading space keeps an empty sentence from being all padding."""
        rows = [(b" " + text.encode())[: cls.MAX_BYTES] for text in sentences]
        out = torch.zeros(len(rows), cls.MAX_BYTES, dtype=torch.long)  # so that no sentence depends on its neighbours
        for i, row in enumerate(rows):
            out[i, : len(row)] = torch.frombuffer(bytearray(row), dtype=torch.uint8)
        return out


class Trunk(nn.Module):
    """Convolutional stem -> visual tokens, text tokens and learned queries -> transformer -> queries (B, Q, D)."""

    config: TrunkConfig
    codec: ActionCodec | PathCodec

    def __init__(self, sizes: TrunkConfig, *, num_queries: int, image_size: int, views: tuple[str, ...]) -> None:
        super().__init__()
        dim, num_heads = sizes.dim, sizes.num_heads
        half, grid = dim // 2, image_size // 16
        self.image_size, self.views = image_size, views
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(4),  # large convolutions at a high resolution would cost more than all the rest
            nn.Conv2d(48, half, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, stride=2, padding=1),
            ResidualConv(half),
            nn.Conv2d(half, dim, 3, stride=2, padding=1),
            ResidualConv(dim),
        )
        self.position = nn.Parameter(0.02 * torch.randn(grid * grid * len(views), dim))
        self.text = TextEncoder(dim, num_heads)
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(dim)

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {
            "config": asdict(self.config), "codec": asdict(self.codec), "image_size": self.image_size,
            "views": self.views,
        }  # fmt: skip

    def prepare(self, observation: Observation) -> Mapping[str, Tensor]:
        """Tensors for ``__call__``; raises ValueError for frames of another size."""
        check_frames(observation.frame, self.image_size, self.views, "policy")
        device = self.norm.weight.device
        return {"frame": observation.frame.to(device), "text": TextEncoder.encode(observation.instruction).to(device)}

    def read(self, frame: UInt8[Tensor, "B h w 3"], text: Tensor) -> Float[Tensor, "B Q D"]:
        image = to_unit(frame).contiguous(memory_format=torch.channels_last)
        visual = self.stem(image).flatten(2).transpose(1, 2) + self.position  # (B, cells, D)
        queries = self.queries.expand(len(frame), -1, -1)
        x = torch.cat([visual, self.text(text), queries], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, asked=len(self.queries)))  # nothing else of the last block is read


class SmallPolicy(Trunk):
    """N queries and a linear layer: logits [B, N, V]."""

    config: SmallPolicyConfig
    codec: ActionCodec

    def __init__(
        self, config: SmallPolicyConfig, codec: ActionCodec, image_size: int, views: tuple[str, ...] = ONE_VIEW
    ) -> None:
        if codec.chunk_size != config.chunk_size or codec.num_bins != config.num_bins:
            raise ValueError(f"codec {codec} does not fit policy {config}")
        super().__init__(config, num_queries=codec.num_tokens, image_size=image_size, views=views)
        self.config, self.codec = config, codec
        self.head = nn.Linear(config.dim, config.num_bins)

    def forward(self, frame: UInt8[Tensor, "B h w 3"], text: Tensor) -> Float[Tensor, "B N V"]:
        return self.head(self.read(frame, text)).float()
