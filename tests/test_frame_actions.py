"""Frame-level action control, and what a world model is told without it: one and the same for all frames of a chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finished_run import recorded
from miniatures import ACTIONS, CHUNK, SIZE, small_world_model, some_starts

from wmpo.data.episode import Episode
from wmpo.train.frame_clips import FrameClips
from wmpo.world_model.small import SmallWorldModel

STRIDE = 2


def imagined(model: SmallWorldModel, chunk: torch.Tensor) -> torch.Tensor:
    noise = torch.zeros(1, *model.noise_shape(CHUNK))
    return model.imagine(model.begin(some_starts(1, frames=1).frames), chunk, noise)[0]


@pytest.mark.parametrize("own", [True, False])
def test_only_with_it_the_order_of_actions_in_a_chunk_matters(own: bool) -> None:
    model = small_world_model(frame_stride=STRIDE, frame_actions=own)
    chunk = torch.linspace(-0.9, 0.9, CHUNK * ACTIONS).view(1, CHUNK, ACTIONS)
    assert torch.equal(imagined(model, chunk), imagined(model, chunk.flip(1))) != own
    assert not torch.equal(imagined(model, chunk), imagined(model, chunk.flip(1) + 0.5))


def test_without_it_clips_have_the_mean_of_each_chunk_and_the_same_sums_at_its_ends() -> None:
    whole = recorded(0, 3 * CHUNK - 1, size=SIZE)
    episode = Episode(
        frames=whole.frames, actions=whole.actions[:, :ACTIONS], solved_at=-1, instruction="push", start=0,
        episode_id=0, policy="p",
    )  # fmt: skip
    clips = FrameClips(small_world_model(frame_stride=STRIDE, frame_actions=False), [episode], CHUNK)
    own = FrameClips(small_world_model(frame_stride=STRIDE), [episode], CHUNK)
    assert torch.equal(own.actions[:-1], torch.from_numpy(episode.actions))
    for first in range(0, 3 * CHUNK - 1, CHUNK):
        part = episode.actions[first : first + CHUNK]
        assert np.allclose(clips.actions[first : first + len(part)], part.mean(axis=0), atol=1e-6)
        assert torch.allclose(clips.sums[first + len(part)], own.sums[first + len(part)], atol=1e-5)
