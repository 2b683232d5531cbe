"""Videos and picture strips for the report: small frames, enlarged without blur."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

DIVIDER = 1  # width, in pixels before enlarging, of the line between two videos shown side by side
GREY = 128  # legible on white and on black paper


def write_video(path: Path, frames: UInt8[np.ndarray, "L h w 3"], fps: int, scale: int = 4) -> None:
    """Writes H.264 that browsers play. Pixels are repeated, not interpolated, so that what a policy saw stays visible.

    The file appears under its name only when it is whole.
    """
    _check(frames)
    if fps < 1 or scale < 1:
        raise ValueError(f"fps and scale must be at least 1, not fps={fps}, scale={scale}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        _encode(unfinished, _even(_enlarge(frames, scale)), fps)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _encode(path: Path, frames: UInt8[np.ndarray, "L h w 3"], fps: int) -> None:
    # faststart puts the index first: a browser can show the first frame before it has read the whole file
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"  # the only layout that every browser decodes
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def side_by_side(
    left: UInt8[np.ndarray, "L1 h w1 3"], right: UInt8[np.ndarray, "L2 h w2 3"]
) -> UInt8[np.ndarray, "L h w 3"]:
    """One video of two of the same height; the shorter one waits on its last frame."""
    _check(left)
    _check(right)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"videos of heights {left.shape[1]} and {right.shape[1]} cannot stand side by side")
    length = max(len(left), len(right))
    divider = np.full((length, left.shape[1], DIVIDER, 3), GREY, dtype=np.uint8)
    return np.concatenate([_last_to(left, length), divider, _last_to(right, length)], axis=2)


def strip(
    frames_rows: Sequence[UInt8[np.ndarray, "L h w 3"]], labels: Sequence[str], columns: int, scale: int = 2
) -> Image.Image:
    """A picture with one row a video, e.g. real over imagined: ``columns`` frames of each, equally spaced in time.

    The background is transparent and the labels grey, so that it can lie on a white or a black page.
    """
    if not frames_rows or len(frames_rows) != len(labels) or columns < 1:
        raise ValueError(
            f"a strip needs a label for each row: {len(frames_rows)} rows, {len(labels)} labels, {columns=}"
        )
    for frames in frames_rows:
        _check(frames)
    rows = [_enlarge(f[np.linspace(0, len(f) - 1, columns).round().astype(int)], scale) for f in frames_rows]
    gap, font = 2 * scale, ImageFont.load_default(size=6.5 * scale)
    margin = int(max(font.getlength(label) for label in labels)) + 2 * gap
    width = margin + columns * (max(row.shape[2] for row in rows) + gap) - gap
    picture = Image.new("RGBA", (width, sum(row.shape[1] + gap for row in rows) - gap), (0, 0, 0, 0))
    draw, top = ImageDraw.Draw(picture), 0
    for row, label in zip(rows, labels, strict=True):
        draw.text((0, top + row.shape[1] / 2), label, fill=(GREY, GREY, GREY, 255), font=font, anchor="lm")
        for column, frame in enumerate(row):
            picture.paste(Image.fromarray(frame), (margin + column * (row.shape[2] + gap), top))
        top += row.shape[1] + gap
    return picture


def _check(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a video is uint8 [L, h, w, 3] with at least one frame, not {frames.dtype} {frames.shape}")


def _enlarge(frames: UInt8[np.ndarray, "L h w 3"], scale: int) -> UInt8[np.ndarray, "L H W 3"]:
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def _even(frames: UInt8[np.ndarray, "L h w 3"]) -> UInt8[np.ndarray, "L H W 3"]:
    """yuv420p stores colour for 2x2 pixels: an odd border is repeated once."""
    _, h, w, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")


def _last_to(frames: UInt8[np.ndarray, "L h w 3"], length: int) -> UInt8[np.ndarray, "M h w 3"]:
    return frames[np.minimum(np.arange(length), len(frames) - 1)]
