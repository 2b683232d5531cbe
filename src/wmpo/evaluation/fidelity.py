"""Fidelity of imagination by horizon: real actions replayed, compared with the real frames at the end of each chunk.

Beside distances of pixels: structure (SSIM), features of the world model's own tokenizer (as in LPIPS, but without
weights from elsewhere), whether things move as they really do (end-point error of optical flow), and whether the robot
is where it was sent (:mod:`wmpo.evaluation.hand`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.evaluation.hand import HandReader

Features = Callable[[UInt8[Tensor, "M h w 3"]], Float[Tensor, "M C y x"]]


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Means over the episodes that last so long, one number a chunk."""

    distance: list[float]
    "Mean absolute difference of pixels in [-1, 1]."
    psnr: list[float]
    "Decibels."
    ssim: list[float]
    "Structural similarity, 1 for equal pictures."
    feature_distance: list[float]
    "Squared distance of the tokenizer's features, each cell scaled to unit length: 0 to 4."
    flow_error: list[float]
    "End-point error of the optical flow over a chunk, in pixels, where something really moves."
    hand_error: list[float]
    "How far the robot is from where it really is, in actions (1: as far as an action of 1 moves)."
    num_episodes: list[int]


def fidelity(
    episodes: Sequence[Episode],
    videos: Sequence[UInt8[Tensor, "_ h w 3"]],
    features: Features,
    reader: HandReader,
    *,
    chunk_size: int,
    frame_stride: int,
    max_chunks: int = 10,
) -> Fidelity:
    """Of imagined replays (or any other videos at the world model's frame rate) of recorded episodes."""
    by_chunk: list[list[dict[str, float]]] = [[] for _ in range(max_chunks)]
    for episode, video in zip(episodes, videos, strict=True):
        chunks = min(max_chunks, len(episode.actions) // chunk_size)
        real = torch.from_numpy(episode.frames)[: chunks * chunk_size + 1 : chunk_size]
        imagined = video[: chunks * (chunk_size // frame_stride) + 1 : chunk_size // frame_stride]
        for chunk, measured in enumerate(_compared(real, imagined, features, reader)):
            by_chunk[chunk].append(measured)
    rows = [row for row in by_chunk if row]
    if not rows:
        raise ValueError(f"none of {len(episodes)} episodes lasts a chunk of {chunk_size} actions")
    means = {name: [_mean([measured[name] for measured in row]) for row in rows] for name in rows[0][0]}
    return Fidelity(**means, num_episodes=[len(row) for row in rows])


def _mean(values: list[float]) -> float:
    """Of those that are defined; NaN without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _compared(
    real: UInt8[Tensor, "L h w 3"], imagined: UInt8[Tensor, "L h w 3"], features: Features, reader: HandReader
) -> list[dict[str, float]]:
    """One record a chunk; frame 0, which both share, only begins the motion of the first."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # importing it takes a second

    apart = (real[1:].float() - imagined[1:].float()) / 127.5
    cells = feature_distance(real[1:], imagined[1:], features)
    pairs = [(r.numpy(), i.numpy()) for r, i in zip(real[1:], imagined[1:], strict=True)]
    errors, hands = flow_errors(real, imagined), reader.apart(real[1:], imagined[1:])
    return [
        {
            "distance": float(apart[i].abs().mean()),
            "psnr": float(peak_signal_noise_ratio(*pairs[i])),
            "ssim": float(structural_similarity(*pairs[i], channel_axis=2)),
            "feature_distance": float(cells[i]),
            "flow_error": errors[i],
            "hand_error": float(hands[i]),
        }
        for i in range(len(apart))
    ]


def feature_distance(
    a: UInt8[Tensor, "M h w 3"], b: UInt8[Tensor, "M h w 3"], features: Features
) -> Float[Tensor, " M"]:
    """Squared distance of features, each cell scaled to unit length; 0 to 4."""
    unit = [torch.nn.functional.normalize(features(frames).float(), dim=1) for frames in (a, b)]
    return (unit[0] - unit[1]).square().sum(dim=1).flatten(1).mean(dim=1)


MOVING = 0.5
"""Pixels of real motion over a chunk, above which a pixel counts as moving."""


def flow_errors(real: UInt8[Tensor, "L h w 3"], imagined: UInt8[Tensor, "L h w 3"]) -> list[float]:
    """End-point error of the flow from each frame to the next, over the pixels that move in reality; NaN where none
    does. Both flows begin at that video's own frame before, so an arm that is elsewhere but moves alike is no error."""
    errors = []
    for i in range(1, len(real)):
        true, seen = (_flow(video[i - 1], video[i]) for video in (real, imagined))
        moving = np.hypot(*true) > MOVING
        errors.append(float(np.hypot(*(true - seen))[moving].mean()) if moving.any() else float("nan"))
    return errors


def _flow(before: UInt8[Tensor, "h w 3"], after: UInt8[Tensor, "h w 3"]) -> Float[np.ndarray, "2 h w"]:
    from skimage.registration import optical_flow_tvl1

    grey = [frame.float().mean(dim=2).numpy() / 255 for frame in (before, after)]
    return optical_flow_tvl1(*grey, num_warp=5, num_iter=8)


def summary(measured: Fidelity) -> dict[str, Any]:
    """For JSON; what is not defined is None."""
    return {
        name: [None if isinstance(v, float) and np.isnan(v) else v for v in values]
        for name, values in asdict(measured).items()
    }
