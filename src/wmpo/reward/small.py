"""A small convolutional success classifier over a short window of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wmpo.nn import ResidualConv, autocast, best_device, check_frames, to_unit
from wmpo.views import ONE_VIEW


@dataclass(frozen=True, kw_only=True)
class SmallRewardConfig:
    """Sizes of the small success classifier."""

    window: int = 2
    "Consecutive frames in a clip (W)."
    channels: int = 48
    "Width of the convolutions."
    dropout: float = 0.2
    "Dropout before the head."

    def build(
        self, image_size: int, views: tuple[str, ...] = ONE_VIEW, instructions: tuple[str, ...] = ()
    ) -> SmallReward:
        return SmallReward(self, image_size, views, instructions).to(best_device())

    def restore(self, about: dict[str, Any]) -> SmallReward:
        """An untrained classifier with the threshold of another one."""
        views, told = tuple(about.get("views", ONE_VIEW)), tuple(about.get("instructions", ()))  # older files: one
        model = self.build(about["image_size"], views, told)
        model.threshold = about["threshold"]
        return model


HIDDEN = -3
"""Layers of the network after the features to which a task is added."""


class SmallReward(nn.Module):
    """A :class:`wmpo.protocols.RewardModel`. Calibration sets ``threshold`` (a logit); it is saved with the weights.

    Of several tasks, each has a vector by which the features are judged, and a logit ``levels`` from which its own are
    counted. Where there is one task, sentences do not matter.
    """

    task: nn.Embedding
    levels: Tensor

    def __init__(
        self,
        config: SmallRewardConfig,
        image_size: int,
        views: tuple[str, ...] = ONE_VIEW,
        instructions: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.views, self.instructions = views, instructions
        self.config, self.window, self.image_size, self.threshold = config, config.window, image_size, 0.0
        c = config.channels
        self.net = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12 * config.window, c, 3, stride=2, padding=1),
            ResidualConv(c),
            nn.Conv2d(c, 2 * c, 3, stride=2, padding=1),
            ResidualConv(2 * c),
            nn.Conv2d(2 * c, 2 * c, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * c * (image_size // 16) ** 2 * len(views), 128),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(128, 1),
        )
        if len(instructions) > 1:
            self.task = nn.Embedding(len(instructions), 128)
            self.register_buffer("levels", torch.zeros(len(instructions)))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub does not know it

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {
            "config": asdict(self.config), "image_size": self.image_size, "views": self.views,
            "instructions": self.instructions, "threshold": self.threshold,
        }  # fmt: skip

    def forward(self, clips: UInt8[Tensor, "M W h w 3"], instructions: Sequence[str]) -> Float[Tensor, " M"]:
        """Logits, on the CPU. Raises ValueError for frames of another size, and for a sentence that is none of several
        tasks'."""
        check_frames(clips, self.image_size, self.views, "success classifier")
        device = next(self.parameters()).device
        images = to_unit(clips.to(device)).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        task = self._places(instructions).to(device) if len(self.instructions) > 1 else None
        with autocast(device):
            features = self.net[:HIDDEN](images)
            logits = self.net[HIDDEN:](features if task is None else features + self.task(task)).float().squeeze(1)
        return (logits if task is None else logits - self.levels[task]).cpu()

    def _places(self, instructions: Sequence[str]) -> Int[Tensor, " M"]:
        """Of the tasks that these sentences name."""
        if unknown := set(instructions) - set(self.instructions):
            raise ValueError(f"{unknown.pop()!r} is none of this classifier's tasks: {', '.join(self.instructions)}")
        return torch.tensor([self.instructions.index(sentence) for sentence in instructions])
