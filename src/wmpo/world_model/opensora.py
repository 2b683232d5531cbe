"""The paper's world model (arXiv 2511.09515): an OpenSora-class transformer in the latents of the SDXL autoencoder.

All frames of a chunk are imagined at once by rectified flow from pure noise (30 Euler steps in the paper). The last
latents are the next context, without decoding and encoding again. Differs from the released code: the autoencoder's
mean stands for a sample of its latents, so that a start, actions and noise say the whole dream; noise levels are not
shifted with the resolution, which at the paper's 256 px changes nothing.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wmpo.hf import WeightFolder, libraries
from wmpo.nn import autocast, best_device, to_frames, to_unit
from wmpo.world_model import flow
from wmpo.world_model.stdit import PATCH, Sizes, STDiT, load


@dataclass(frozen=True, kw_only=True)
class OpenSoraWorldModelConfig:
    """Where the weights are, and the flow."""

    vae: str
    "Local folder of a diffusers AutoencoderKL: stable-diffusion-xl-base-1.0/vae in the paper."
    folder: str = ""
    "Local folder of OpenSora-STDiT-v3 or of a WMPO world model, as safetensors; empty: random weights of ``sizes``."
    sizes: Sizes = field(default_factory=Sizes)
    "Of the transformer; with a folder all but ``temporal_actions`` are read off its weights."
    num_context: int = 4
    "Context frames (H), the newest last."
    frame_stride: int = 1
    "Actions between imagined frames."
    euler_steps: int = 30
    "Sampling steps of a chunk."
    context_noise: float = 15.0
    "Noise level of context frames in training, of 1000 (released code 15, paper 50); they stay clean in imagination."
    decode_batch: int = 32
    "Frames decoded at once; changes memory, not results."

    def check_weights(self) -> None:
        """Raises ValueError, naming folder and fix, before anything is played, when weights are missing."""
        WeightFolder(_checked_autoencoder(self.vae), "diffusion_pytorch_model")
        if self.folder:
            WeightFolder(self.folder)

    def restore(self, about: dict[str, Any]) -> OpenSoraWorldModel:
        """A model as another one's ``about()`` says; bounds of actions are among its weights."""
        count = about["action_dim"]
        return self.build(torch.zeros(count), torch.ones(count), about["image_size"])

    def validate(self, image_size: int) -> None:
        """Raises ValueError, naming flag and value."""
        if not 0 <= self.context_noise < 1000:
            raise ValueError(f"world_model.context_noise {self.context_noise} must lie between 0 and 1000")
        if min(self.num_context, self.frame_stride, self.euler_steps, self.decode_batch) < 1:
            raise ValueError("num_context, frame_stride, euler_steps and decode_batch must be at least 1")

    def build(self, action_low: Tensor, action_high: Tensor, image_size: int) -> OpenSoraWorldModel:
        """Reads the folders. ``action_low`` and ``action_high``: the policy's q01 and q99; -1 and 1 for dimensions that
        it does not scale. Raises ValueError that names what is missing or does not fit."""
        self.validate(image_size)
        if not (action_low < action_high).all():
            raise ValueError(f"action bounds must satisfy low < high: {action_low.tolist()}, {action_high.tolist()}")
        vae = _autoencoder(_checked_autoencoder(self.vae))
        clues = len(action_low) * self.frame_stride
        if self.folder:
            net = load(WeightFolder(self.folder), clues, self.sizes.temporal_actions)
        else:
            net = STDiT(self.sizes, clues)
        if vae.config.latent_channels != net.sizes.channels:
            raise ValueError(
                f"{self.vae} has {vae.config.latent_channels} channels, the transformer {net.sizes.channels}"
            )
        return OpenSoraWorldModel(self, net, vae, action_low, action_high, image_size).to(best_device()).eval()


def _checked_autoencoder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json; it must be the folder of a diffusers AutoencoderKL")
    return folder


def _autoencoder(folder: Path) -> Any:
    WeightFolder(folder, "diffusion_pytorch_model")
    with libraries():
        from diffusers import AutoencoderKL
    return AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)


@dataclass(frozen=True, slots=True)
class LatentContext:
    """Latents of the newest H frames."""

    latents: Float[Tensor, "B H C y x"]


