"""Fidelity, signs of hallucination and agreement over policies, on videos whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import CHUNK, small_world_model
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.evaluation.fidelity import fidelity, flow_errors, summary
from wmpo.evaluation.hallucination import SIGNS, Signs, areas, left_reality, signs
from wmpo.evaluation.hand import HandReader, learn_to_read
from wmpo.evaluation.statistics import auroc, mean_max_rank_violation, pearson
from wmpo.evaluation.world_model import replay, replay_steps
from wmpo.stages.fidelity import agreement


def block(length: int, speed: int, size: int = 32) -> Tensor:
    """A textured block that moves to the right over a textured ground."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(90, 130, (1, size, size, 3)).astype(np.uint8), length, axis=0)
    side = size // 4
    texture = rng.integers(150, 250, (side, side, 1)).astype(np.uint8)
    for i, frame in enumerate(frames):
        x = side // 2 + speed * i
        frame[side : 2 * side, x : x + side] = texture
    return torch.from_numpy(frames)


def episode(frames: Tensor, identity: int = 0, solved: bool = False) -> Episode:
    steps = len(frames) - 1
    actions = np.random.default_rng(identity).uniform(-1, 1, (steps, 2)).astype(np.float32)
    return Episode(
        frames=frames.numpy(), actions=actions, solved_at=steps if solved else -1, instruction="push",
        start=identity, episode_id=identity, policy="base",
    )  # fmt: skip


BLIND = HandReader(torch.nn.Identity(), torch.zeros(2), torch.ones(2), torch.zeros(2, dtype=torch.bool))


def as_features(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).float()


@pytest.mark.parametrize(("speed", "low", "high"), [(2, 0.0, 0.4), (0, 1.4, 2.4), (-2, 2.5, 4.6)])
def test_flow_errors_are_the_pixels_that_things_move_otherwise(speed: int, low: float, high: float) -> None:
    imagined = block(5, abs(speed)).flip(0) if speed < 0 else block(5, speed)
    assert all(low <= error <= high for error in flow_errors(block(5, 2), imagined)[1:3])


def test_nothing_moves_nothing_is_compared() -> None:
    assert all(math.isnan(error) for error in flow_errors(block(3, 0), block(3, 2)))


