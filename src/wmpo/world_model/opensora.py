"""The paper's world model (arXiv 2511.09515): an OpenSora-class transformer in the latents of the SDXL autoencoder.

All frames of a chunk are imagined at once by rectified flow from pure noise (30 Euler steps in the paper). The last
latents are the next context, without decoding and encoding again; they never leave the device. Differs from the
released code: the autoencoder's mean stands for a sample of its latents, so that a start, actions and noise say the
whole dream; noise levels are not shifted with the resolution, which at the paper's 256 px changes nothing. And it is
made to be fast: rows that begin alike share their start, keys and values of the context are computed once a chunk, few
steps are enough after distillation (:mod:`wmpo.train.distill`), and only frames that somebody looks at are decoded.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wmpo.hf import Headers, WeightFolder, compare, libraries
from wmpo.nn import autocast, best_device, check_frames, has_fast_bf16, to_frames, to_unit
from wmpo.views import ONE_VIEW
from wmpo.world_model import flow, stdit
from wmpo.world_model.stdit import PATCH, Memory, Sizes, STDiT, load


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
    shortcut_steps: int = 0
    "Sampling steps of a chunk with distilled weights: 1, 2, 4, ...; 0: Euler steps. Distillation sets it."
    context_noise: float = 15.0
    "Noise level of context frames in training, of 1000 (released code 15, paper 50); they stay clean in imagination."
    frame_actions: bool = True
    """Frame-level action control: every imagined frame is told its own actions. Without it all frames of a chunk are
    told the same, the mean of the chunk's."""
    decode_batch: int = 32
    "Frames decoded at once; changes memory, not results."
    imagine_batch: int = 64
    "Rows imagined at once; changes memory, not results."
    compile: bool = False
    "Whether torch.compile makes the transformer's blocks faster; the first chunk then takes minutes."

    def check_weights(self, action_dim: int) -> None:
        """Raises ValueError, naming folder and fix, before anything is played, when weights are missing or foreign."""
        _check_autoencoder(_checked_autoencoder(self.vae))
        if self.folder:
            with torch.device("meta"):
                load(Headers(self.folder), action_dim * self.frame_stride, self.sizes.temporal_actions)

    def restore(self, about: dict[str, Any]) -> OpenSoraWorldModel:
        """A model as another one's ``about()`` says; bounds of actions are among its weights."""
        count = about["action_dim"]
        views = tuple(about.get("views", ONE_VIEW))  # older files have one
        return self.build(torch.zeros(count), torch.ones(count), about["image_size"], views)

    def validate(self, image_size: int) -> None:
        """Raises ValueError, naming flag and value."""
        if not 0 <= self.context_noise < 1000:
            raise ValueError(f"world_model.context_noise {self.context_noise} must lie between 0 and 1000")
        if min(self.num_context, self.frame_stride, self.euler_steps, self.decode_batch, self.imagine_batch) < 1:
            raise ValueError(
                "num_context, frame_stride, euler_steps, decode_batch and imagine_batch must be at least 1"
            )
        if self.shortcut_steps < 0 or self.shortcut_steps.bit_count() > 1:
            raise ValueError(f"world_model.shortcut_steps {self.shortcut_steps} must be 0 or a power of two")

    def build(
        self, action_low: Tensor, action_high: Tensor, image_size: int, views: tuple[str, ...] = ONE_VIEW
    ) -> OpenSoraWorldModel:
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
        model = OpenSoraWorldModel(self, net, vae, action_low, action_high, image_size, views).to(best_device()).eval()
        if self.compile:
            net.compile_blocks()
        return model


def _checked_autoencoder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json; it must be the folder of a diffusers AutoencoderKL")
    return folder


_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the autoencoder's attention in older files, which diffusers still reads."""


def _check_autoencoder(folder: Path) -> None:
    """diffusers itself would begin tensors that a file lacks at random."""
    with libraries():
        from diffusers import AutoencoderKL
    weights = Headers(folder, "diffusion_pytorch_model")
    with torch.device("meta"):
        net = AutoencoderKL.from_config(weights.json("config.json"))
    found = {
        re.sub(r"(?<=attentions\.\d\.)(query|key|value|proj_attn)(?=\.)", lambda old: _OLDER[old[0]], name): tensor
        for _, tensors in weights.shards()
        for name, tensor in tensors.items()
    }
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    compare(expected, {name: tuple(tensor.shape) for name, tensor in found.items()}, folder)


