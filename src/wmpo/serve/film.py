"""Frames for the browser: a video as one PNG picture, frames below each other, with the classifier's score of each."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Film:
    """``picture`` is a data URL; ``logits`` has one number a frame, None where the classifier gave none (a start)."""

    picture: str
    num_frames: int
    logits: list[float | None]


def film(frames: UInt8[Tensor, "L h w 3"], logits: Sequence[float]) -> Film:
    """Lossless, as 64 pixels blurred by a video codec are no longer what a policy sees. ``logits`` are of the last
    frames."""
    content = io.BytesIO()
    Image.fromarray(frames.flatten(0, 1).numpy()).save(content, format="png", compress_level=1)
    scores = [None] * (len(frames) - len(logits)) + [round(float(x), 4) for x in logits]
    return Film(f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}", len(frames), scores)
