"""What the OpenSora-class world model learns from: context frames and all frames of the chunk after them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.train.fit import Part
from wmpo.world_model import flow
from wmpo.world_model.opensora import OpenSoraWorldModel


class VideoClips:
    """Latents and actions of episodes, and windows over them that begin at any step. A window that is longer than its
    episode waits at the end of it."""

    def __init__(self, model: OpenSoraWorldModel, episodes: Sequence[Episode], chunk_size: int) -> None:
        self.model, self.chunk_size = model, chunk_size
        self.latents = [model.encode(torch.from_numpy(episode.frames)).cpu() for episode in episodes]
        self.actions = [torch.from_numpy(episode.actions).float() for episode in episodes]
        self._lengths = np.array([len(actions) for actions in self.actions])
        self._ends = np.cumsum(self._lengths)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Float[Tensor, "B T C y x"], Float[Tensor, "B K A"]]:
        """H context frames and those after the chunk's actions (T = H + K / stride), and the actions."""
        stride = self.model.frame_stride
        past = stride * np.arange(1 - self.model.config.num_context, 1)
        ahead = stride * np.arange(1, self.chunk_size // stride + 1)
        latents, actions = [], []
        for place in rng.integers(self._ends[-1], size=count):
            episode = int(np.searchsorted(self._ends, place, side="right"))
            length = int(self._lengths[episode])
            now = min(place - (self._ends[episode] - length), max(0, length - self.chunk_size))
            frames = np.clip(now + np.concatenate([past, ahead]), 0, length)
            latents.append(self.latents[episode][frames])
            actions.append(self.actions[episode][np.minimum(now + np.arange(self.chunk_size), length - 1)])
        return torch.stack(latents), torch.stack(actions)

    def batch(
        self, rng: np.random.Generator, generator: torch.Generator, count: int, *, unroll: int, context_noise: float
    ) -> Part:
        """Flow matching on ``count`` windows. ``unroll`` and ``context_noise`` are those of the small world model: here
        contexts are recorded ones, and their noise is a setting of the model, as in the paper."""
        latents, actions = self.sample(rng, count)
        noise = torch.randn(latents.shape, generator=generator)
        time = flow.logit_normal_time(count, generator)
        device = self.model.action_low.device

        def loss(rows: slice) -> Tensor:
            fresh, at = noise[rows].to(device), time[rows].to(device)
            return self.model(latents[rows].to(device), actions[rows], fresh, at).mean()

        return loss
