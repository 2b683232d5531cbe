"""An action-conditioned video world model for two CPU cores.

The paper's world model is a video transformer that redraws every frame in latents (arXiv 2511.09515). On little data
and two cores this one learns faster: a convolutional U-Net, as in DIAMOND (arXiv 2405.12399), that imagines frame after
frame. It guesses the next latents by a flow, as in the paper, and where the pixels of known frames move; the decoder
draws only what is new (:mod:`wmpo.world_model.warp`). Every frame's *own* actions modulate its features
(frame-level action control). Two further clues keep long rollouts from drifting: the episode's first frame, and the sum
of all actions since then, which is where the hand must be; it reaches the network as maps over the picture.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wmpo.nn import autocast, best_device, check_frames, cut_views, join_views, to_frames, to_unit
from wmpo.views import ONE_VIEW
from wmpo.world_model import flow
from wmpo.world_model.tokenizer import Tokenizer, TokenizerConfig
from wmpo.world_model.warp import MOTION_CHANNELS, compose


@dataclass(frozen=True, kw_only=True)
class SmallWorldModelConfig:
    """Sizes of the small world model and its flow."""

    channels: tuple[int, ...] = (48, 96, 192)
    "Width of the convolutions at each resolution, the finest first; resolution halves from one to the next."
    blocks: int = 1
    "Residual blocks at each resolution, on the way down and on the way up."
    condition: int = 256
    "Width of the embedding of actions and flow time."
    frame_stride: int = 4
    "Actions between imagined frames."
    num_context: int = 2
    "Context frames (H), the newest last."
    euler_steps: int = 1
    "Sampling steps of a frame."
    start_noise: float = 0.25
    "Noise on the last frame where the flow starts, in latent standard deviations."
    pretrained: str = "meta-world"
    "Weights to begin with: a shipped model, a file of ``wmpo pretrain``, or none."
    anchor: bool = True
    "Whether the episode's first frame and the sum of the actions since then are part of the context."

    def restore(self, about: dict[str, Any]) -> SmallWorldModel:
        """An untrained model as another one's ``about()`` says; bounds of actions are among its weights."""
        tokenizer, count = TokenizerConfig.of(about["tokenizer"]).build(), about["action_dim"]
        views = tuple(about.get("views", ONE_VIEW))  # older files have one
        return self.build(tokenizer, torch.zeros(count), torch.ones(count), about["grid"], views)

    def validate(self, image_size: int) -> None:
        """Raises ValueError, naming flag and value."""
        widths, grid = self.channels, image_size // 4
        if any(width < 8 or width % 8 for width in widths) or grid % 2 ** (len(widths) - 1):
            raise ValueError(
                f"world_model.channels {widths} must be multiples of 8, and few enough to halve {grid} cells "
                f"{len(widths) - 1} times"
            )

    def build(
        self,
        tokenizer: Tokenizer,
        action_low: Tensor,
        action_high: Tensor,
        grid: int,
        views: tuple[str, ...] = ONE_VIEW,
    ) -> SmallWorldModel:
        """``grid``: cells of 4 pixels in a row of one view."""
        return SmallWorldModel(self, tokenizer, action_low, action_high, grid, views).to(best_device())


@dataclass(frozen=True, slots=True)
class FrameContext:
    """The newest H frames and the episode's first one as pictures in [-1, 1], the newest also as latents, and the sum
    of the actions since the first."""

    recent: Float[Tensor, "B H 3 h w"]
    latents: Float[Tensor, "B C y x"]
    first: Float[Tensor, "B 3 h w"]
    travelled: Float[Tensor, "B A"]

    @property
    def last(self) -> Float[Tensor, "B 3 h w"]:
        return self.recent[:, -1]


CELL = 3 * 4 * 4
"""Numbers of a picture in one cell of the latents' grid."""
MAPS = 16
"""Channels of the maps that tell every cell where the actions lead."""
WAVES = (2.0, 4.0, 8.0, 16.0)
"""Frequencies at which the sum of the actions is read: a pixel of hand movement is a small part of it."""


class FilmBlock(nn.Module):
    """Residual block of two convolutions; the condition scales and shifts the features between them."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        for parameter in (*self.conv2.parameters(), *self.film.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # (B, c, y, x), (B, condition)
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(torch.relu(self.norm(x)))
        return x + self.conv2(torch.relu(h * (1 + scale) + shift))


class Level(nn.ModuleList):
    """The residual blocks of one resolution."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self:
            x = block(x, condition)
        return x


