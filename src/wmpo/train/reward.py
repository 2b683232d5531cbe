"""Training and calibration of the success classifier.

It learns from the recorded episodes as the tokenizer shows them *and* from imagined replays of them: the world model
plays the recorded actions, and the recorded outcome is the label. Without the replays it is fooled by what only
imagination shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wmpo.data.clips import shift
from wmpo.data.episode import Episode
from wmpo.division import WHOLE, Division
from wmpo.evaluation.statistics import Target, best_threshold, rates
from wmpo.noise import torch_generator
from wmpo.protocols import RewardModel, WorldModel
from wmpo.reward.detector import score_video
from wmpo.reward.small import SmallReward
from wmpo.reward.videomae import VideoMAEReward
from wmpo.rng import keyed
from wmpo.train.fit import FitConfig, Part, Training

RewardNet = SmallReward | VideoMAEReward
"""The classifiers that are trained."""


@dataclass(frozen=True, kw_only=True)
class RewardTraining:
    """Training of the success classifier."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(num_steps=200, batch_size=64, learning_rate=1e-3))
    "The training loop."
    max_shift: int = 2
    "Pictures are moved at random by up to this many pixels."
    noise: float = 6.0
    "Standard deviation of noise added to the pictures, in grey levels."
    num_replays: int = 2
    "Imagined replays of each episode, under different noise."
    target: Target = "balanced"
    """What the threshold is chosen for: J and the success rate together, J, F1, or few false alarms. For that of
    imagined videos see ``on_policy``."""
    max_fpr: float = 0.05
    "Share of false alarms that target fpr allows on held-out episodes."
    on_policy: bool = True
    """The threshold for imagined videos is the one at which the policy to improve succeeds as often in the dream as it
    really did, from the same starts, unless that is below the one for held-out replays, which ``target`` chooses.
    Without it the latter counts alone."""


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    """A video at the world model's frame rate: real (as the tokenizer shows it) or an imagined replay.

    ``solved_at`` is the first frame that shows success (-1: none).
    """

    frames: UInt8[Tensor, "L h w 3"]
    solved_at: int
    instruction: str = ""

    @property
    def success(self) -> bool:
        return self.solved_at >= 0


def real_videos(
    episodes: Sequence[Episode], stride: int, model: WorldModel | None = None, *, phase: int = 0
) -> list[LabelledVideo]:
    """Recorded episodes at the world model's frame rate, as they are or as its tokenizer shows them.

    Imagined frames are those of phase 0; the others, which begin ``phase`` actions later, are more to learn from.
    """
    videos = [torch.from_numpy(e.frames[phase::stride]) for e in episodes]
    if model is not None:
        videos = [model.reconstruct(video) for video in videos]
    return [
        LabelledVideo(video, _frame(e, stride, phase), e.instruction) for e, video in zip(episodes, videos, strict=True)
    ]


def replayed_videos(episodes: Sequence[Episode], videos: Sequence[Tensor], stride: int) -> list[LabelledVideo]:
    """Imagined replays, labelled with what really happened."""
    return [LabelledVideo(video, _frame(e, stride), e.instruction) for e, video in zip(episodes, videos, strict=True)]


