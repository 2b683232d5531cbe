"""Is this imagined frame made up? Three signs that need no real video, and how well they tell (mmbench2, 2606.27326).

Each is a mean absolute difference of pixels in [-1, 1]. Dividing it by how much the picture moved, so that a moving arm
alone is no alarm, is measured too; it tells less here (dev/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.evaluation.statistics import auroc
from wmpo.evaluation.world_model import replay, replay_steps
from wmpo.nn import picture_distance
from wmpo.protocols import WorldModel

Videos = Sequence[UInt8[Tensor, "_ h w 3"]]
SIGNS = ("round_trip", "instability", "variance")
USED = ("instability", "variance")
"""Those that are combined: pictures that are composed of moved pixels survive the tokenizer whether true or not."""
STILL = 0.01
"""Motion below this is noise: nothing is divided by less."""
LEFT = 1.3
"""Imagination has left reality where its picture is this many times as far from the real one as the tokenizer's own
reconstruction of that is."""


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Of the last frames of imagined chunks, all episodes one after the other."""

    round_trip: Float[np.ndarray, " n"]
    "Change by encoding and decoding once more: pictures far from all that the tokenizer has seen do not survive it."
    instability: Float[np.ndarray, " n"]
    "Difference to the same chunk integrated in twice as many steps: a flow that bends does not know where to go."
    variance: Float[np.ndarray, " n"]
    "Difference to a second dream: the same episode imagined from the start under other noise, in twice as many steps."
    motion: Float[np.ndarray, " n"]
    "Difference to the chunk before."
    episode: list[int]
    chunk: list[int]

    def combined(self) -> Float[np.ndarray, " n"]:
        """Mean of the logarithms, each scaled to unit spread. Nothing is fitted to what really happened."""
        logs = [np.log(getattr(self, name) + 1e-4) for name in USED]
        return np.mean([(values - values.mean()) / (values.std() + 1e-9) for values in logs], axis=0)


def signs(
    model: WorldModel, finer: WorldModel, episodes: Sequence[Episode], videos: Videos, chunk_size: int, *, seed: int
) -> Signs:
    """Of the replays ``videos``, made with ``seed``; ``finer`` is the same model with twice the sampling steps."""
    others = replay(finer, episodes, chunk_size, seed=seed + 1)
    found: dict[tuple[int, int], dict[str, float]] = {}
    for step in replay_steps(model, episodes, chunk_size, seed=seed):
        last, at = step.frames[:, -1], (step.chunk + 1) * (chunk_size // model.frame_stride)
        smooth = finer.imagine(step.context, step.actions, step.noise)[0][:, -1]
        again = torch.stack([others[i][min(at, len(others[i]) - 1)] for i in step.episodes])
        pairs = {"round_trip": model.reconstruct(last), "instability": smooth, "variance": again, "motion": step.before}
        measured = {name: picture_distance(last, other).tolist() for name, other in pairs.items()}
        for row, i in enumerate(step.episodes):
            if at < len(videos[i]):
                found[i, step.chunk] = {name: values[row] for name, values in measured.items()}
    keys = sorted(found)
    arrays = {name: np.array([found[key][name] for key in keys]) for name in (*SIGNS, "motion")}
    return Signs(**arrays, episode=[i for i, _ in keys], chunk=[chunk for _, chunk in keys])


def left_reality(
    model: WorldModel, episodes: Sequence[Episode], videos: Videos, found: Signs, chunk_size: int
) -> Bool[np.ndarray, " n"]:
    """Whether imagination had left reality at the end of each of these chunks."""
    at = [(i, chunk + 1) for i, chunk in zip(found.episode, found.chunk, strict=True)]
    real = torch.stack([torch.from_numpy(episodes[i].frames)[chunk * chunk_size] for i, chunk in at])
    imagined = torch.stack([videos[i][chunk * (chunk_size // model.frame_stride)] for i, chunk in at])
    return (picture_distance(imagined, real) > LEFT * picture_distance(model.reconstruct(real), real)).numpy()


def areas(found: Signs, truth: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """AUROC of each sign, alone and divided by motion, and of those used together: the chance that a chunk that left
    reality scores higher than one that did not. ``chunk`` is that of its number alone, which a sign must beat."""
    moved = np.maximum(found.motion, STILL)
    alone = {name: auroc(getattr(found, name), truth) for name in SIGNS}
    by_motion = {f"{name}_by_motion": auroc(getattr(found, name) / moved, truth) for name in SIGNS}
    late = auroc(np.array(found.chunk, dtype=float), truth)
    return alone | by_motion | {"combined": auroc(found.combined(), truth), "chunk": late}