def _autoencoder(folder: Path) -> Any:
    _check_autoencoder(folder)
    with libraries():
        from diffusers import AutoencoderKL
    return AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)


@dataclass(frozen=True, slots=True)
class LatentContext:
    """Latents of the newest H frames, those that several rows share only once."""

    distinct: Float[Tensor, "D H C y x"]
    row: Int[Tensor, " B"]
    "Which of them is the context of each row."

    @property
    def latents(self) -> Float[Tensor, "B H C y x"]:
        return self.distinct[self.row]

    def rows(self, rows: Int[Tensor, " R"]) -> LatentContext:
        """The context of some rows."""
        kept, row = self.row[rows.to(self.row.device)].unique(return_inverse=True)
        return LatentContext(self.distinct[kept], row)


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
        views: tuple[str, ...] = ONE_VIEW,
    ) -> None:
        super().__init__()
        self.views, self.scale = views, image_size * len(views) ** 0.5
        self.config, self.net, self.vae = config, net, vae.requires_grad_(False)
        self.frame_stride, self.image_size = config.frame_stride, image_size
        self.register_buffer("action_low", action_low.float())
        self.register_buffer("action_high", action_high.float())
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if image_size % (factor * PATCH):
            raise ValueError(f"image_size {image_size} must be a multiple of {factor * PATCH}, the pixels of a token")
        self.latent_shape = (net.sizes.channels, image_size // factor, len(views) * image_size // factor)

    def train(self, mode: bool = True) -> OpenSoraWorldModel:
        super().train(mode)
        self.vae.eval()
        return self

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {
            "config": asdict(self.config), "action_dim": len(self.action_low), "image_size": self.image_size,
            "views": self.views,
        }  # fmt: skip

    def refined(self) -> OpenSoraWorldModel:
        """The same weights, sampled in twice as many steps."""
        twin = copy.copy(self)
        euler, shortcut = 2 * self.config.euler_steps, 2 * self.config.shortcut_steps
        twin.config = replace(self.config, euler_steps=euler, shortcut_steps=shortcut)
        return twin

    def noise_shape(self, chunk_size: int) -> tuple[int, ...]:
        """Of the noise of one row in ``imagine``."""
        return (chunk_size // self.frame_stride, *self.latent_shape)

    def _half_precision(self) -> torch.autocast:
        """For the autoencoder, on GPUs only: on a CPU its bfloat16 convolutions took five times as long."""
        device = self.action_low.device
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and has_fast_bf16(device))

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "*B h w 3"]) -> Float[Tensor, "*B C y x"]:
        """Raises ValueError for frames of another size."""
        check_frames(frames, self.image_size, self.views, "world model")
        device, parts = self.action_low.device, []
        for part in frames.flatten(0, -4).split(self.config.decode_batch):
            with self._half_precision():
                parts.append(self.vae.encode(to_unit(part.to(device))).latent_dist.mean.float())
        return (torch.cat(parts) * self.vae.config.scaling_factor).unflatten(0, frames.shape[:-3])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "*B C y x"]) -> UInt8[Tensor, "*B h w 3"]:
        """Frames on the CPU."""
        flat, parts = latents.flatten(0, -4) / self.vae.config.scaling_factor, []
        for part in flat.split(self.config.decode_batch):
            with self._half_precision():
                parts.append(to_frames(self.vae.decode(part).sample))
        return torch.cat(parts).cpu().unflatten(0, latents.shape[:-3])

    def clues(self, chunk: Float[Tensor, "B K A"]) -> Float[Tensor, "B F n"]:
        """Normalised actions, those of a frame in one row."""
        chunk = chunk.to(self.action_low)
        unit = 2 * (chunk - self.action_low) / (self.action_high - self.action_low) - 1
        if not self.config.frame_actions:
            unit = unit.mean(dim=1, keepdim=True).expand_as(unit)
        return unit.unflatten(1, (-1, self.frame_stride)).flatten(2)

    def forward(
        self,
        latents: Float[Tensor, "B T C y x"],
        chunk: Float[Tensor, "B K A"],
        noise: Float[Tensor, "B T C y x"],
        time: Float[Tensor, " B"],
        step: Float[Tensor, " B"] | None = None,
        finest: float = 0.0,
    ) -> Float[Tensor, " B"]:
        """Flow-matching loss of each row. ``time``: 0 (pure noise) to 1.

        ``latents``: H context frames, made as noisy as ``context_noise`` says, then those after the chunk's actions.
        Rows whose ``step`` is not 0 learn from the model itself instead: what two halves of that step give.
        """
        level, known = self.config.context_noise, self.config.num_context
        context = flow.between(noise[:, :known], latents[:, :known], torch.full_like(time, 1 - level / 1000))
        target, fresh = latents[:, known:], noise[:, known:]
        shortcut = self._shortcut(self.net.remember(context, level, self.scale), self.clues(chunk))
        x, aim = flow.between(fresh, target, time), target - fresh
        if step is None:
            step = torch.zeros_like(time)
        else:
            with torch.no_grad():
                halves = flow.two_halves(shortcut, x, time, step, finest)
            aim = torch.where(step.view(-1, 1, 1, 1, 1) > 0, halves, aim)
        return (shortcut(x, time, step) - aim).square().flatten(1).mean(dim=1)

    def _shortcut(self, memory: Memory, actions: Float[Tensor, "B F n"]) -> flow.Shortcut:
        """Flow times and steps run from 0 to 1 here, noise levels of the transformer from 1000 to 0."""

        def shortcut(x: Tensor, time: Tensor, step: Tensor) -> Tensor:
            return self.net(x, 1000 * (1 - time), actions, memory, self.scale, 1000 * step)

        return shortcut

    def begin(self, frames: UInt8[Tensor, "B H h w 3"], travelled: Float[Tensor, "B A"] | None = None) -> LatentContext:
        """From recorded frames, the newest last; fewer than ``num_context`` are repeated at the front. Rows with the
        same frames, as siblings of a group have them, are encoded once. Where the robot is, frames alone say."""
        recent = frames[:, -self.config.num_context :]
        seen: dict[bytes, int] = {}
        row = torch.tensor([seen.setdefault(one.numpy().tobytes(), len(seen)) for one in recent.cpu()])
        first = [row.tolist().index(number) for number in range(len(seen))]
        latents = self.encode(recent[first])
        missing = self.config.num_context - latents.shape[1]
        front = latents[:, :1].expand(-1, missing, -1, -1, -1)
        return LatentContext(torch.cat([front, latents], dim=1), row.to(latents.device))

    @torch.no_grad()
    def imagine(
        self,
        context: LatentContext,
        chunk: Float[Tensor, "B K A"],
        noise: Float[Tensor, "B F C y x"],
        shown: Sequence[int] | None = None,
    ) -> tuple[UInt8[Tensor, "B n h w 3"], LatentContext]:
        """The frames after each ``frame_stride`` actions, and the context that they are part of. ``shown``: places in
        the chunk of the frames that are wanted; the others are not decoded."""
        parts = torch.arange(len(chunk)).split(self.config.imagine_batch)
        latents = torch.cat([self.sample(context.rows(part), chunk[part], noise[part]) for part in parts])
        seen = torch.cat([context.latents, latents], dim=1)[:, -self.config.num_context :]
        frames = self.decode(latents if shown is None else latents[:, list(shown)])
        return frames, LatentContext(seen, torch.arange(len(seen), device=seen.device))

    @torch.no_grad()
    def sample(
        self, context: LatentContext, chunk: Float[Tensor, "B K A"], noise: Float[Tensor, "B F C y x"]
    ) -> Float[Tensor, "B F C y x"]:
        """Latents of the chunk's frames."""
        actions, num_steps = self.clues(chunk), self.config.shortcut_steps or self.config.euler_steps
        step = torch.full((len(chunk),), 1 / num_steps if self.config.shortcut_steps else 0.0, device=actions.device)
        with autocast(actions.device):
            memory = self.net.remember(context.distinct, self.config.context_noise, self.scale)
            if len(context.distinct) < len(chunk):
                memory = stdit.select(memory, context.row, len(context.distinct))
            shortcut = self._shortcut(memory, actions)
            return flow.euler(lambda x, time: shortcut(x, time, step), noise.to(actions), num_steps)

    def reconstruct(self, frames: UInt8[Tensor, "M h w 3"]) -> UInt8[Tensor, "M h w 3"]:
        """Frames as imagination can show them at best."""
        return self.decode(self.encode(frames))

    def select(self, context: LatentContext, rows: Int[Tensor, " R"]) -> LatentContext:
        """The context of some rows."""
        return context.rows(rows)