class OpenSoraWorldModel(nn.Module):
    """A :class:`wmpo.protocols.WorldModel`. The autoencoder is frozen."""

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        config: OpenSoraWorldModelConfig,
        net: STDiT,
        vae: Any,
        action_low: Tensor,
        action_high: Tensor,
        image_size: int,
    ) -> None:
        super().__init__()
        self.config, self.net, self.vae = config, net, vae.requires_grad_(False)
        self.frame_stride, self.image_size = config.frame_stride, image_size
        self.register_buffer("action_low", action_low.float())
        self.register_buffer("action_high", action_high.float())
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if image_size % (factor * PATCH):
            raise ValueError(f"image_size {image_size} must be a multiple of {factor * PATCH}, the pixels of a token")
        self.latent_shape = (net.sizes.channels, image_size // factor, image_size // factor)

    def train(self, mode: bool = True) -> OpenSoraWorldModel:
        super().train(mode)
        self.vae.eval()
        return self

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {
            "config": asdict(self.config), "action_dim": len(self.action_low), "image_size": self.image_size
        }  # fmt: skip

    def refined(self) -> OpenSoraWorldModel:
        """The same weights, sampled in twice as many steps."""
        twin = copy.copy(self)
        twin.config = replace(self.config, euler_steps=2 * self.config.euler_steps)
        return twin

    def noise_shape(self, chunk_size: int) -> tuple[int, ...]:
        """Of the noise of one row in ``imagine``."""
        return (chunk_size // self.frame_stride, *self.latent_shape)

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "*B h w 3"]) -> Float[Tensor, "*B C y x"]:
        """Raises ValueError for frames of another size."""
        if frames.shape[-3:-1] != (self.image_size, self.image_size):
            height, width = frames.shape[-3:-1]
            raise ValueError(f"frames are {height}x{width}, but this world model was built for {self.image_size} px")
        flat = to_unit(frames.flatten(0, -4).to(self.action_low.device))
        parts = [self.vae.encode(part).latent_dist.mean for part in flat.split(self.config.decode_batch)]
        return (torch.cat(parts) * self.vae.config.scaling_factor).unflatten(0, frames.shape[:-3])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "*B C y x"]) -> UInt8[Tensor, "*B h w 3"]:
        """Frames on the CPU."""
        flat = latents.flatten(0, -4) / self.vae.config.scaling_factor
        parts = [to_frames(self.vae.decode(part).sample).cpu() for part in flat.split(self.config.decode_batch)]
        return torch.cat(parts).unflatten(0, latents.shape[:-3])

    def clues(self, chunk: Float[Tensor, "B K A"]) -> Float[Tensor, "B F n"]:
        """Normalised actions, those of a frame in one row."""
        chunk = chunk.to(self.action_low)
        unit = 2 * (chunk - self.action_low) / (self.action_high - self.action_low) - 1
        return unit.unflatten(1, (-1, self.frame_stride)).flatten(2)

    def forward(
        self,
        latents: Float[Tensor, "B T C y x"],
        chunk: Float[Tensor, "B K A"],
        noise: Float[Tensor, "B T C y x"],
        time: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Flow-matching loss of each row. ``time``: 0 (pure noise) to 1.

        ``latents``: H context frames, made as noisy as ``context_noise`` says, then those after the chunk's actions.
        """
        level, known = self.config.context_noise, self.config.num_context
        context = flow.between(noise[:, :known], latents[:, :known], torch.full_like(time, 1 - level / 1000))
        target, fresh = latents[:, known:], noise[:, known:]
        memory = self.net.remember(context, level, self.image_size)
        x = flow.between(fresh, target, time)
        velocity = self.net(x, 1000 * (1 - time), self.clues(chunk), memory, self.image_size)
        return (velocity - (target - fresh)).square().flatten(1).mean(dim=1)

    def begin(self, frames: UInt8[Tensor, "B H h w 3"]) -> LatentContext:
        """From recorded frames, the newest last; fewer than ``num_context`` are repeated at the front."""
        latents = self.encode(frames[:, -self.config.num_context :])
        missing = self.config.num_context - latents.shape[1]
        front = latents[:, :1].expand(-1, missing, -1, -1, -1)
        return LatentContext(torch.cat([front, latents], dim=1))

    @torch.no_grad()
    def imagine(
        self, context: LatentContext, chunk: Float[Tensor, "B K A"], noise: Float[Tensor, "B F C y x"]
    ) -> tuple[UInt8[Tensor, "B F h w 3"], LatentContext]:
        """The frames after each ``frame_stride`` actions, and the context that they are part of."""
        actions = self.clues(chunk)
        with autocast(actions.device):
            memory = self.net.remember(context.latents, self.config.context_noise, self.image_size)

            def velocity(x: Tensor, time: Tensor) -> Tensor:
                return self.net(x, 1000 * (1 - time), actions, memory, self.image_size)

            latents = flow.euler(velocity, noise.to(actions), self.config.euler_steps)
        seen = torch.cat([context.latents, latents], dim=1)[:, -self.config.num_context :]
        return self.decode(latents), LatentContext(seen)

    def reconstruct(self, frames: UInt8[Tensor, "M h w 3"]) -> UInt8[Tensor, "M h w 3"]:
        """Frames as imagination can show them at best."""
        return self.decode(self.encode(frames))

    def select(self, context: LatentContext, rows: Int[Tensor, " R"]) -> LatentContext:
        """The context of some rows."""
        return LatentContext(context.latents[rows.to(context.latents.device)])
