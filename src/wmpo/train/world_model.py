"""Training of the world model: pretraining on demonstrations, then alignment to the policy's own episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmpo.checkpoint import load_into, load_tensors, save_tensors
from wmpo.data.episode import Episode
from wmpo.evaluation.world_model import replay_distance
from wmpo.report.run import StageLog
from wmpo.rng import keyed, torch_generator
from wmpo.train.fit import FitConfig, fit
from wmpo.world_model import flow
from wmpo.world_model.small import LatentContext, SmallWorldModel


@dataclass(frozen=True, kw_only=True)
class WorldModelTraining:
    """Training of the video model."""

    fit: FitConfig = field(
        default_factory=lambda: FitConfig(num_steps=2400, batch_size=48, learning_rate=1e-3, ema=0.995)
    )
    "The training loop."
    pretrain_share: float = 0.15
    "Part of the steps that see demonstrations only; the rest sees the policy's episodes too."
    max_unroll: int = 3
    "The context of a training clip is imagined for up to this many chunks, so that the model meets its own errors."
    context_noise: float = 0.15
    "Noisy-frame conditioning: context latents get noise of up to this many standard deviations."
    check_every: int = 300
    "Steps between checks on held-out episodes."
    patience: int = 3
    "Training stops when this many checks in a row bring no improvement."


class LatentClips:
    """Latent frames and actions of episodes, and windows over them that begin at any step."""

    def __init__(self, model: SmallWorldModel, episodes: Sequence[Episode], chunk_size: int) -> None:
        self.chunk_size, self.stride = chunk_size, model.frame_stride
        self.latents = [model.tokenizer.encode(torch.from_numpy(e.frames)) for e in episodes]
        self.actions = [torch.from_numpy(e.actions) for e in episodes]
        self._lengths = np.array([len(a) for a in self.actions])

    def sample(
        self, rng: np.random.Generator, count: int, num_chunks: int, num_context: int
    ) -> tuple[LatentContext, Tensor, Tensor]:
        """Context, actions (B, num_chunks, K, A) and latent frames (B, num_chunks, F, C, y, x) that follow it."""
        span = num_chunks * self.chunk_size
        usable = np.flatnonzero(self._lengths >= span)
        windows = self._lengths[usable] - span + 1
        picked = rng.choice(usable, size=count, p=windows / windows.sum())
        first = (rng.random(count) * (self._lengths[picked] - span + 1)).astype(int)
        context, anchor, actions, targets = [], [], [], []
        for episode, begin in zip(picked, first, strict=True):
            latents = self.latents[episode]
            past = [max(0, begin - self.stride * i) for i in reversed(range(num_context))]
            context.append(latents[past])
            anchor.append(latents[0])
            actions.append(self.actions[episode][begin : begin + span])
            targets.append(latents[begin + self.stride : begin + span + 1 : self.stride])
        chunks = torch.stack(actions).unflatten(1, (num_chunks, self.chunk_size))
        frames = torch.stack(targets).unflatten(1, (num_chunks, self.chunk_size // self.stride))
        return LatentContext(torch.stack(context), torch.stack(anchor)), chunks, frames


def train_world_model(
    model: SmallWorldModel,
    demonstrations: Sequence[Episode],
    collected: Sequence[Episode],
    held_out: Sequence[Episode],
    config: WorldModelTraining,
    *,
    chunk_size: int,
    seed: int,
    checkpoint: Path,
    log: StageLog,
) -> dict[str, Any]:
    """Trains in place; returns how it ended: ``{"stopped": ..., "checks": [...]}``."""
    first = LatentClips(model, demonstrations, chunk_size)
    both = LatentClips(model, [*demonstrations, *collected], chunk_size) if collected else first
    pretrain_steps = int(config.fit.num_steps * config.pretrain_share)
    best = checkpoint.with_name("world_model_best.safetensors")

    def loss(step: int) -> Tensor:
        rng, generator = keyed(seed, "world-model/batch", step), torch_generator(seed, "world-model/noise", step)
        pretraining = step < pretrain_steps
        unroll = 0 if pretraining else int(rng.integers(config.max_unroll + 1))
        clips = first if pretraining else both
        context, chunks, frames = clips.sample(rng, config.fit.batch_size, unroll + 1, model.config.num_context)
        context = _noised(context, config.context_noise, generator)
        for i in range(unroll):
            noise = torch.randn(frames[:, i].shape, generator=generator).to(frames.device)
            _, context = model.imagine_latents(context, chunks[:, i], noise)
        time = flow.logit_normal_time(len(chunks), generator).to(frames.device)
        noise = torch.randn(frames[:, unroll].shape, generator=generator).to(frames.device)
        return model(context, chunks[:, unroll], frames[:, unroll], noise, time).mean()

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

    notes = fit(model, loss, config.fit, checkpoint=checkpoint, log=log, check=check, check_every=config.check_every)
    load_into(model, load_tensors(best)[0], best)
    notes["stopped"] = "held-out replays stopped improving" if notes["stopped"] else "all steps done"
    return notes


def _noised(context: LatentContext, limit: float, generator: torch.Generator) -> LatentContext:
    """Noisy-frame conditioning (arXiv 2511.09515, section 3.2), with a level drawn per row."""
    recent = context.recent
    level = limit * torch.rand(len(recent), 1, 1, 1, 1, generator=generator)
    noise = torch.randn(recent.shape, generator=generator)
    return LatentContext(recent + (level * noise).to(recent.device), context.first)
