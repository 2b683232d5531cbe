"""The one supervised loop: cloning, tokenizer, world model and reward are trained by it.

A step is a pure function of (weights, step number): batches and noise are keyed by the step. So an interrupted training
that goes on from its last checkpoint ends with the same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wmpo.checkpoint import load_tensors, pack_training, save_tensors, unpack_training
from wmpo.division import WHOLE, Division
from wmpo.nn import autocast, train_in_float32
from wmpo.protocols import Trainer
from wmpo.report.run import StageLog


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train one network by gradient descent."""

    num_steps: int = 1000
    "Optimiser steps."
    batch_size: int = 64
    "Samples in a step."
    micro_batch: int = 0
    "Samples in one forward pass; changes memory, not results; 0: the whole batch."
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


Part = Callable[[slice], Tensor]
"""The mean loss of some rows of a batch."""
Batches = Callable[[int], Part]
"""Draws the batch of a step, with all its noise: once, and whole, however it is divided then."""
Check = Callable[[int, dict[str, Any]], bool]
"""Called with the averaged weights in place: (steps done, notes that survive interruptions) -> go on?"""


class Training:
    """A :class:`wmpo.protocols.Trainer` in one process: a network, its optimiser and its averaged weights. It trains in
    place. Of a divided training it is one process's part, and each method is called on all of them at once."""

    def __init__(self, module: nn.Module, batches: Batches, config: FitConfig, division: Division = WHOLE) -> None:
        division.take(module)
        train_in_float32(module.parameters())
        self.module, self.config = module, config
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._batches, self._division, self._device = batches, division, self.parameters[0].device
        self._optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95), fused=True
        )
        self._ema = self._begun()
        module.train()

    def _begun(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters] if self.config.ema else []

    def step(self, number: int) -> float:
        """One optimiser step; returns the loss. Where that is not finite the weights stay as they are."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * schedule(number, self.config.num_steps)
        value = self._backward(number)
        if math.isfinite(value):
            nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
            self._optimizer.step()
            if self._ema:  # a short memory first, or early random weights linger
                decay = min(self.config.ema, (1 + number) / (10 + number))
                torch._foreach_lerp_(self._ema, [p.detach() for p in self.parameters], 1 - decay)
        self._optimizer.zero_grad(set_to_none=True)
        return value

    def _backward(self, number: int) -> float:
        """Adds up the parts' gradients; returns the loss of the whole batch."""
        with autocast(self._device):
            part = self._batches(number)
        losses = []
        for rows, share in self._division.parts(self.config.batch_size, self.config.micro_batch):
            with autocast(self._device):
                loss = part(rows) * share  # 1 for a whole batch, which changes no bit
            loss.backward()
            losses.append(loss.detach())
        return self._division.total(torch.stack(losses).sum()).item()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        trained = [p.detach().clone() for p in self.parameters]
        self.finish()
        with torch.no_grad():
            yield
        _put(self.parameters, trained)
        self.module.train()

    def finish(self) -> None:
        _put(self.parameters, self._ema)
        self.module.eval()

    def average(self) -> dict[str, Tensor]:
        """The weights that are kept, by name."""
        kept = dict(zip(self.parameters, self._ema, strict=False))
        own = dict(self.module.named_parameters(remove_duplicate=False))
        state = self.module.state_dict()
        return {name: kept.get(own[name], tensor) if name in own else tensor for name, tensor in state.items()}

    def save(self) -> dict[str, Tensor]:
        return pack_training(self.module, self._optimizer, self._ema)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        ema = unpack_training(tensors, self.module, self._optimizer)
        self._ema = [tensor.to(self._device) for tensor in ema] or self._begun()

    def targets(self) -> dict[str, Tensor]:
        """What each tensor of a checkpoint belongs to, by its name; moments by theirs without the last part."""
        weights = {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
        return weights | {f"{kind}.{i}": p for kind in ("optimizer", "ema") for i, p in enumerate(self.parameters)}


def fit(
    trainer: Trainer,
    config: FitConfig,
    *,
    checkpoint: Path,
    log: StageLog,
    check: Check | None = None,
    check_every: int = 0,
) -> dict[str, Any]:
    """Trains, and leaves the averaged weights in the network; returns the notes of ``check``."""
    first, notes = 0, {}
    if checkpoint.exists():
        tensors, header = load_tensors(checkpoint)
        trainer.restore(tensors)
        first, notes = header["step"], header["notes"]
    log.resume("step", first + 1)
    saved, running = time.monotonic(), 0.0
    for step in range(first, config.num_steps):
        if notes.get("stopped"):
            break
        value = trainer.step(step)
        if not math.isfinite(value):
            raise FloatingPointError(f"{log.stage}: the loss is {value} at step {step}; lower the learning rate")
        running = value if running == 0 else 0.95 * running + 0.05 * value
        done = step + 1
        if done % 20 == 0 or done == config.num_steps:
            log.write(step=done, loss=running)
            log.progress(done, config.num_steps, f"loss {running:.4f}")
        if check and (done % check_every == 0 or done == config.num_steps):
            with trainer.averaged():
                go_on = check(done, notes)
            notes["stopped"] = not go_on and done < config.num_steps
        if time.monotonic() - saved > config.checkpoint_seconds:
            save_tensors(checkpoint, trainer.save(), {"step": done, "notes": notes})
            log.keep_time()
            saved = time.monotonic()
    trainer.finish()
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