def test_fidelity_falls_with_noise_and_is_counted_by_chunk() -> None:
    real = [block(9, 1), block(5, 1)]
    episodes = [episode(video, i) for i, video in enumerate(real)]
    noise = torch.randint(-20, 21, real[0].shape, generator=torch.Generator().manual_seed(0))
    noisy = [(video + noise[: len(video)]).clamp(0, 255).to(torch.uint8) for video in real]
    faint = [(video + noise[: len(video)] // 10).clamp(0, 255).to(torch.uint8) for video in real]
    worse, better = (
        fidelity(episodes, [v[::2] for v in shown], as_features, BLIND, chunk_size=4, frame_stride=2)
        for shown in (noisy, faint)
    )
    assert worse.num_episodes == better.num_episodes == [2, 1]
    with pytest.raises(ValueError, match="none of 2 episodes lasts a chunk of 40 actions"):
        fidelity(episodes, [v[::2] for v in noisy], as_features, BLIND, chunk_size=40, frame_stride=2)
    expected = float(noise[4].float().abs().mean()) / 127.5
    assert worse.distance[0] == pytest.approx(expected, rel=0.05)
    for name, sign in (("distance", 1), ("psnr", -1), ("ssim", -1), ("feature_distance", 1)):
        assert all(sign * (a - b) > 0 for a, b in zip(getattr(worse, name), getattr(better, name), strict=True))
    assert summary(replace(worse, flow_error=[math.nan, 1.0]))["flow_error"] == [None, 1.0]
    assert summary(worse)["hand_error"] == [None, None], "nothing is read by a reader of no axis"


def robots(count: int, seed: int) -> list[Episode]:
    """A block that is moved by two of three commands, a pixel each; the third turns nothing that is seen."""
    rng, made = np.random.default_rng(seed), []
    for identity in range(count):
        actions = rng.uniform(-1, 1, (8, 3)).astype(np.float32)
        actions[:, 2] = rng.uniform(0.1, 0.2) * rng.choice((-1, 1))
        frames = np.full((9, 32, 32, 3), 90, np.uint8)
        for frame, (x, y, _) in zip(frames, np.concatenate([np.zeros((1, 3)), actions.cumsum(axis=0)]), strict=True):
            at = (16 + round(2 * y), 16 + round(2 * x))
            frame[at[0] - 4 : at[0] + 4, at[1] - 4 : at[1] + 4] = 220
        made.append(replace(episode(torch.from_numpy(frames), identity), actions=actions))
    return made


def test_the_robots_place_is_read_off_the_picture_and_what_is_not_seen_is_not_read() -> None:
    reader = learn_to_read(robots(32, seed=1), robots(8, seed=2), seed=0, num_steps=150, batch_size=32)
    assert reader.axes.tolist() == [True, True, False]
    frames = torch.from_numpy(robots(1, seed=3)[0].frames)
    right = frames.roll(4, dims=2)  # two actions to the right
    assert reader.apart(frames, frames).max() == 0
    assert reader.apart(frames, right).mean() == pytest.approx(2.0, abs=0.5)


def test_replays_are_those_of_their_steps() -> None:
    model, episodes = small_world_model(), [episode(block(9, 1, 16), 0), episode(block(5, 1, 16), 1)]
    videos = replay(model, episodes, CHUNK, seed=3)
    assert [len(video) for video in videos] == [1 + 2 * 2, 1 + 2]
    steps = list(replay_steps(model, episodes, CHUNK, seed=3))
    assert [step.episodes for step in steps] == [[1, 0]] * 2
    assert torch.equal(steps[1].frames[1], videos[0][3:]) and torch.equal(steps[1].before[1], videos[0][2])


def test_signs_are_of_every_chunk_and_find_the_rows_that_noise_shakes() -> None:
    model, episodes = small_world_model(start_noise=2.0), [episode(block(9, 1, 16), i) for i in range(3)]
    calm = small_world_model(start_noise=0.0)
    finer = small_world_model(start_noise=2.0, euler_steps=2)
    videos = replay(model, episodes, CHUNK, seed=0)
    found = signs(model, finer, episodes, videos, CHUNK, seed=0)
    assert list(zip(found.episode, found.chunk, strict=True)) == [(i, c) for i in range(3) for c in range(2)]
    assert all(len(getattr(found, name)) == 6 for name in SIGNS) and found.instability.all()
    steady = signs(calm, calm, episodes, replay(calm, episodes, CHUNK, seed=0), CHUNK, seed=0)
    assert not steady.instability.any() and not steady.variance.any() and found.variance.mean() > 0


def test_leaving_reality_is_to_be_farther_than_the_tokenizer() -> None:
    model, episodes = small_world_model(), [episode(block(9, 1, 16), i) for i in range(2)]
    real = [torch.from_numpy(e.frames)[::2] for e in episodes]
    far = [255 - real[0], real[1]]
    value = np.array([2.0, 3.0, 1.0, 1.0])
    found = Signs(**dict.fromkeys((*SIGNS, "motion"), value), episode=[0, 0, 1, 1], chunk=[0, 1, 0, 1])
    truth = left_reality(model, episodes, far, found, CHUNK)
    assert truth.tolist() == [True, True, False, False]
    known, late = areas(found, truth), np.array(found.chunk, dtype=float)
    assert known["combined"] == 1.0 and known["chunk"] == auroc(late, truth)


def test_auroc_by_hand() -> None:
    truth = np.array([True, True, False, False])
    assert auroc(np.array([0.9, 0.3, 0.5, 0.1]), truth) == 0.75
    assert auroc(np.ones(4), truth) == 0.5 and math.isnan(auroc(np.ones(4), np.ones(4, dtype=bool)))


def test_rank_violations_by_hand() -> None:
    assert mean_max_rank_violation([0.1, 0.5, 0.9], [0.2, 0.3, 0.8]) == 0
    # the last two change places: both are wrong by their real difference
    assert mean_max_rank_violation([0.1, 0.9, 0.5], [0.2, 0.3, 0.8]) == pytest.approx((0 + 0.5 + 0.5) / 3)


def test_correlation_needs_policies_that_differ() -> None:
    assert pearson([0.1, 0.2, 0.3], [0.2, 0.4, 0.6]) == pytest.approx(1) and math.isnan(pearson([0.1, 0.1], [0, 1]))


def test_what_is_known_of_the_policies_that_played_calibrates_the_others() -> None:
    policies = [{"real": [True, False, True, False], "imagined": [True, True, True, False]}] * 2
    some, more = [True] + [False] * 3, [True, True, False, False]
    played = [{"real": some, "imagined": more}, {"real": some * 5, "imagined": some * 4 + more}]
    found = agreement(policies, played)
    assert found["over_optimism"]["points"] == pytest.approx(25)
    assert found["calibrated"]["points"] == pytest.approx(25 - (25 + 5) / 2)
    (low, high), (lower, higher) = found["over_optimism"]["interval"], found["calibrated"]["interval"]
    assert lower < 10 < higher and found["pearson"] is None
    assert higher - lower > high - low, "what it is calibrated by is known from few episodes too"
