"""Training of the world model: pretraining on demonstrations, then alignment to the policy's own episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wmpo.checkpoint import load_into, load_tensors, save_tensors
from wmpo.data.episode import Episode
from wmpo.division import WHOLE, Division
from wmpo.evaluation.world_model import replay_distance
from wmpo.noise import torch_generator
from wmpo.protocols import Trainer
from wmpo.report.run import StageLog
from wmpo.rng import keyed
from wmpo.train.fit import FitConfig, Part, Training, fit
from wmpo.train.frame_clips import FrameClips
from wmpo.train.video_clips import VideoClips
from wmpo.world_model.opensora import OpenSoraWorldModel
from wmpo.world_model.small import SmallWorldModel

WorldModelNet = SmallWorldModel | OpenSoraWorldModel


@dataclass(frozen=True, kw_only=True)
class WorldModelTraining:
    """Training of the video model."""

    fit: FitConfig = field(
        default_factory=lambda: FitConfig(num_steps=400, batch_size=16, learning_rate=1e-3, ema=0.995)
    )
    "The training loop."
    pretrain_share: float = 0.05
    "Part of the steps that see demonstrations only; the rest sees the policy's episodes too."
    refresh_share: float = 0.5
    "Later rounds go on from the last round's world model for this part of the steps."
    max_unroll: int = 3
    "The context of a training clip is imagined for up to this many frames, so that the model meets its own errors."
    unroll_from: float = 0.3
    "Part of the steps before which contexts are never imagined: early errors teach nothing and cost time."
    context_noise: float = 0.15
    "Noisy-frame conditioning: context latents get noise of up to this many standard deviations, pictures a third."
    check_every: int = 100
    "Steps between checks on held-out episodes."
    patience: int = 2
    "Training stops when this many checks in a row bring no improvement."

    def refreshed(self) -> WorldModelTraining:
        """For a model that is good already: fewer steps, a smaller rate, and its own errors from the first step on.
        One that learns from demonstrations alone (the ablation: not aligned to the policy) goes on to."""
        num_steps = max(1, round(self.refresh_share * self.fit.num_steps))
        fit = replace(self.fit, num_steps=num_steps, learning_rate=0.7 * self.fit.learning_rate)
        return replace(self, fit=fit, pretrain_share=float(self.pretrain_share == 1), unroll_from=0.0)


def flow_matching(
    model: WorldModelNet,
    demonstrations: Sequence[Episode],
    collected: Sequence[Episode],
    config: WorldModelTraining,
    *,
    chunk_size: int,
    seed: int,
    division: Division = WHOLE,
) -> Training:
    """On windows of recorded episodes: demonstrations alone first, then collected ones too."""
    first = _clips(model, demonstrations, chunk_size)
    both = _clips(model, [*demonstrations, *collected], chunk_size) if collected else first
    pretrain_steps = int(config.fit.num_steps * config.pretrain_share)
    unroll_from = int(config.fit.num_steps * config.unroll_from)

    def batch(step: int) -> Part:
        rng, generator = keyed(seed, "world-model/batch", step), torch_generator(seed, "world-model/noise", step)
        unroll = int(rng.integers(config.max_unroll + 1)) if step >= unroll_from else 0
        clips = first if step < pretrain_steps else both
        return clips.batch(rng, generator, config.fit.batch_size, unroll=unroll, context_noise=config.context_noise)

    return Training(model, batch, config.fit, division)


def train_and_check(
    trainer: Trainer,
    model: WorldModelNet,
    held_out: Sequence[Episode],
    config: WorldModelTraining,
    *,
    chunk_size: int,
    seed: int,
    checkpoint: Path,
    log: StageLog,
) -> dict[str, Any]:
    """Trains until held-out replays stop improving, and leaves the best weights in ``model``, whole."""
    pretrain_steps = int(config.fit.num_steps * config.pretrain_share)
    best = checkpoint.with_name(f"{checkpoint.stem}_best.safetensors")

    def check(done: int, notes: dict[str, Any]) -> bool:
        distance, tokenizer = replay_distance(model, held_out, chunk_size, seed=seed)
        score = float(np.mean(distance))
        log.write(step=done, distance=distance, tokenizer_distance=tokenizer)
        log.progress(done, config.fit.num_steps, f"replay distance {score:.4f} (tokenizer alone {tokenizer:.4f})")
        checks = notes.setdefault("checks", [])
        checks.append(score)
        if score <= min(checks):
            save_tensors(best, model.state_dict(), {"step": done})
        return done < pretrain_steps or len(checks) - 1 - int(np.argmin(checks)) < config.patience

    notes = fit(trainer, config.fit, checkpoint=checkpoint, log=log, check=check, check_every=config.check_every)
    load_into(model, load_tensors(best)[0], best)
    notes["stopped"] = "held-out replays stopped improving" if notes["stopped"] else "all steps done"
    return notes


def _clips(model: WorldModelNet, episodes: Sequence[Episode], chunk_size: int) -> FrameClips | VideoClips:
    if isinstance(model, SmallWorldModel):
        return FrameClips(model, episodes, chunk_size)
    return VideoClips(model, episodes, chunk_size)
