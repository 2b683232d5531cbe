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
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wmpo.nn import autocast, best_device, check_frames, cut_views, join_views, to_frames, to_unit
from wmpo.views import ONE_VIEW
from wmpo.world_model import flow
from wmpo.world_model.robot import RobotLayer
from wmpo.world_model.tokenizer import Tokenizer, TokenizerConfig
from wmpo.world_model.unet import UNet
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
    robot: tuple[int, int, int] = (192, 128, 64)
    "Width of the convolutions that draw the robot from the sum of its actions, the coarsest first."
    anchor: bool = True
    "Whether the episode's first frame and the sum of the actions since then are part of the context."
    frame_actions: bool = True
    """Frame-level action control: every imagined frame is told its own actions. Without it all frames of a chunk are
    told the same, the mean of the chunk's."""

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
        if grid % 4:
            raise ValueError(
                f"env.image_size {image_size} must be a multiple of 16, to draw the robot from coarse to fine"
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
    """The newest H frames and an anchor, the first one that is known, as pictures in [-1, 1], the newest also as
    latents; the sums of the actions since the anchor (``travelled``) and since the episode began (``pose``), and the
    actions that led to the newest frame."""

    recent: Float[Tensor, "B H 3 h w"]
    latents: Float[Tensor, "B C y x"]
    first: Float[Tensor, "B 3 h w"]
    travelled: Float[Tensor, "B A"]
    pose: Float[Tensor, "B A"]
    latest: Float[Tensor, "B S A"]

    @property
    def last(self) -> Float[Tensor, "B 3 h w"]:
        return self.recent[:, -1]


CELL = 3 * 4 * 4
"""Numbers of a picture in one cell of the latents' grid."""
LAYER = 4 * 4 * 4
"""Numbers of the robot's layer in one cell."""
WAVES = (2.0, 4.0, 8.0, 16.0)
"""Frequencies at which the sum of the actions is read: a pixel of hand movement is a small part of it."""


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
        known = channels + CELL * (config.num_context + config.anchor) + LAYER
        self.net = UNet(
            known, channels + 16 * MOTION_CHANNELS, config.channels, grid, len(views),
            blocks=config.blocks, condition=width,
        )  # fmt: skip
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        clues = action_dim * (config.frame_stride + config.anchor * (1 + 2 * len(WAVES)))
        self.action = nn.Sequential(nn.Linear(clues, width), nn.SiLU(), nn.Linear(width, width))
        self.robot = RobotLayer(config.robot, action_dim, 2 * config.frame_stride, grid, len(views))

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
        robot: Float[Tensor, "B 4 h w"],
    ) -> tuple[Float[Tensor, "B C y x"], Float[Tensor, "B m h w"]]:
        """The frame after ``frame_stride`` (S) more actions, at whose end the robot is drawn as ``robot``: its latents
        x_1, guessed from x_t as an addition to the last ones, and the motion that leads to it."""
        clues = self._scaled(actions).flatten(1)
        pictures = torch.cat([robot, context.recent.flatten(1, 2)], dim=1)
        if self.config.anchor:
            pictures = torch.cat([pictures, context.first], dim=1)
            travelled = context.travelled
            before, after = (self._scaled_sums(sums) for sums in (travelled, travelled + actions.sum(dim=1)))
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
        robot = self._robot(context, actions)
        latents, motion = self.predict(flow.between(x0, target, time), time, context, actions, robot)
        made = self._compose(context, latents, motion, robot)
        moved = 1 + 4 * ((target - context.latents).abs().mean(dim=1, keepdim=True) / 0.5).clamp(max=1)
        drawn = _distance(made, picture, context.last)
        guessed = ((latents - target).square() * moved).flatten(1).mean(dim=1)
        return drawn + 0.1 * guessed + 0.5 * self._pose_loss(context, robot, picture)

    def _pose_loss(self, context: FrameContext, robot: Tensor, picture: Tensor) -> Float[Tensor, " B"]:
        """How far the robot's layer alone, over the episode's first frame, is from the picture. Nothing for rows that
        are anchored elsewhere: there the robot would be drawn twice."""
        colours, opacity = robot[:, :3], robot[:, 3:].sigmoid()
        drawn = opacity * colours + (1 - opacity) * context.first
        whole = (context.pose == context.travelled).all(dim=1)
        return _distance(drawn, picture, context.first) * whole

    def _robot(self, context: FrameContext, actions: Float[Tensor, "B S A"]) -> Float[Tensor, "B 4 h w"]:
        """The robot's layer after these actions; from the latest ones alone where sums of them say nothing."""
        latest = self._scaled(torch.cat([context.latest, actions.to(context.latest)], dim=1))
        return self.robot(self.config.anchor * self._scaled_sums(context.pose + actions.sum(dim=1)), latest)

    def _scaled(self, actions: Float[Tensor, "B n A"]) -> Float[Tensor, "B n A"]:
        """From -1 to 1 within the bounds of actions."""
        return 2 * (actions.to(self.action_low) - self.action_low) / (self.action_high - self.action_low) - 1

    def _scaled_sums(self, sums: Float[Tensor, "B A"]) -> Float[Tensor, "B A"]:
        """1 is four times the range of an action."""
        return sums / (4 * (self.action_high - self.action_low))

    def _compose(
        self, context: FrameContext, latents: Tensor, motion: Tensor, robot: Tensor
    ) -> Float[Tensor, "B 3 h w"]:
        """No pixel moves from one view into another."""
        parts = context.last, context.first, self.tokenizer.images(latents), robot, motion
        with torch.autocast(latents.device.type, enabled=False):  # positions need more than 8 bits
            return join_views(compose(*(cut_views(part, len(self.views)) for part in parts)), len(self.views))

    @torch.no_grad()
    def imagine_frame(
        self, context: FrameContext, actions: Float[Tensor, "B S A"], noise: Float[Tensor, "B C y x"]
    ) -> FrameContext:
        """The context one frame later; its newest frame is the imagined one."""
        motion = torch.empty(0)  # that of the last step is used
        moved = actions.sum(dim=1)

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            nonlocal motion
            latents, motion = self.predict(x, time, context, actions, robot)
            return flow.velocity(x, latents, time)

        start = flow.begin(context.latents, noise, self.config.start_noise)
        with autocast(start.device):
            robot = self._robot(context, actions)
            latents = flow.euler(velocity, start, self.config.euler_steps)
            picture = self._compose(context, latents, motion, robot).clamp(-1, 1)
            seen = self.tokenizer.latents(picture)
        recent = torch.cat([context.recent[:, 1:], picture.unsqueeze(1)], dim=1)
        return replace(
            context, recent=recent, latents=seen, latest=actions.to(moved),
            travelled=context.travelled + moved, pose=context.pose + moved,
        )  # fmt: skip

    @torch.no_grad()
    def begin(self, frames: UInt8[Tensor, "B H h w 3"], travelled: Float[Tensor, "B A"] | None = None) -> FrameContext:
        """From recorded frames, the newest last; fewer than ``num_context`` are repeated at the front. ``travelled``:
        the sum of the actions before them. Raises ValueError for frames of another size."""
        check_frames(frames, 4 * self.grid, self.views, "world model")
        missing = self.config.num_context - frames.shape[1]
        if missing > 0:
            frames = torch.cat([frames[:, :1].expand(-1, missing, -1, -1, -1), frames], dim=1)
        recent = to_unit(frames[:, -self.config.num_context :]).to(self.action_low)
        still = recent.new_zeros(len(frames), len(self.action_low))
        return FrameContext(
            recent, self.tokenizer.encode(frames[:, -1]), recent[:, -1], still,
            pose=still if travelled is None else travelled.to(still),
            latest=still.unsqueeze(1).repeat(1, self.frame_stride, 1),
        )  # fmt: skip

    def imagine(
        self,
        context: FrameContext,
        chunk: Float[Tensor, "B K A"],
        noise: Float[Tensor, "B F C y x"],
        shown: Sequence[int] | None = None,
    ) -> tuple[UInt8[Tensor, "B n h w 3"], FrameContext]:
        """The frames after each ``frame_stride`` actions, or those at the places ``shown`` of the chunk."""
        chunk, noise = chunk.to(context.recent), noise.to(context.recent)
        if not self.config.frame_actions:
            chunk = chunk.mean(dim=1, keepdim=True).expand_as(chunk)
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


def _distance(
    made: Float[Tensor, "B 3 h w"], picture: Float[Tensor, "B 3 h w"], before: Float[Tensor, "B 3 h w"]
) -> Float[Tensor, " B"]:
    """Mean absolute difference; pixels that have changed since ``before`` count up to five times."""
    change = (picture - before).abs().amax(dim=1, keepdim=True)
    weight = 1 + 4 * (change / 0.3).clamp(max=1)
    return ((made - picture).abs() * weight).flatten(1).mean(dim=1)


def _sinusoid(time: Float[Tensor, " B"], dim: int = 64) -> Float[Tensor, "B dim"]:
    frequency = torch.exp(torch.linspace(0, math.log(1000), dim // 2, device=time.device))
    angle = time.unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
