"""VideoMAE as the success classifier, the paper's reward model (arXiv 2511.09515, 2203.12602), behind ``transformers``.

The score is one logit, the difference of the two class logits, in training, calibration and imagination alike; the
published code thresholds the sigmoid of one class in one place and the softmax of both in another, so that its
thresholds (0.62 to 0.96) do not carry over. Calibration sets ``threshold``; it is saved with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors.torch import save
from torch import Tensor, nn

from wmpo.checkpoint import write_atomic, write_json
from wmpo.hf import Headers, WeightFolder, compare, libraries
from wmpo.nn import autocast, best_device
from wmpo.views import ONE_VIEW

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels, as in the preprocessor of MCG-NJU/videomae-base."""
HEADS = {"classifier.weight", "classifier.bias", "fc_norm.weight", "fc_norm.bias"}
"""Parameters that a pretrained checkpoint does not have: they begin anew."""
_PUBLISHED = ((".q_bias", ".query.bias"), (".v_bias", ".value.bias"))
"""Names in files, and in the network of transformers 5."""


@dataclass(frozen=True, kw_only=True)
class VideoMAERewardConfig:
    """Where the weights are."""

    folder: str
    "Local folder of MCG-NJU/videomae-base, or of a classifier that ``save`` wrote."
    window: int = 8
    "Consecutive frames in a clip (W)."
    batch_size: int = 64
    "Clips that are judged at once; changes memory, not results."

    def check_weights(self) -> None:
        """Raises ValueError, naming value and fix, before anything is played, when it cannot be built so."""
        folder = Headers(self.folder)
        with torch.device("meta"):
            self._net(folder)
        _threshold(folder)

    def _net(self, folder: WeightFolder) -> nn.Module:
        """With the folder's weights."""
        content = folder.json("config.json")
        if content.get("model_type") != "videomae":
            raise ValueError(f"{folder.path / 'config.json'} is of a {content.get('model_type')}, not a videomae")
        if self.batch_size < 1:
            raise ValueError(f"reward.batch_size {self.batch_size} must be at least 1")
        if self.window < 1 or self.window % content.get("tubelet_size", 2):
            raise ValueError(
                f"reward.window {self.window} must be a multiple of {content.get('tubelet_size', 2)}, the frames that "
                "VideoMAE reads as one"
            )
        with libraries():
            from transformers import VideoMAEConfig, VideoMAEForVideoClassification
        settings = VideoMAEConfig(**content | {"num_frames": self.window, "num_labels": 2})
        net = VideoMAEForVideoClassification(settings)
        _load(net, folder)
        return net

    def restore(self, about: dict[str, Any]) -> VideoMAEReward:
        """The checkpoint with the threshold of a classifier that was trained from it."""
        model = self.build(views=tuple(about.get("views", ONE_VIEW)))  # older files have one
        model.threshold = about["threshold"]
        return model

    def build(self, image_size: int = 224, views: tuple[str, ...] = ONE_VIEW) -> VideoMAEReward:
        """Reads the folder; frames of any size are resized, those of several cameras squeezed into one square. Raises
        ValueError that names what is missing or foreign."""
        folder = WeightFolder(self.folder)
        model = VideoMAEReward(self, self._net(folder), views)
        model.threshold = _threshold(folder)
        return model.to(best_device()).eval()


def _load(net: nn.Module, folder: WeightFolder) -> None:
    state: dict[str, Tensor] = {}
    for _, tensors in folder.shards():
        state |= {name: t for name, t in tensors.items() if not name.startswith(("decoder.", "encoder_to_decoder."))}
    state.pop("mask_token", None)  # like the decoder, it is for masked pretraining only
    for published, here in _PUBLISHED:
        state = {name.replace(published, here): tensor for name, tensor in state.items()}
    own = net.state_dict()
    fresh = HEADS & own.keys() - state.keys()
    if fresh and not HEADS.isdisjoint(state):
        raise ValueError(f"{folder.path} has a part of a classifier only: {', '.join(sorted(fresh))} are missing")
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in fresh}
    compare(shapes, {name: tuple(tensor.shape) for name, tensor in state.items()}, folder.path)
    net.load_state_dict(own | state)


def _threshold(folder: WeightFolder) -> float:
    value: Any = folder.json("wmpo.json", optional=True).get("threshold", 0.0)
    if not isinstance(value, int | float):
        raise ValueError(f"{folder.path / 'wmpo.json'}: threshold {value!r} must be a number")
    return float(value)


class VideoMAEReward(nn.Module):
    """A :class:`wmpo.protocols.RewardModel`. Of several tasks, what the pictures show must tell which it is."""

    net: Any
    mean: Tensor
    std: Tensor

    def __init__(self, config: VideoMAERewardConfig, net: nn.Module, views: tuple[str, ...] = ONE_VIEW) -> None:
        super().__init__()
        self.views = views
        self.config, self.net, self.window, self.threshold = config, net, config.window, 0.0
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {"config": asdict(self.config), "views": self.views, "threshold": self.threshold}

    def pixels(self, clips: UInt8[Tensor, "M W h w 3"]) -> Float[Tensor, "M W 3 s s"]:
        """Normalised pictures of the network's size."""
        size = self.net.config.image_size
        images = clips.to(self.mean.device).movedim(-1, 2).float().flatten(0, 1)
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return ((images / 255 - self.mean) / self.std).unflatten(0, clips.shape[:2])

    def forward(self, clips: UInt8[Tensor, "M W h w 3"], instructions: Sequence[str]) -> Float[Tensor, " M"]:
        """Logits, on the CPU. Raises ValueError for clips of another length."""
        if clips.shape[1] != self.window:
            raise ValueError(f"clips have {clips.shape[1]} frames, but this classifier was built for {self.window}")
        return torch.cat([self._judge(part) for part in clips.split(self.config.batch_size)])

    def _judge(self, clips: UInt8[Tensor, "M W h w 3"]) -> Float[Tensor, " M"]:
        pixels = self.pixels(clips)
        with autocast(pixels.device):
            both = self.net(pixel_values=pixels).logits
        return (both[:, 1].float() - both[:, 0].float()).cpu()

    def save(self, folder: str | Path) -> None:
        """Writes a folder that ``build`` and ``transformers`` can read; the threshold stands in ``wmpo.json``."""
        folder = Path(folder)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.net.state_dict().items()}
        for published, here in _PUBLISHED:
            state = {name.replace(here, published): tensor for name, tensor in state.items()}
        write_atomic(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
        content = self.net.config.to_dict()
        write_json(folder / "config.json", content | {"architectures": ["VideoMAEForVideoClassification"]})
        write_json(folder / "wmpo.json", {"threshold": self.threshold})
