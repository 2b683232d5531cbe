"""A small convolutional success classifier over a short window of frames."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
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

    def build(self, image_size: int, views: tuple[str, ...] = ONE_VIEW) -> SmallReward:
        return SmallReward(self, image_size, views).to(best_device())

    def restore(self, about: dict[str, Any]) -> SmallReward:
        """An untrained classifier with the threshold of another one."""
        model = self.build(about["image_size"], tuple(about.get("views", ONE_VIEW)))  # older files have one
        model.threshold = about["threshold"]
        return model


class SmallReward(nn.Module):
    """A :class:`wmpo.protocols.RewardModel`. Calibration sets ``threshold`` (a logit); it is saved with the weights."""

    def __init__(self, config: SmallRewardConfig, image_size: int, views: tuple[str, ...] = ONE_VIEW) -> None:
        super().__init__()
        self.views = views
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
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub does not know it

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {
            "config": asdict(self.config), "image_size": self.image_size, "views": self.views,
            "threshold": self.threshold,
        }  # fmt: skip

    def forward(self, clips: UInt8[Tensor, "M W h w 3"]) -> Float[Tensor, " M"]:
        """Logits, on the CPU. Raises ValueError for frames of another size."""
        check_frames(clips, self.image_size, self.views, "success classifier")
        device = next(self.parameters()).device
        images = to_unit(clips.to(device)).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            logits = self.net(images)
        return logits.float().squeeze(1).cpu()
