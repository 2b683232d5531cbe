"""Rectified flow from the last known frame to the next one: pure functions.

The paper's flow starts at pure noise (arXiv 2511.09515, section 3). Consecutive frames are nearly equal, so this one
starts at the last frame plus noise, ``x_0 = last + sigma * noise``: the background is there already and one or two
Euler steps are enough.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(state [B, ...], flow time [B]) -> velocity [B, ...]."""
Shortcut = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(state [B, ...], flow time [B], step [B]) -> mean velocity [B, ...] over the step; over a step of 0 the velocity."""


def begin(last: Float[Tensor, "B *S"], noise: Float[Tensor, "B *S"], sigma: float) -> Float[Tensor, "B *S"]:
    """x_0: the last frame, blurred by noise so that the flow can represent more than one future."""
    return last + sigma * noise


def between(x0: Float[Tensor, "B *S"], x1: Float[Tensor, "B *S"], time: Float[Tensor, " B"]) -> Float[Tensor, "B *S"]:
    """x_t on the straight line from x_0 (t = 0) to x_1 (t = 1)."""
    t = time.view(-1, *[1] * (x0.dim() - 1))
    return (1 - t) * x0 + t * x1


def velocity(x: Float[Tensor, "B *S"], x1: Float[Tensor, "B *S"], time: Float[Tensor, " B"]) -> Float[Tensor, "B *S"]:
    """d x_t / dt of the straight line that leads from x_t to x_1; the same all along it."""
    return (x1 - x) / (1 - time.view(-1, *[1] * (x.dim() - 1)))


def logit_normal_time(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Flow times t = sigmoid(N(0, 1)), with three tenths of them at exactly 0, where every sampler begins."""
    time = torch.randn(count, generator=generator).sigmoid()
    return torch.where(torch.rand(count, generator=generator) < 0.3, torch.zeros(()), time)


def times(num_steps: int, like: Tensor) -> list[Float[Tensor, " B"]]:
    """The times at which ``num_steps`` equal Euler steps look."""
    return [torch.full((len(like),), step / num_steps, device=like.device) for step in range(num_steps)]


def euler(velocity: Velocity, x0: Float[Tensor, "B *S"], num_steps: int) -> Float[Tensor, "B *S"]:
    """Integrates from t = 0 to 1 in equal steps; exact when the velocity does not depend on time and state."""
    x = x0
    for time in times(num_steps, x0):
        x = x + velocity(x, time) / num_steps
    return x


def two_halves(
    shortcut: Shortcut, x: Float[Tensor, "B *S"], time: Float[Tensor, " B"], step: Float[Tensor, " B"], finest: float
) -> Float[Tensor, "B *S"]:
    """Mean velocity over a step that is taken in two halves: what one step of that size shall learn (shortcut models,
    arXiv 2410.12557). Halves of size ``finest`` or smaller are Euler steps, along the velocity itself."""
    half = step / 2
    asked = torch.where(half > finest, half, 0.0)
    first = shortcut(x, time, asked)
    middle = x + half.view(-1, *[1] * (x.dim() - 1)) * first
    return (first + shortcut(middle, time + half, asked)) / 2


def shortcut_times(
    count: int, num_steps: int, generator: torch.Generator
) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"]]:
    """Steps of size 1, 1/2, 1/4, ... and 2 / ``num_steps`` (a power of two), equally often, and times at which a
    sampler with steps of that size looks."""
    halvings = torch.randint(num_steps.bit_length() - 1, (count,), generator=generator)
    parts = 2.0**halvings
    return (torch.rand(count, generator=generator) * parts).floor() / parts, 1 / parts
