"""When episodes end: the one clock of real and imagined environments."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from wmpo.types import ChunkStep


class Clock:
    """Counts executed actions and freezes finished rows.

    ``tick`` takes, for every row, after how many actions *of this chunk* the task was solved (1..K), or 0 if it was
    not. ``begun`` chunks of a row's time limit are over already.
    """

    def __init__(self, num_rows: int, chunk_size: int, max_chunks: int, begun: Int[Tensor, " B"] | None = None) -> None:
        self.chunk_size = chunk_size
        self.max_chunks = max_chunks
        self.chunk = 0
        self._limit = max_chunks - (torch.zeros(num_rows, dtype=torch.long) if begun is None else begun)
        self.finished = torch.zeros(num_rows, dtype=torch.bool)

    @property
    def active(self) -> Int[Tensor, " R"]:
        """Indices of the rows that still play."""
        return (~self.finished).nonzero().squeeze(1)

    def tick(self, frames: UInt8[Tensor, "B F h w 3"], solved_after: Int[Tensor, " B"]) -> ChunkStep:
        """Ends the rows that were solved or that used up their chunks."""
        playing = ~self.finished
        solved = playing & (solved_after > 0)
        self.chunk += 1
        out_of_time: Bool[Tensor, " B"] = playing & ~solved & (self.chunk >= self._limit)
        steps = torch.where(solved, solved_after, torch.full_like(solved_after, self.chunk_size))
        self.finished = self.finished | solved | out_of_time
        return ChunkStep(frames=frames, terminated=solved, truncated=out_of_time, steps=steps * playing)
