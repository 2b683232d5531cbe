"""When an episode counts as solved: scores while frames arrive, the clock's off-by-one, and rows that are finished."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from miniatures import Brightness, small_reward

from wmpo.envs.clock import Clock
from wmpo.reward.detector import Detector, first_above, score_video
from wmpo.rollout.run import _executed


def random_videos(count: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, length, 2, 2, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("per_chunk", [1, 2, 3])
def test_scoring_as_frames_arrive_finds_the_same_frame_as_scanning_the_whole_video(window: int, per_chunk: int) -> None:
    """Rows leave the batch when they are solved, as in an imagined episode; chunks may be shorter than the window."""
    count, chunks = 400, 18 // per_chunk
    videos = random_videos(count, 1 + chunks * per_chunk, seed=window)
    scale = sum(0.5**i for i in range(window))
    model = Brightness(window, threshold=158.0 * scale)
    posthoc = torch.stack([first_above(score_video(model, v, "").unsqueeze(0), model.threshold)[0] for v in videos])
    detector, rows = Detector(model, videos[:, 0], [""] * count), torch.arange(count)
    found = torch.zeros(count, dtype=torch.long)
    for chunk in range(chunks):
        begin = 1 + chunk * per_chunk
        first, logits = detector.update(videos[rows, begin : begin + per_chunk], rows)
        assert logits.shape == (len(rows), per_chunk)
        found[rows] = torch.where(first > 0, chunk * per_chunk + first, 0)
        rows = rows[first == 0]
    assert torch.equal(found, posthoc)
    assert 40 < int((found == 0).sum()) < 360 and len(found.unique()) > 4, "the videos must tell outcomes apart"


def test_windows_before_the_first_frame_repeat_it() -> None:
    video = random_videos(1, 3, seed=0)[0]
    model = Brightness(4, threshold=0.0)
    padded = torch.cat([video[:1].repeat(3, 1, 1, 1), video[1:]])
    expected = [float(model(padded[i : i + 4].unsqueeze(0), [""])) for i in range(2)]
    assert score_video(model, video, "").tolist() == pytest.approx(expected)


def test_success_begins_above_the_threshold_not_at_it() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 3.0], [1.0, 1.0, 1.0]])
    assert first_above(logits, 1.0).tolist() == [3, 1, 0]


def test_a_damaged_reward_model_stops_the_run() -> None:
    model = small_reward()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="reward model"):
        score_video(model, torch.zeros(3, 16, 16, 3, dtype=torch.uint8), "")


def test_the_clock_counts_exactly_the_actions_up_to_the_solved_frame() -> None:
    clock, frames = Clock(4, chunk_size=4, max_chunks=2), torch.zeros(4, 4, 2, 2, 3, dtype=torch.uint8)
    step = clock.tick(frames, torch.tensor([0, 1, 3, 4]))
    assert step.terminated.tolist() == [False, True, True, True] and not step.truncated.any()
    assert step.steps.tolist() == [4, 1, 3, 4]
    mask = _executed(step.steps, chunk_size=4, num_tokens=8)  # two tokens an action
    assert mask.sum(dim=1).tolist() == [8, 2, 6, 8]
    assert all(row[: int(n)].all() for row, n in zip(mask, mask.sum(dim=1), strict=True)), "time first"


def test_finished_rows_freeze_whatever_is_said_about_them_later() -> None:
    clock, frames = Clock(3, chunk_size=4, max_chunks=3), torch.zeros(3, 2, 2, 2, 3, dtype=torch.uint8)
    clock.tick(frames, torch.tensor([2, 0, 0]))
    assert clock.active.tolist() == [1, 2]
    later = clock.tick(frames, torch.tensor([3, 4, 0]))
    assert later.terminated.tolist() == [False, True, False] and later.steps.tolist() == [0, 4, 4]
    last = clock.tick(frames, torch.tensor([1, 1, 0]))
    assert last.truncated.tolist() == [False, False, True] and last.steps.tolist() == [0, 0, 4]
    assert not last.terminated.any() and clock.finished.all()


def test_success_in_the_last_chunk_is_success_and_not_a_time_out() -> None:
    step = Clock(2, chunk_size=4, max_chunks=1).tick(
        torch.zeros(2, 1, 2, 2, 3, dtype=torch.uint8), torch.tensor([4, 0])
    )
    assert step.terminated.tolist() == [True, False] and step.truncated.tolist() == [False, True]


def test_every_clip_is_judged_by_the_sentence_of_its_own_row() -> None:
    asked: list[tuple[int, str]] = []

    class Listener(Brightness):
        def forward(self, clips: torch.Tensor, instructions: Sequence[str]) -> torch.Tensor:
            asked.extend(zip(clips[:, -1, 0, 0, 0].tolist(), instructions, strict=True))
            return super().forward(clips, instructions)

    videos = torch.arange(12, dtype=torch.uint8).view(3, 4, 1, 1, 1).expand(-1, -1, 16, 16, 3)
    detector = Detector(Listener(2, 1e9), videos[:, 0], ("a", "b", "c"))
    detector.update(videos[[2, 0], 1:], torch.tensor([2, 0]))
    assert asked == [(9, "c"), (10, "c"), (11, "c"), (1, "a"), (2, "a"), (3, "a")]
