"""Windows over recorded episodes, as the learners want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from wmpo.data.episode import Episode


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkClips:
    """All (frame, action chunk) pairs of some episodes: what cloning trains on. Chunks begin at every step."""

    frame: UInt8[Tensor, "M h w 3"]
    instruction: tuple[str, ...]
    actions: Float[Tensor, "M K A"]


def chunk_clips(episodes: Sequence[Episode], chunk_size: int) -> ChunkClips:
    """Chunks that would run past the end of an episode repeat its last action."""
    frames, actions, instruction = [], [], []
    for episode in episodes:
        length = len(episode.actions)
        index = np.minimum(np.arange(length)[:, None] + np.arange(chunk_size), length - 1)
        frames.append(episode.frames[:length])
        actions.append(episode.actions[index])
        instruction += [episode.instruction] * length
    return ChunkClips(
        frame=torch.from_numpy(np.concatenate(frames)),
        instruction=tuple(instruction),
        actions=torch.from_numpy(np.concatenate(actions)),
    )


def shift(
    frames: UInt8[Tensor, "M h w C"], offsets: Int[Tensor, "M 2"], limit: int, num_views: int = 1
) -> UInt8[Tensor, "M h w C"]:
    """Moves each picture by up to ``limit`` pixels, repeating its border (DrQ, arXiv 2004.13649). Where it is made of
    several views, each moves in its own place."""
    m, h, w = len(frames), frames.shape[1], frames.shape[2] // num_views
    rows = (torch.arange(h) + offsets[:, :1] - limit).clamp(0, h - 1)  # (M, h)
    columns = (torch.arange(w) + offsets[:, 1:] - limit).clamp(0, w - 1)
    columns = (columns.unsqueeze(1) + w * torch.arange(num_views).unsqueeze(1)).flatten(1)
    return frames[torch.arange(m)[:, None, None], rows[:, :, None], columns[:, None, :]]
