"""Training of the world model: pretraining on demonstrations, then alignment to the policy's own episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmpo.checkpoint import load_into, load_tensors, save_tensors
from wmpo.data.episode import Episode
from wmpo.evaluation.world_model import replay_distance
from wmpo.nn import to_unit
from wmpo.report.run import StageLog
from wmpo.rng import keyed, torch_generator
from wmpo.train.fit import FitConfig, fit
from wmpo.world_model import flow
from wmpo.world_model.small import FrameContext, SmallWorldModel


@dataclass(frozen=True, kw_only=True)
class WorldModelTraining:
    """Training of the video model."""

    fit: FitConfig = field(
        default_factory=lambda: FitConfig(num_steps=800, batch_size=16, learning_rate=1e-3, ema=0.995)
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
    check_every: int = 200
    "Steps between checks on held-out episodes."
    patience: int = 3
    "Training stops when this many checks in a row bring no improvement."

    def refreshed(self) -> WorldModelTraining:
        """For a model that is good already: fewer steps, a smaller rate, and its own errors from the first step on."""
        num_steps = max(1, round(self.refresh_share * self.fit.num_steps))
        fit = replace(self.fit, num_steps=num_steps, learning_rate=0.7 * self.fit.learning_rate)
        return replace(self, fit=fit, pretrain_share=0.0, unroll_from=0.0)


class FrameClips:
    """Frames, latents and actions of episodes, and windows over them that begin at any step."""

    def __init__(self, model: SmallWorldModel, episodes: Sequence[Episode]) -> None:
        self.stride, self.num_context = model.frame_stride, model.config.num_context
        self.frames = torch.cat([torch.from_numpy(e.frames) for e in episodes])
        self.latents = torch.cat([model.tokenizer.encode(part) for part in self.frames.split(256)])
        # one action fewer than frames: the missing one is never read, but makes both share an index
        padded = [np.concatenate([e.actions, np.zeros_like(e.actions[:1])]) for e in episodes]
        self.actions = torch.from_numpy(np.concatenate(padded)).float()
        lengths = np.array([len(e.actions) for e in episodes])
        offsets = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        sums = [np.concatenate([np.zeros_like(e.actions[:1]), np.cumsum(e.actions, axis=0)]) for e in episodes]
        self.sums = torch.from_numpy(np.concatenate(sums)).float()
        starts = [np.arange(length - self.stride + 1) for length in lengths]
        self._time = np.concatenate(starts)
        self._episode = np.repeat(np.arange(len(episodes)), [len(s) for s in starts])
        self._lengths, self._offsets = lengths, offsets

    def sample(
        self, rng: np.random.Generator, count: int, num_frames: int
    ) -> tuple[FrameContext, Float[Tensor, "B n S A"], Float[Tensor, "B C y x"], Float[Tensor, "B 3 h w"]]:
        """Contexts, the actions of the ``num_frames`` (n) frames that follow, and the last of these, as latents and
        as a picture."""
        picked = rng.integers(len(self._time), size=count)
        episode = self._episode[picked]
        latest = np.maximum(0, self._lengths[episode] - num_frames * self.stride)
        time = np.minimum(self._time[picked], latest)
        # the first frame is that of the episode, or any earlier one: an imagined episode may begin anywhere
        anchor = np.where(rng.random(count) < 0.5, 0, (rng.random(count) * (time + 1)).astype(int))
        offset = self._offsets[episode]
        past = [np.maximum(anchor, time - self.stride * i) for i in reversed(range(self.num_context))]
        steps = time[:, None] + np.arange(num_frames * self.stride)
        last = self._lengths[episode][:, None]  # shorter episodes wait at their end
        actions = self.actions[torch.from_numpy(offset[:, None] + np.minimum(steps, last - 1))]
        index = {name: torch.from_numpy(offset + at) for name, at in (("now", time), ("first", anchor))}
        index["next"] = torch.from_numpy(offset + np.minimum(time + self.stride * num_frames, last[:, 0]))
        device = self.latents.device
        context = FrameContext(
            recent=to_unit(self.frames[torch.from_numpy(offset[:, None] + np.stack(past, axis=1))]).to(device),
            latents=self.latents[index["now"]],
            first=to_unit(self.frames[index["first"]]).to(device),
            travelled=(self.sums[index["now"]] - self.sums[index["first"]]).to(device),
        )
        target, picture = self.latents[index["next"]], to_unit(self.frames[index["next"]]).to(device)
        return context, actions.to(device).unflatten(1, (num_frames, self.stride)), target, picture


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
    first = FrameClips(model, demonstrations)
    both = FrameClips(model, [*demonstrations, *collected]) if collected else first
    pretrain_steps = int(config.fit.num_steps * config.pretrain_share)
    unroll_from = int(config.fit.num_steps * config.unroll_from)
    best = checkpoint.with_name(f"{checkpoint.stem}_best.safetensors")

    def loss(step: int) -> Tensor:
        rng, generator = keyed(seed, "world-model/batch", step), torch_generator(seed, "world-model/noise", step)
        unroll = int(rng.integers(config.max_unroll + 1)) if step >= unroll_from else 0
        clips = first if step < pretrain_steps else both
        context, actions, target, picture = clips.sample(rng, config.fit.batch_size, unroll + 1)
        context = _noised(context, config.context_noise, generator)

        def noise() -> Tensor:
            return torch.randn(target.shape, generator=generator).to(target.device)

        for i in range(unroll):
            context = model.imagine_frame(context, actions[:, i], noise())
        time = flow.logit_normal_time(len(target), generator).to(target.device)
        return model(context, actions[:, unroll], target, picture, noise(), time).mean()

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


def _noised(context: FrameContext, limit: float, generator: torch.Generator) -> FrameContext:
    """Noisy-frame conditioning (arXiv 2511.09515), with a level drawn per row. Pictures get less of it than latents:
    in these units their differences are smaller."""
    level = limit * torch.rand(len(context.recent), 1, 1, 1, generator=generator)
    latents = level * torch.randn(context.latents.shape, generator=generator)
    recent = level.unsqueeze(1) / 3 * torch.randn(context.recent.shape, generator=generator)
    return replace(
        context,
        latents=context.latents + latents.to(context.latents),
        recent=context.recent + recent.to(context.recent),
    )
