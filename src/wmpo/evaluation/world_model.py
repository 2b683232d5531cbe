"""How faithful imagination is: real actions replayed in the world model, against the real frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.protocols import WorldModel
from wmpo.rng import row_normal


@torch.no_grad()
def replay(
    model: WorldModel, episodes: Sequence[Episode], chunk_size: int, *, seed: int, batch: int = 64
) -> list[UInt8[Tensor, "L h w 3"]]:
    """For each episode the imagined video of its recorded actions, from its first frame, as long as whole chunks last.

    Videos hold the start frame and then one frame every ``model.frame_stride`` actions.
    """
    videos: list[Tensor] = []
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i].actions))
    done: dict[int, Tensor] = {}
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        for i, video in zip(rows, _replay(model, [episodes[i] for i in rows], chunk_size, seed), strict=True):
            done[i] = video
    videos = [done[i] for i in range(len(episodes))]
    return videos


def _replay(model: WorldModel, episodes: list[Episode], chunk_size: int, seed: int) -> list[Tensor]:
    start = torch.stack([torch.from_numpy(e.frames[0]) for e in episodes])
    lengths = [len(e.actions) // chunk_size for e in episodes]
    context, frames = model.begin(start.unsqueeze(1)), [start.unsqueeze(1)]
    ids = [e.episode_id for e in episodes]
    for chunk in range(max(lengths)):
        actions = torch.stack([_chunk(e, chunk, chunk_size) for e in episodes])
        noise = row_normal(seed, "replay", ids, chunk, model.noise_shape(chunk_size))
        imagined, context = model.imagine(context, actions, noise)
        frames.append(imagined)
    video = torch.cat(frames, dim=1)
    per_chunk = chunk_size // model.frame_stride
    return [video[i, : 1 + length * per_chunk] for i, length in enumerate(lengths)]


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
