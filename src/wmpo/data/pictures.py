"""Pictures of any program as the frames that networks here take."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

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


def resize(frames: UInt8[np.ndarray, "L h w 3"], size: int | None) -> UInt8[np.ndarray, "L H W 3"]:
    """To squares of ``size`` pixels (None: as they are), smoothed against aliasing.

    Pictures that are not square are squeezed, as nothing that a policy needs to see may be cut off. Pictures that have
    the size already stay as they are, bit for bit.
    """
    if size is None or frames.shape[1:3] == (size, size):
        return frames
    small = (Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS) for frame in frames)
    return np.stack([np.asarray(picture) for picture in small])
