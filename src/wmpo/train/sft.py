"""Cloning: supervised fine-tuning of a policy on demonstrations (the base policy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from wmpo import likelihood
from wmpo.data.clips import chunk_clips, shift
from wmpo.data.episode import Episode
from wmpo.division import WHOLE, Division
from wmpo.protocols import PolicyNet
from wmpo.rng import keyed
from wmpo.train.fit import FitConfig, Part, Training
from wmpo.types import Observation


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Cloning of demonstrations."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(num_steps=500, batch_size=32, learning_rate=6e-4))
    "The training loop."
    max_shift: int = 3
    "Pictures are moved at random by up to this many pixels."


@dataclass(frozen=True, kw_only=True)
class CloneConfig:
    """Before each round's imagination: the real successes so far and the demonstrations are cloned."""

    enabled: bool = True
    "Without it all that is learned after sft is learned in imagination, as in the paper."
    sft: SFTConfig = field(
        default_factory=lambda: SFTConfig(fit=FitConfig(num_steps=250, batch_size=32, learning_rate=6e-4))
    )
    "The cloning."


@dataclass(frozen=True, kw_only=True)
class RFTConfig:
    """Filtered cloning: of demonstrations and of the policy's own successes (as in RFT, arXiv 2308.01825)."""

    begin: Literal["base", "scratch"] = "base"
    "Weights to begin with: those of the base policy, or new ones."
    sft: SFTConfig = field(default_factory=SFTConfig)
    "The cloning."


def cloning(
    policy: PolicyNet, episodes: Sequence[Episode], config: SFTConfig, *, seed: int, division: Division = WHOLE
) -> Training:
    """Minimises the policy's own loss of demonstrated chunks (discrete tokens: the negative log-likelihood; flow
    matching: the squared error of the velocity)."""
    assert isinstance(policy, nn.Module)
    clips, rule = chunk_clips(episodes, policy.codec.chunk_size), likelihood.of(policy)

    def batch(step: int) -> Part:
        rng = keyed(seed, "sft/batch", step)
        index = torch.from_numpy(rng.integers(len(clips.actions), size=config.fit.batch_size))
        offsets = torch.from_numpy(rng.integers(2 * config.max_shift + 1, size=(len(index), 2)))
        noise = rule.cloning_noise(len(index), rng)

        def loss(rows: slice) -> Tensor:
            picked = index[rows]
            frames = shift(clips.frame[picked], offsets[rows], config.max_shift, len(policy.views))
            seen = Observation(frame=frames, instruction=tuple(clips.instruction[i] for i in picked.tolist()))
            return rule.cloning_loss(policy.prepare(seen), clips.actions[picked], *(drawn[rows] for drawn in noise))

        return loss

    return Training(policy, batch, config.fit, division)