def _frame(episode: Episode, stride: int, phase: int = 0) -> int:
    """May lie past the end of the video: then the episode was solved between its last frame and that of phase 0."""
    return max(0, -(-(episode.solved_at - phase) // stride)) if episode.success else -1


class _Clips:
    """Windows that end at any frame; half of each batch show success."""

    def __init__(self, videos: Sequence[LabelledVideo], window: int) -> None:
        self.videos = videos
        positives, negatives, weights = [], [], []
        for v, video in enumerate(videos):
            for f in range(1, len(video.frames)):
                index = [max(0, f - i) for i in reversed(range(window))]
                if video.success and f >= video.solved_at:
                    positives.append((v, index))
                elif not video.success or f < video.solved_at - 1:  # the frame before success looks like success
                    negatives.append((v, index))
                    weights.append(1.0 if video.success else 2.0)  # what must not be mistaken are the failures
        if not positives or not negatives:
            kind = "succeeded" if not negatives else "failed"
            raise ValueError(f"the success classifier needs successes and failures, but every episode {kind}")
        self.positives, self.negatives = positives, negatives
        self.weights = np.array(weights) / np.sum(weights)

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, list[str]]:
        wins = rng.integers(len(self.positives), size=count // 2)
        losses = rng.choice(len(self.negatives), size=count - count // 2, p=self.weights)
        picked = [self.positives[i] for i in wins] + [self.negatives[i] for i in losses]
        clips = torch.stack([self.videos[v].frames[index] for v, index in picked])
        label = torch.zeros(count)
        label[: count // 2] = 1
        return clips, label, [self.videos[v].instruction for v, _ in picked]


def telling_success(
    model: RewardNet, videos: Sequence[LabelledVideo], config: RewardTraining, *, seed: int, division: Division = WHOLE
) -> Training:
    """Binary cross-entropy on balanced clips."""
    clips = _Clips(videos, model.window)

    def batch(step: int) -> Part:
        rng = keyed(seed, "reward/batch", step)
        frames, label, told = clips.sample(rng, config.fit.batch_size)
        offsets = torch.from_numpy(rng.integers(2 * config.max_shift + 1, size=(len(frames), 2)))
        offsets = offsets.repeat_interleave(model.window, dim=0)  # all frames of a clip move together
        moved = shift(frames.flatten(0, 1), offsets, config.max_shift, len(model.views)).view_as(frames)
        noise = torch.randn(moved.shape, generator=torch_generator(seed, "reward/noise", step))
        noisy = noise.mul_(config.noise).add_(moved).round_().clamp_(0, 255).to(torch.uint8)
        dropout = int(rng.integers(2**62))

        def loss(rows: slice) -> Tensor:
            torch.manual_seed(dropout)  # it draws from torch's global generator
            whole = rows.stop - rows.start == len(noisy)
            with nullcontext() if whole else _DropoutOf(rows, len(noisy)):
                return F.binary_cross_entropy_with_logits(model(noisy[rows], told[rows]), label[rows])

        return loss

    return Training(model, batch, config.fit, division)


class _DropoutOf(TorchFunctionMode):
    """Dropout that is drawn for a batch of ``count`` rows, of which ``rows`` are here."""

    def __init__(self, rows: slice, count: int) -> None:
        super().__init__()
        self._rows, self._count = rows, count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.dropout or not kwargs["training"] or not kwargs["p"]:
            return func(*args, **kwargs)
        (x,) = args
        return x * F.dropout(x.new_ones(self._count, *x.shape[1:]), kwargs["p"])[self._rows]


def peaks(model: RewardModel, videos: Sequence[LabelledVideo]) -> Float[np.ndarray, " n"]:
    """The highest logit in each video: an episode counts as solved when it exceeds the threshold."""
    return np.array([float(score_video(model, video.frames, video.instruction).max()) for video in videos])


def threshold_of(peaks: Float[np.ndarray, " n"], rate: float) -> float:
    """At which this share of imagined episodes, of these highest logits, counts as solved."""
    return float(np.quantile(peaks, 1 - rate))


def calibrate(
    model: RewardModel,
    real: Float[np.ndarray, " n"],
    imagined: Float[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    config: RewardTraining,
    *,
    matched: float | None = None,
) -> dict[str, Any]:
    """Chooses a threshold for real videos and one for imagined ones on held-out episodes, by their :func:`peaks`, and
    measures both.

    Imagination is blurred, so the same logit means less there; its threshold stays with the model. In the figures each
    episode is judged at the threshold that the others chose, or at ``matched``: the threshold for imagined videos, if
    it was found elsewhere (:func:`threshold_of`) and is no lower than that of replays. Where it is, the policy that
    acts in the dream succeeds too rarely there, and calling more of its failures solved would not mend that.
    """

    def choose(score: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
        return best_threshold(score, truth, config.target, config.max_fpr)

    measured: dict[str, Any] = {}
    for name, score in (("real", real), ("imagined", imagined)):
        threshold = choose(score, truth)
        predicted = np.array([score[i] > _without(i, score, truth, choose, threshold) for i in range(len(truth))])
        if name == "imagined" and matched is not None and matched >= threshold:
            threshold, predicted = matched, score > matched
        measured[name] = {
            "threshold": threshold, "called": float(predicted.mean()),
            **asdict(rates(predicted, truth)), **_curves(score, truth),
        }  # fmt: skip
    model.threshold = measured["threshold"] = measured["imagined"]["threshold"]
    return measured


Choose = Callable[[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]], float]


def _without(
    i: int, score: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"], choose: Choose, fallback: float
) -> float:
    """The threshold that all other episodes choose; the fallback if these ended alike."""
    others = np.arange(len(truth)) != i
    alike = truth[others].all() or not truth[others].any()
    return fallback if alike else choose(score[others], truth[others])


def _curves(score: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Points of the ROC curve (FPR, TPR), and of the reliability diagram (mean probability, frequency, count)."""
    levels = np.concatenate([[-np.inf], np.unique(score), [np.inf]])
    roc = [((score[~truth] > t).mean().round(4).item(), (score[truth] > t).mean().round(4).item()) for t in levels]
    probability = 1 / (1 + np.exp(-score))
    bins = np.clip((probability * 5).astype(int), 0, 4)
    used = [bins == b for b in range(5) if (bins == b).any()]
    reliability = [(probability[b].mean().round(4).item(), truth[b].mean().round(4).item(), int(b.sum())) for b in used]
    return {"roc": roc, "reliability": reliability}
