"""The one supervised loop: cloning, tokenizer, world model and reward are trained by it.

A step is a pure function of (weights, step number): batches and noise are keyed by the step. So an interrupted training
that goes on from its last checkpoint ends with the same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wmpo.checkpoint import Stateful, load_tensors, pack_training, save_tensors, unpack_training
from wmpo.nn import autocast
from wmpo.report.run import StageLog


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train one network by gradient descent."""

    num_steps: int = 1000
    "Optimiser steps."
    batch_size: int = 64
    "Samples in a step."
    learning_rate: float = 1e-3
    "Peak learning rate: linear warm-up over the first 5 %, then a cosine to 0."
    weight_decay: float = 1e-2
    "Decoupled weight decay (AdamW)."
    max_grad_norm: float = 1.0
    "Gradients are clipped to this norm."
    ema: float = 0.99
    "Decay of the averaged weights that are kept; 0 keeps the last ones."
    checkpoint_seconds: float = 30.0
    "An interruption loses at most this much work."


Check = Callable[[int, dict[str, Any]], bool]
"""Called with the averaged weights in place: (steps done, notes that survive interruptions) -> go on?"""


class Trainable(Stateful, Protocol):
    """The part of :class:`torch.nn.Module` that training needs."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = True) -> object: ...

    def eval(self) -> object: ...


def fit(
    module: Trainable,
    loss: Callable[[int], Tensor],
    config: FitConfig,
    *,
    checkpoint: Path,
    log: StageLog,
    check: Check | None = None,
    check_every: int = 0,
) -> dict[str, Any]:
    """Trains in place and leaves the averaged weights in ``module``; returns the notes of ``check``."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95), fused=True
    )
    ema = [p.detach().clone() for p in parameters] if config.ema else []
    first, notes = 0, {}
    if checkpoint.exists():
        tensors, header = load_tensors(checkpoint)
        ema = [t.to(device) for t in unpack_training(tensors, module, optimizer)]
        first, notes = header["step"], header["notes"]
    log.resume("step", first + 1)
    saved, running = time.monotonic(), 0.0
    module.train()
    for step in range(first, config.num_steps):
        if notes.get("stopped"):
            break
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.num_steps)
        with autocast(device):
            value = loss(step)
        if not torch.isfinite(value):
            raise FloatingPointError(f"{log.stage}: the loss is {value.item()} at step {step}; lower the learning rate")
        value.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema:  # a short memory first, or early random weights linger
            torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - min(config.ema, (1 + step) / (10 + step)))
        running = value.item() if running == 0 else 0.95 * running + 0.05 * value.item()
        done = step + 1
        if done % 20 == 0 or done == config.num_steps:
            log.write(step=done, loss=running)
            log.progress(done, config.num_steps, f"loss {running:.4f}")
        if check and (done % check_every == 0 or done == config.num_steps):
            go_on = _checked(module, parameters, ema, check, done, notes)
            notes["stopped"] = not go_on and done < config.num_steps
        if time.monotonic() - saved > config.checkpoint_seconds:
            save_tensors(checkpoint, pack_training(module, optimizer, ema), {"step": done, "notes": notes})
            log.keep_time()
            saved = time.monotonic()
    _put(parameters, ema)
    module.eval()
    return notes


def schedule(step: int, num_steps: int) -> float:
    """Warm-up, then cosine; a fraction of the peak."""
    warmup = max(1, num_steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _put(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=False):
            parameter.copy_(value)


def _checked(
    module: Trainable, parameters: list[nn.Parameter], ema: list[Tensor], check: Check, done: int, notes: dict[str, Any]
) -> bool:
    """Runs ``check`` with the averaged weights in place, then puts the trained ones back."""
    trained = [p.detach().clone() for p in parameters]
    _put(parameters, ema)
    module.eval()
    with torch.no_grad():
        go_on = check(done, notes)
    _put(parameters, trained)
    module.train()
    return go_on
