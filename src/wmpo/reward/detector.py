"""Success while frames arrive: a sliding window, scored incrementally.

Scoring window by window gives the same first solved frame as scanning the finished video, so imagined episodes can end
like real ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from wmpo.protocols import RewardModel


def frames_seen(window: int, every: int, num_frames: int) -> list[int]:
    """Places in a chunk of ``num_frames`` of those that windows ending at frames ``every``, 2 ``every``, ... show."""
    ends = range(every, num_frames + 1, every)
    return [end - back for end in ends for back in range(min(every, window), 0, -1)]


class Detector:
    """Follows a batch of videos, each of the task that its sentence names. Windows that reach before the first frame
    repeat it.

    ``every``: only windows that end at every so many frames are scored, and of the frames only :func:`frames_seen` are
    given. Success that is gone again by then is missed; with 1 nothing is.
    """

    def __init__(
        self, model: RewardModel, first: UInt8[Tensor, "B h w 3"], instructions: Sequence[str], every: int = 1
    ) -> None:
        self._model, self._instructions, self.every = model, instructions, every
        self._past = first.unsqueeze(1).repeat(1, model.window - 1, 1, 1, 1)

    def update(
        self, frames: UInt8[Tensor, "R F h w 3"], rows: Int[Tensor, " R"]
    ) -> tuple[Int[Tensor, " R"], Float[Tensor, "R n"]]:
        """For the given rows' next frames: the 1-based index of the first solved one (0: none), and all logits."""
        window, step = self._model.window, min(self.every, self._model.window)
        seen = torch.cat([self._past[rows], frames], dim=1)
        clips = torch.stack([seen[:, i : i + window] for i in range(step - 1, frames.shape[1], step)], dim=1)
        told = [self._instructions[row] for row in rows.tolist() for _ in range(clips.shape[1])]
        logits = self._model(clips.flatten(0, 1), told).unflatten(0, (len(frames), -1))
        if not torch.isfinite(logits).all():
            raise FloatingPointError("the reward model gave NaN or infinite scores; its weights are damaged")
        if window > 1:
            self._past[rows] = seen[:, -(window - 1) :]
        return self.every * first_above(logits, self._model.threshold), logits


def first_above(logits: Float[Tensor, "R F"], threshold: float) -> Int[Tensor, " R"]:
    """1-based index of the first frame whose logit exceeds the threshold, 0 where none does."""
    above = logits > threshold
    return torch.where(above.any(dim=1), above.int().argmax(dim=1) + 1, 0)


def show_success(
    model: RewardModel, videos: Sequence[UInt8[Tensor, "_ h w 3"]], instructions: Sequence[str]
) -> Bool[np.ndarray, " n"]:
    """Of each video, whether any frame after the first is called solved."""
    scores = (score_video(model, video, told) for video, told in zip(videos, instructions, strict=True))
    return np.array([bool((logits > model.threshold).any()) for logits in scores])


@torch.no_grad()
def score_video(model: RewardModel, video: UInt8[Tensor, "L h w 3"], instruction: str) -> Float[Tensor, " F"]:
    """Logits of all frames after the first, by the same windows."""
    detector = Detector(model, video[:1], (instruction,))
    _, logits = detector.update(video[1:].unsqueeze(0), torch.zeros(1, dtype=torch.long))
    return logits[0]
