"""Pictures of any program as the frames that networks here take."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wmpo.data.damage import DatasetError, require

LARGEST = 2**24
"""Pixels of one picture: a few damaged bytes could claim any number."""


def decode(files: Sequence[bytes]) -> UInt8[np.ndarray, "L h w 3"]:
    """PNG or JPEG files of one size. Raises whatever a damaged picture makes the decoder raise."""
    frames = []
    for content in files:
        picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        if picture.width * picture.height > LARGEST:
            raise ValueError(f"a picture of {picture.width}x{picture.height} pixels")
        frames.append(np.asarray(picture.convert("RGB")))
    return np.stack(frames)


def side_by_side(
    views: Sequence[UInt8[np.ndarray, "_ _ _ 3"]], names: Sequence[str], size: int | None, path: Path
) -> UInt8[np.ndarray, "L H W 3"]:
    """The pictures of several cameras as one, from the left; each becomes a square of ``size`` pixels before (None: as
    it is). Raises DatasetError about ``path`` where they differ in number or size."""
    counts = [len(view) for view in views]
    require(len(set(counts)) == 1, path, f"the cameras {', '.join(names)} have {counts} pictures")
    resized = [resize(view, size) for view in views]
    shapes = [f"{view.shape[1]}x{view.shape[2]}" for view in resized]
    if len(set(shapes)) > 1:
        raise DatasetError(f"{path}: the cameras {', '.join(names)} give {', '.join(shapes)} pixels; give --image-size")
    return resized[0] if len(resized) == 1 else np.concatenate(resized, axis=2)


def view_names(keys: Sequence[str]) -> tuple[str, ...]:
    """Names of cameras from those of columns: their last part, or all of it where that is not enough to tell them
    apart."""
    plain = [key.removeprefix("observation.").removeprefix("images.") for key in keys]
    short = [name.rsplit("/", 1)[-1] for name in plain]
    return tuple(short if len(set(short)) == len(short) else [name.replace("/", "_") for name in plain])


def resize(frames: UInt8[np.ndarray, "L h w 3"], size: int | None) -> UInt8[np.ndarray, "L H W 3"]:
    """To squares of ``size`` pixels (None: as they are), smoothed against aliasing.

    Pictures that are not square are squeezed, as nothing that a policy needs to see may be cut off. Pictures that have
    the size already stay as they are, bit for bit.
    """
    if size is None or frames.shape[1:3] == (size, size):
        return frames
    small = (Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS) for frame in frames)
    return np.stack([np.asarray(picture) for picture in small])
