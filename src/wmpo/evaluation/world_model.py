"""How faithful imagination is: real actions replayed in the world model, against the real frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.noise import row_normal
from wmpo.protocols import Context, WorldModel


@dataclass(frozen=True, slots=True)
class Step:
    """One imagined chunk of a batch of replays, and what it was imagined from."""

    episodes: list[int]
    "Index of each row among the episodes given."
    chunk: int
    context: Context
    actions: Float[Tensor, "B K A"]
    noise: Float[Tensor, "B ..."]
    before: UInt8[Tensor, "B h w 3"]
    frames: UInt8[Tensor, "B F h w 3"]


@torch.no_grad()
def replay_steps(
    model: WorldModel, episodes: Sequence[Episode], chunk_size: int, *, seed: int, batch: int = 64
) -> Iterator[Step]:
    """Imagines the recorded actions chunk by chunk, episodes of like length together. Shorter ones of a batch are
    imagined to the length of the longest; what lies past their end means nothing."""
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i].actions))
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        start = torch.stack([torch.from_numpy(episodes[i].frames[0]) for i in rows])
        context, before = model.begin(start.unsqueeze(1)), start
        ids = [episodes[i].episode_id for i in rows]
        for chunk in range(max(len(episodes[i].actions) // chunk_size for i in rows)):
            actions = torch.stack([_chunk(episodes[i], chunk, chunk_size) for i in rows])
            noise = row_normal(seed, "replay", ids, chunk, model.noise_shape(chunk_size))
            frames, following = model.imagine(context, actions, noise)
            yield Step(rows, chunk, context, actions, noise, before, frames)
            context, before = following, frames[:, -1]


def replay(
    model: WorldModel, episodes: Sequence[Episode], chunk_size: int, *, seed: int, batch: int = 64
) -> list[UInt8[Tensor, "L h w 3"]]:
    """For each episode the imagined video of its recorded actions, from its first frame, as long as whole chunks last.

    Videos hold the start frame and then one frame every ``model.frame_stride`` actions.
    """
    videos = [[torch.from_numpy(episode.frames[:1])] for episode in episodes]
    for step in replay_steps(model, episodes, chunk_size, seed=seed, batch=batch):
        for i, frames in zip(step.episodes, step.frames, strict=True):
            if step.chunk < len(episodes[i].actions) // chunk_size:
                videos[i].append(frames)
    return [torch.cat(video) for video in videos]


def _chunk(episode: Episode, chunk: int, chunk_size: int) -> Tensor:
    """One action chunk; past the end the last action repeats (its frames are not used)."""
    index = torch.arange(chunk * chunk_size, (chunk + 1) * chunk_size).clamp(max=len(episode.actions) - 1)
    return torch.from_numpy(episode.actions)[index]


def replay_distance(
    model: WorldModel, episodes: Sequence[Episode], chunk_size: int, *, seed: int, max_chunks: int = 10
) -> tuple[list[float], float]:
    """Mean L1 distance to the real frames (in [-1, 1] units) at the last frame of each chunk, over the episodes that
    last so long; and the distance of the tokenizer's own reconstructions of the same frames."""
    sums = torch.zeros(max_chunks, 3)
    for episode, video in zip(episodes, replay(model, episodes, chunk_size, seed=seed), strict=True):
        chunks = min(max_chunks, len(episode.actions) // chunk_size)
        ends = torch.arange(1, chunks + 1)
        real = torch.from_numpy(episode.frames)[ends * chunk_size]
        imagined = video[ends * (chunk_size // model.frame_stride)]
        decoded = model.reconstruct(real)
        for column, other in enumerate((imagined, decoded)):
            sums[:chunks, column] += (other.float() - real.float()).abs().mean(dim=(1, 2, 3)) * (2 / 255)
        sums[:chunks, 2] += 1
    played = sums[sums[:, 2] > 0]
    distance = (played[:, 0] / played[:, 2]).tolist()
    return distance, float(played[:, 1].sum() / played[:, 2].sum())
