"""The imagined environment: a world model and a reward model behind the interface of a real one."""

from __future__ import annotations

import time

import torch
from jaxtyping import Float
from torch import Tensor

from wmpo.envs.clock import Clock
from wmpo.protocols import RewardModel, WorldModel
from wmpo.reward.detector import Detector
from wmpo.rng import row_normal
from wmpo.types import ChunkStep, Observation, Starts


class ImaginedEnv:
    """A :class:`wmpo.protocols.ChunkEnv`. Needs ``starts.frames``; no real episode is played here.

    Args:
        share_noise: siblings of a group get the same world-model noise, so that only their actions tell them apart.
    """

    def __init__(
        self,
        world_model: WorldModel,
        reward_model: RewardModel,
        *,
        chunk_size: int,
        max_chunks: int,
        seed: int,
        share_noise: bool = False,
    ) -> None:
        self.world_model, self.reward_model = world_model, reward_model
        self.chunk_size, self.max_chunks = chunk_size, max_chunks
        self.seed, self.share_noise = seed, share_noise
        self.seconds = {"world_model": 0.0, "reward": 0.0}

    def reset(self, starts: Starts) -> Observation:
        """Begins at the newest of the given frames."""
        if starts.frames is None:
            raise ValueError("imagined episodes begin at recorded frames, but these starts have none")
        self._clock = Clock(len(starts), self.chunk_size, self.max_chunks)
        self._keys = (starts.group if self.share_noise else starts.episode_id).tolist()
        self._last = starts.frames[:, -1]
        self._context, self._rows = self.world_model.begin(starts.frames), torch.arange(len(starts))
        self._detector = Detector(self.reward_model, self._last)
        return Observation(frame=self._last, instruction=starts.instruction)

    @torch.no_grad()
    def step(self, chunk: Float[Tensor, "B K A"]) -> ChunkStep:
        """Imagines one chunk in the rows that still play; the context of finished rows is dropped."""
        rows = self._clock.active
        if len(rows) < len(self._rows):
            kept = torch.isin(self._rows, rows).nonzero().squeeze(1)
            self._context, self._rows = self.world_model.select(self._context, kept), rows
        begun = time.perf_counter()
        shape = self.world_model.noise_shape(self.chunk_size)
        noise = row_normal(self.seed, "imagine", [self._keys[r] for r in rows.tolist()], self._clock.chunk, shape)
        imagined, self._context = self.world_model.imagine(self._context, chunk[rows], noise)
        decoded = time.perf_counter()
        first, _ = self._detector.update(imagined, rows)
        self.seconds["world_model"] += decoded - begun
        self.seconds["reward"] += time.perf_counter() - decoded
        frames = self._last.unsqueeze(1).repeat(1, imagined.shape[1], 1, 1, 1)
        frames[rows] = imagined
        self._last = frames[:, -1]
        solved_after = torch.zeros(len(self._last), dtype=torch.long)
        solved_after[rows] = first * self.world_model.frame_stride
        return self._clock.tick(frames, solved_after)
