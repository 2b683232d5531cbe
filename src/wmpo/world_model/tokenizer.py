"""Frames to a small grid of latents and back: a convolutional autoencoder.

The grid stays fine (a cell is 4x4 pixels): with cells of 8x8 pixels two-pixel goal markers vanished and objects became
smears, and the dream was wrong for that alone. All convolutions work on that grid: layers at a higher resolution cost
three times the time and, for the same time, gave a blurrier picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wmpo.nn import ResidualConv, autocast, best_device, to_frames, to_unit


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Sizes of the tokenizer."""

    channels: int = 64
    "Width of the decoder's convolutions."
    encoder_channels: int = 32
    "Width of the encoder's: it draws nothing, and latents need not be exact."
    latent_channels: int = 6
    "Numbers in a grid cell of 4x4 pixels."
    latent_noise: float = 0.1
    "Noise added to the latents in training: the decoder must bear the world model's errors."

    @classmethod
    def of(cls, saved: dict[str, Any]) -> TokenizerConfig:
        """From a file; in older ones both are as wide. Raises ValueError for settings of another version."""
        try:
            return cls(**{"encoder_channels": saved["channels"]} | saved)
        except (KeyError, TypeError) as error:
            raise ValueError(f"a tokenizer of {saved} is of another version of wmpo; make it again") from error

    def build(self) -> Tokenizer:
        return Tokenizer(self).to(best_device())


class Tokenizer(nn.Module):
    """``encode``/``decode`` work on uint8 frames and latents normalised to unit variance per channel."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        c, e, z = config.channels, config.encoder_channels, config.latent_channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, e, 3, padding=1),
            ResidualConv(e),
            ResidualConv(e),
            nn.ReLU(),
            nn.Conv2d(e, z, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(z, c, 3, padding=1),
            ResidualConv(c),
            ResidualConv(c),
            nn.ReLU(),
            nn.Conv2d(c, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )
        # No affine: latents of any training have zero mean and unit variance, which the flow's noise levels assume.
        self.normalize = nn.BatchNorm2d(z, affine=False, momentum=0.02)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub does not know it

    def latents(self, images: Float[Tensor, "M 3 h w"]) -> Float[Tensor, "M C y x"]:
        """Differentiable encoding of images in [-1, 1]."""
        return self.normalize(self.encoder(images.contiguous(memory_format=torch.channels_last)).float())

    def images(self, latents: Float[Tensor, "M C y x"]) -> Float[Tensor, "M 3 h w"]:
        """Differentiable decoding to [-1, 1] (not clamped)."""
        return self.decoder(latents.contiguous(memory_format=torch.channels_last)).float()

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "*B h w 3"]) -> Float[Tensor, "*B C y x"]:
        device = next(self.parameters()).device
        with autocast(device):
            flat = self.latents(to_unit(frames.flatten(0, -4).to(device)))
        return flat.unflatten(0, frames.shape[:-3])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "*B C y x"]) -> UInt8[Tensor, "*B h w 3"]:
        """Frames on the CPU."""
        with autocast(latents.device):
            flat = self.images(latents.flatten(0, -4))
        return to_frames(flat).cpu().unflatten(0, latents.shape[:-3])

    def reconstruct(self, frames: UInt8[Tensor, "M h w 3"], batch: int = 256) -> UInt8[Tensor, "M h w 3"]:
        """Frames as the world model can show them at best."""
        return torch.cat([self.decode(self.encode(part)) for part in frames.split(batch)])