class UNet(nn.Module):
    """From what is known [B, C_in, y, x] and a condition [B, condition] to one frame's features [B, C_out, y, x]."""

    def __init__(self, known: int, out: int, config: SmallWorldModelConfig, grid: int, num_views: int) -> None:
        super().__init__()
        widths = config.channels
        if grid % 2 ** (len(widths) - 1):
            raise ValueError(f"a grid of {grid} cells cannot be halved {len(widths) - 1} times")
        pairs = list(pairwise(widths))
        self.first = nn.Conv2d(known + MAPS, widths[0], 1)
        self.position = nn.Parameter(torch.zeros(1, widths[0], grid, num_views * grid))  # most cameras stand still
        coarse = grid // 2 ** (len(widths) - 1)
        self.coarse = coarse, num_views * coarse
        # Where the actions lead the hand, as maps: modulating features everywhere alike says it poorly.
        self.place = nn.Linear(config.condition, widths[-1] * num_views * coarse**2)
        self.map = nn.Linear(config.condition, MAPS * num_views * grid**2)

        def level(width: int) -> Level:
            return Level(FilmBlock(width, config.condition) for _ in range(config.blocks))

        self.down = nn.ModuleList(level(width) for width in widths)
        self.halve = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.enlarge = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(level(width) for width in widths[:-1])
        self.last = nn.Conv2d(widths[0], out, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub does not know it

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = torch.cat([x, self.map(condition).view(len(x), MAPS, *x.shape[-2:])], dim=1)
        h = self.first(x.contiguous(memory_format=torch.channels_last)) + self.position
        skips = []
        for level, halve in zip(self.down, self.halve, strict=False):  # the last level is not halved
            skips.append(level(h, condition))
            h = halve(skips[-1])
        h = h + self.place(condition).view(len(h), -1, *self.coarse)
        h = self.down[-1](h, condition)
        for i in reversed(range(len(self.up))):
            h = nn.functional.pixel_shuffle(self.enlarge[i](h), 2) + skips[i]
            h = self.up[i](h, condition)
        return self.last(torch.relu(h)).float()


class SmallWorldModel(nn.Module):
    """A :class:`wmpo.protocols.WorldModel`. The tokenizer belongs to it but is trained before and kept frozen."""

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        config: SmallWorldModelConfig,
        tokenizer: Tokenizer,
        action_low: Tensor,
        action_high: Tensor,
        grid: int,
        views: tuple[str, ...] = ONE_VIEW,
    ) -> None:
        super().__init__()
        self.views = views
        self.config, self.tokenizer, self.grid = config, tokenizer.requires_grad_(False).eval(), grid
        self.frame_stride = config.frame_stride
        self.register_buffer("action_low", action_low.float())
        self.register_buffer("action_high", action_high.float())
        channels, action_dim, width = tokenizer.config.latent_channels, len(action_low), config.condition
        self.latent_shape = (channels, grid, len(views) * grid)
        known = channels + CELL * (config.num_context + config.anchor)
        self.net = UNet(known, channels + 16 * MOTION_CHANNELS, config, grid, len(views))
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        clues = action_dim * (config.frame_stride + config.anchor * (1 + 2 * len(WAVES)))
        self.action = nn.Sequential(nn.Linear(clues, width), nn.SiLU(), nn.Linear(width, width))

    def train(self, mode: bool = True) -> SmallWorldModel:
        super().train(mode)
        self.tokenizer.eval()  # its batch statistics are frozen
        return self

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {
            "config": asdict(self.config), "tokenizer": asdict(self.tokenizer.config),
            "action_dim": len(self.action_low), "grid": self.grid, "views": self.views,
        }  # fmt: skip

    def noise_shape(self, chunk_size: int) -> tuple[int, ...]:
        """Of the noise of one row in ``imagine``."""
        return (chunk_size // self.frame_stride, *self.latent_shape)

    def predict(
        self,
        x: Float[Tensor, "B C y x"],
        time: Float[Tensor, " B"],
        context: FrameContext,
        actions: Float[Tensor, "B S A"],
    ) -> tuple[Float[Tensor, "B C y x"], Float[Tensor, "B 8 h w"]]:
        """The frame after ``frame_stride`` (S) more actions: its latents x_1, guessed from x_t as an addition to the
        last ones, and the motion that leads to it."""
        span = self.action_high - self.action_low
        clues = (2 * (actions.to(span) - self.action_low) / span - 1).flatten(1)
        pictures = context.recent.flatten(1, 2)
        if self.config.anchor:
            pictures = torch.cat([pictures, context.first], dim=1)
            before, after = (sums / (4 * span) for sums in (context.travelled, context.travelled + actions.sum(dim=1)))
            waves = [wave(k * after) for k in WAVES for wave in (torch.sin, torch.cos)]
            clues = torch.cat([clues, before, *waves], dim=1)
        condition = nn.functional.silu(self.action(clues) + self.time(_sinusoid(time)))
        known = torch.cat([x, nn.functional.pixel_unshuffle(pictures, 4)], dim=1)
        latents, motion = self.net(known, condition).tensor_split([self.latent_shape[0]], dim=1)
        return context.latents + latents, nn.functional.pixel_shuffle(motion, 4)

    def forward(
        self,
        context: FrameContext,
        actions: Float[Tensor, "B S A"],
        target: Float[Tensor, "B C y x"],
        picture: Float[Tensor, "B 3 h w"],
        noise: Float[Tensor, "B C y x"],
        time: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Flow-matching loss of the next latents, and L1 distance of the composed picture. What moves counts more,
        since nearly all of a picture stands still."""
        x0 = flow.begin(context.latents, noise, self.config.start_noise)
        latents, motion = self.predict(flow.between(x0, target, time), time, context, actions)
        made = self._compose(context, latents, motion)
        change = (picture - context.last).abs().amax(dim=1, keepdim=True)
        weight = 1 + 4 * (change / 0.3).clamp(max=1)
        moved = 1 + 4 * ((target - context.latents).abs().mean(dim=1, keepdim=True) / 0.5).clamp(max=1)
        drawn = ((made - picture).abs() * weight).flatten(1).mean(dim=1)
        return drawn + 0.1 * ((latents - target).square() * moved).flatten(1).mean(dim=1)

    def _compose(self, context: FrameContext, latents: Tensor, motion: Tensor) -> Float[Tensor, "B 3 h w"]:
        """No pixel moves from one view into another."""
        parts = context.last, context.first, self.tokenizer.images(latents), motion
        with torch.autocast(latents.device.type, enabled=False):  # positions need more than 8 bits
            return join_views(compose(*(cut_views(part, len(self.views)) for part in parts)), len(self.views))

    @torch.no_grad()
    def imagine_frame(
        self, context: FrameContext, actions: Float[Tensor, "B S A"], noise: Float[Tensor, "B C y x"]
    ) -> FrameContext:
        """The context one frame later; its newest frame is the imagined one."""
        motion = torch.empty(0)  # that of the last step is used

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            nonlocal motion
            latents, motion = self.predict(x, time, context, actions)
            return flow.velocity(x, latents, time)

        start = flow.begin(context.latents, noise, self.config.start_noise)
        with autocast(start.device):
            latents = flow.euler(velocity, start, self.config.euler_steps)
            picture = self._compose(context, latents, motion).clamp(-1, 1)
            seen = self.tokenizer.latents(picture)
        recent = torch.cat([context.recent[:, 1:], picture.unsqueeze(1)], dim=1)
        return replace(context, recent=recent, latents=seen, travelled=context.travelled + actions.sum(dim=1))

    @torch.no_grad()
    def begin(self, frames: UInt8[Tensor, "B H h w 3"]) -> FrameContext:
        """From recorded frames, the newest last; fewer than ``num_context`` are repeated at the front. Raises
        ValueError for frames of another size."""
        check_frames(frames, 4 * self.grid, self.views, "world model")
        missing = self.config.num_context - frames.shape[1]
        if missing > 0:
            frames = torch.cat([frames[:, :1].expand(-1, missing, -1, -1, -1), frames], dim=1)
        recent = to_unit(frames[:, -self.config.num_context :]).to(self.action_low)
        travelled = recent.new_zeros(len(frames), len(self.action_low))
        return FrameContext(recent, self.tokenizer.encode(frames[:, -1]), recent[:, -1], travelled)

    def imagine(
        self,
        context: FrameContext,
        chunk: Float[Tensor, "B K A"],
        noise: Float[Tensor, "B F C y x"],
        shown: Sequence[int] | None = None,
    ) -> tuple[UInt8[Tensor, "B n h w 3"], FrameContext]:
        """The frames after each ``frame_stride`` actions, or those at the places ``shown`` of the chunk."""
        chunk, noise = chunk.to(context.recent), noise.to(context.recent)
        frames = []
        for actions, fresh in zip(chunk.split(self.frame_stride, dim=1), noise.unbind(dim=1), strict=True):
            context = self.imagine_frame(context, actions, fresh)
            frames.append(to_frames(context.last))
        return torch.stack(frames if shown is None else [frames[i] for i in shown], dim=1).cpu(), context

    def refined(self) -> SmallWorldModel:
        """The same weights, sampled in twice as many steps."""
        twin = copy.copy(self)
        twin.config = replace(self.config, euler_steps=2 * self.config.euler_steps)
        return twin

    def encode(self, frames: UInt8[Tensor, "M h w 3"]) -> Float[Tensor, "M C y x"]:
        """Their latents."""
        return self.tokenizer.encode(frames)

    def reconstruct(self, frames: UInt8[Tensor, "M h w 3"]) -> UInt8[Tensor, "M h w 3"]:
        """Frames as imagination can show them at best."""
        return self.tokenizer.reconstruct(frames)

    def select(self, context: FrameContext, rows: Int[Tensor, " R"]) -> FrameContext:
        """The context of some rows."""
        rows = rows.to(context.recent.device)
        return FrameContext(*(getattr(context, field.name)[rows] for field in fields(context)))


def _sinusoid(time: Float[Tensor, " B"], dim: int = 64) -> Float[Tensor, "B dim"]:
    frequency = torch.exp(torch.linspace(0, math.log(1000), dim // 2, device=time.device))
    angle = time.unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
