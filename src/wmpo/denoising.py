"""Flow-matching policies as stochastic ones: the denoising path of a chunk, and how probable it is.

A flow policy turns noise (time 1) into a chunk (time 0) along ``x_t = t * noise + (1 - t) * chunk`` by S Euler steps of
its velocity ``noise - chunk``. That is deterministic, so it has no probability to improve. Flow-GRPO (arXiv 2505.05470)
replaces it by a stochastic equation with the same marginals, ``sigma_t = a sqrt(t / (1 - t))``; each step is then a
Gaussian, and the log-probability of a chunk is the sum over its steps (for robots: pi_RL, arXiv 2510.25889).

Differs from Flow-GRPO: a step is not Euler-Maruyama but DDIM's (arXiv 2010.02502), in the limit of small steps with
``a = sqrt(2) * noise_level``. It has no pole at t = 1, errs to too little noise instead of too much where steps are
few, and is the Euler step without noise. The last step, which would be deterministic, keeps ``min_std``, or the weights
could move the actions unseen by the likelihood. A policy's tokens are the paths of its N numbers, S + 1 floats each, so
that whatever is recorded of an episode can be judged again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmpo.likelihood import NoiseKeys
from wmpo.nn import autocast
from wmpo.noise import row_normal
from wmpo.protocols import Codec


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """How a chunk is drawn from a flow."""

    num_steps: int = 10
    "Denoising steps of a chunk (S)."
    noise_level: float = 0.5
    "Noise of a step at temperature 1: 0 is the deterministic flow, 1 forgets the most that keeps the marginals."
    min_std: float = 0.05
    "Least standard deviation of a step at temperature 1, in normalised actions; what the last step has."
    times_per_sample: int = 1
    "Noise levels at which cloning asks for the velocity of one demonstrated chunk; they share its observation."

    def validate(self) -> None:
        """Raises ValueError for values without a meaning."""
        if self.num_steps < 1 or self.times_per_sample < 1:
            raise ValueError(
                f"num_steps {self.num_steps} and times_per_sample {self.times_per_sample} must be at least 1"
            )
        if not 0 <= self.noise_level <= 1 or not 0 < self.min_std <= 1:
            raise ValueError(
                f"noise_level {self.noise_level} must lie in [0, 1] and min_std {self.min_std} in (0, 1]: without "
                "noise a chunk has no log-probability"
            )


@dataclass(frozen=True, slots=True)
class Step:
    """From flow time ``time`` to ``ahead``; ``std`` is that of its noise."""

    time: float
    ahead: float
    std: float

    def mean(self, state: Float[Tensor, "*B"], velocity: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Of the next state: the chunk and the noise that the velocity points at, mixed for the new time."""
        chunk, noise = state - self.time * velocity, state + (1 - self.time) * velocity
        return (1 - self.ahead) * chunk + math.sqrt(max(self.ahead**2 - self.std**2, 0.0)) * noise


def steps(config: DenoisingConfig, temperature: float) -> list[Step]:
    """The S steps. Temperature scales their noise; at 0 they are those of Euler's method."""
    made = []
    for index in range(config.num_steps):
        time, ahead = 1 - index / config.num_steps, 1 - (index + 1) / config.num_steps
        if index + 1 == config.num_steps:
            ahead = 0.0
        kept = (
            (1 - time) * ahead / ((1 - ahead) * time)
        )  # of the old noise, where no more than the marginals is forgotten
        std = max(config.noise_level * ahead * math.sqrt(1 - kept**2), config.min_std)
        made.append(Step(time, ahead, temperature * std))
    return made


def normal_log_prob(x: Float[Tensor, "*B"], mean: Float[Tensor, "*B"], std: float) -> Float[Tensor, "*B"]:
    """Log-density of each number under a Gaussian."""
    return -0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)


class FlowCodec(Codec, Protocol):
    """Paths to actions, and actions to what the flow ends at."""

    def normalize(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]: ...


class FlowPolicy(Protocol):
    """A :class:`wmpo.protocols.Policy` whose ``__call__`` gives what its velocity needs of an observation."""

    @property
    def codec(self) -> FlowCodec: ...

    def __call__(self, **tensors: Tensor) -> Any: ...

    def velocity(
        self, context: Any, states: Float[Tensor, "B J K A"], time: Float[Tensor, "B J"]
    ) -> Float[Tensor, "B J K A"]:
        """At J states of every row, each with its own flow time."""


