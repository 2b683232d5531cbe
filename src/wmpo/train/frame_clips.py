"""What the small world model learns from: contexts and the frame after them, one frame at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmpo.data.episode import Episode
from wmpo.nn import to_unit
from wmpo.train.fit import Part
from wmpo.world_model import flow
from wmpo.world_model.small import FrameContext, SmallWorldModel


class FrameClips:
    """Frames, latents and actions of episodes, and windows over them that begin at any step."""

    def __init__(self, model: SmallWorldModel, episodes: Sequence[Episode], chunk_size: int) -> None:
        self.model, self.stride, self.num_context = model, model.frame_stride, model.config.num_context
        self.frames = torch.cat([torch.from_numpy(e.frames) for e in episodes])
        self.latents = torch.cat([model.tokenizer.encode(part) for part in self.frames.split(256)])
        # one action fewer than frames: the missing one is never read, but makes both share an index
        told = [e.actions if model.config.frame_actions else _of_chunks(e.actions, chunk_size) for e in episodes]
        padded = [np.concatenate([actions, np.zeros_like(actions[:1])]) for actions in told]
        self.actions = torch.from_numpy(np.concatenate(padded)).float()
        lengths = np.array([len(e.actions) for e in episodes])
        offsets = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        sums = [np.concatenate([np.zeros_like(actions[:1]), np.cumsum(actions, axis=0)]) for actions in told]
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
            recent=to_unit(self.frames[torch.from_numpy(offset[:, None] + np.stack(past, axis=1))].to(device)),
            latents=self.latents[index["now"]],
            first=to_unit(self.frames[index["first"]].to(device)),
            travelled=(self.sums[index["now"]] - self.sums[index["first"]]).to(device),
            pose=self.sums[index["now"]].to(device),
            latest=self._latest(offset, time).to(device),
        )
        target, picture = self.latents[index["next"]], to_unit(self.frames[index["next"]].to(device))
        return context, actions.to(device).unflatten(1, (num_frames, self.stride)), target, picture

    def _latest(self, offset: np.ndarray, time: np.ndarray) -> Float[Tensor, "B S A"]:
        """The actions that led to these times, zeros before the first."""
        before = time[:, None] + np.arange(-self.stride, 0)
        return (
            self.actions[torch.from_numpy(offset[:, None] + np.maximum(0, before))]
            * torch.from_numpy(before >= 0)[..., None]
        )

    def batch(
        self, rng: np.random.Generator, generator: torch.Generator, count: int, *, unroll: int, context_noise: float
    ) -> Part:
        """``count`` contexts, whose last ``unroll`` frames are imagined, so that the model meets its own errors."""
        drawn, actions, target, picture = self.sample(rng, count, unroll + 1)
        noised = _noised(drawn, context_noise, generator)
        noise = [torch.randn(target.shape, generator=generator) for _ in range(unroll)]
        time = flow.logit_normal_time(count, generator)
        noise.append(torch.randn(target.shape, generator=generator))

        def loss(rows: slice) -> Tensor:
            context = FrameContext(*(getattr(noised, field.name)[rows] for field in fields(noised)))
            fresh = [each[rows].to(target.device) for each in noise]
            for i in range(unroll):
                context = self.model.imagine_frame(context, actions[rows, i], fresh[i])
            at = time[rows].to(target.device)
            return self.model(context, actions[rows, unroll], target[rows], picture[rows], fresh[unroll], at).mean()

        return loss


def _of_chunks(actions: Float[np.ndarray, "S A"], chunk_size: int) -> Float[np.ndarray, "S A"]:
    """Each chunk's mean in place of its actions, as a model without frame-level control is told them in imagination."""
    means = [actions[first : first + chunk_size].mean(axis=0) for first in range(0, len(actions), chunk_size)]
    return np.repeat(means, chunk_size, axis=0)[: len(actions)]


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