class PathLikelihood:
    """The :class:`wmpo.likelihood.Likelihood` of a flow policy. Its tokens are float [B, N, S + 1], noise first.

    The first noise has the standard deviation of the temperature, too: greedy is the deterministic flow from zero. It
    does not depend on the weights, so that it is no part of the log-probability.
    """

    def __init__(self, policy: FlowPolicy, config: DenoisingConfig) -> None:
        self._policy, self.config = policy, config

    def draw(
        self, seen: Mapping[str, Tensor], temperature: float, keys: NoiseKeys | None
    ) -> tuple[Float[Tensor, "B N S"], Float[Tensor, "B N"]]:
        device, count = _place(seen)
        size, (drawn, judged) = self._size(), (steps(self.config, t) for t in (temperature, temperature or 1.0))
        noise = torch.zeros(count, self.config.num_steps + 1, *size)
        if temperature > 0:
            assert keys is not None, "sampling needs noise"
            noise = row_normal(keys.seed, "rollout/path", keys.episodes, keys.chunk, noise.shape[1:])
        noise = noise.to(device)
        with autocast(device):
            context = self._policy(**seen)
        path = [temperature * noise[:, 0]]
        total = torch.zeros(count, *size, device=device)
        for i, (step, judge) in enumerate(zip(drawn, judged, strict=True)):
            time = torch.full((count, 1), step.time, device=device)
            velocity = self._velocity(context, path[-1].unsqueeze(1), time).squeeze(1)
            path.append(step.mean(path[-1], velocity) + step.std * noise[:, i + 1])
            total += normal_log_prob(path[-1], judge.mean(path[-2], velocity), judge.std)
        return torch.stack(path, dim=-1).flatten(1, 2).cpu(), total.flatten(1).cpu()

    def score(
        self, seen: Mapping[str, Tensor], tokens: Float[Tensor, "B N S"], temperature: float
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        device, count = _place(seen)
        made = steps(self.config, temperature)
        path = tokens.to(device).unflatten(1, self._size()).movedim(-1, 1)  # (B, S + 1, K, A)
        time = torch.tensor([step.time for step in made], device=device).expand(count, -1)
        with autocast(device):
            context = self._policy(**seen)
        velocity = self._velocity(context, path[:, :-1], time)
        each = [
            normal_log_prob(path[:, i + 1], step.mean(path[:, i], velocity[:, i]), step.std)
            for i, step in enumerate(made)
        ]
        total = torch.stack(each).sum(dim=0).flatten(1)
        spread = sum(math.log(step.std) + 0.5 * math.log(2 * math.pi * math.e) for step in made)
        return total.cpu(), torch.full(total.shape, spread)

    def cloning_noise(self, count: int, rng: np.random.Generator) -> tuple[Float[Tensor, "B J"], Tensor]:
        """Times that favour noise as in pi0 (arXiv 2410.24164), Beta(1.5, 1) in [0.001, 1], and noise [B, J, K, A]."""
        shape = count, self.config.times_per_sample
        time = 0.001 + 0.999 * rng.beta(1.5, 1.0, shape).astype(np.float32)
        noise = rng.standard_normal((*shape, *self._size()), dtype=np.float32)
        return torch.from_numpy(time), torch.from_numpy(noise)

    def cloning_loss(
        self, seen: Mapping[str, Tensor], actions: Float[Tensor, "B K A"], *noise: Tensor
    ) -> Float[Tensor, ""]:
        """Squared error of the velocity (flow matching, arXiv 2210.02747)."""
        device, _ = _place(seen)
        chunk = self._policy.codec.normalize(actions.to(device)).float().unsqueeze(1)
        time, pure = (drawn.to(device) for drawn in noise)
        t = time[..., None, None]
        with autocast(device):
            context = self._policy(**seen)
        velocity = self._velocity(context, t * pure + (1 - t) * chunk, time)
        return (velocity - (pure - chunk)).square().mean()

    def _size(self) -> tuple[int, int]:
        return self._policy.codec.chunk_size, self._policy.codec.action_dim

    def _velocity(self, context: Any, states: Tensor, time: Tensor) -> Float[Tensor, "B J K A"]:
        with autocast(states.device):
            return self._policy.velocity(context, states, time).float()


def _place(seen: Mapping[str, Tensor]) -> tuple[torch.device, int]:
    first = next(iter(seen.values()))
    return first.device, len(first)
