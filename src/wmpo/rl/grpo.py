"""The learner of GRPO: owns the trained policy and its optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wmpo import likelihood
from wmpo.checkpoint import pack_training, unpack_training
from wmpo.nn import train_in_float32
from wmpo.protocols import TrainablePolicy
from wmpo.rl.advantage import group_advantages
from wmpo.rl.loss import ClipConfig, policy_loss
from wmpo.rng import keyed
from wmpo.types import Minibatch, Observation, Rollouts


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Group-relative policy optimisation."""

    learning_rate: float = 1e-4
    "Learning rate (AdamW), constant after the warm-up."
    warmup_steps: int = 8
    "Optimiser steps over which the rate rises: AdamW's first steps have full size however small the gradient is."
    weight_decay: float = 0.0
    "Decoupled weight decay."
    max_grad_norm: float = 1.0
    "Gradients are clipped to this norm."
    num_minibatches: int = 4
    "Optimiser steps in one pass over the episodes of an iteration."
    num_epochs: int = 1
    "Passes over the episodes of an iteration."
    micro_batch: int = 256
    "Decisions in one forward pass; changes memory, not results."
    clip: ClipConfig = field(default_factory=ClipConfig)
    "The clipping of the ratio."


def minibatches(rollouts: Rollouts, config: GRPOConfig, *, seed: int, iteration: int) -> list[Minibatch]:
    """Splits episodes, shuffled, into minibatches of whole episodes, and flattens them into decisions. Episodes that
    are not trusted are compared with their siblings but teach nothing."""
    advantage = group_advantages(rollouts.success.float(), rollouts.group) * rollouts.trusted
    batches = []
    for epoch in range(config.num_epochs):
        order = torch.from_numpy(keyed(seed, "improve/order", iteration, epoch).permutation(len(rollouts)))
        for rows in order.tensor_split(min(config.num_minibatches, len(rollouts))):
            batches.append(_decisions(rollouts.rows(rows), advantage[rows]))
    return batches


def _decisions(rollouts: Rollouts, advantage: Tensor) -> Minibatch:
    played = rollouts.executed.any(dim=2)
    weight = 1 / rollouts.executed.flatten(1).sum(dim=1).clamp(min=1).float()
    episode, _ = played.nonzero(as_tuple=True)
    return Minibatch(
        frame=rollouts.frame[played],
        instruction=tuple(rollouts.instruction[i] for i in episode.tolist()),
        tokens=rollouts.tokens[played],
        old_logprob=rollouts.logprob[played],
        mask=rollouts.executed[played],
        advantage=advantage[episode],
        weight=weight[episode],
        num_episodes=len(rollouts),
    )


class GRPOLearner:
    """A :class:`wmpo.protocols.Learner` in one process."""

    def __init__(self, policy: TrainablePolicy, config: GRPOConfig, *, temperature: float) -> None:
        train_in_float32(policy.parameters())
        self.policy, self.config, self.temperature = policy.eval(), config, temperature
        on_gpu = next(policy.parameters()).is_cuda  # there the default holds another copy of the weights for a moment
        self._optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95),
            fused=on_gpu or None,
        )  # fmt: skip

    def step(self, minibatch: Minibatch) -> dict[str, float]:
        """One optimiser step. Returns clip fraction, KL to the sampling policy, entropy, and the gradient's norm."""
        sums = self._backward(minibatch)
        norm = self._clip()
        if not torch.isfinite(norm):
            raise FloatingPointError("the policy's gradient is not finite; lower improve.grpo.learning-rate")
        for settings in self._optimizer.param_groups:
            settings["lr"] = self.config.learning_rate * min(1.0, (self._num_steps() + 1) / self.config.warmup_steps)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        clipped, kl, entropy = (sums[:3] / sums[3].clamp(min=1)).tolist()
        return {"clip_fraction": clipped, "kl": kl, "entropy": entropy, "grad_norm": float(norm)}

    def _backward(self, minibatch: Minibatch) -> Tensor:
        """Adds up gradients; returns the sums of clipped tokens, KL, entropy and executed tokens [4]."""
        sums = torch.zeros(4)
        for begin in range(0, len(minibatch), self.config.micro_batch):
            part = minibatch.rows(slice(begin, begin + self.config.micro_batch))
            seen = self.policy.prepare(Observation(frame=part.frame, instruction=part.instruction))
            logprob, spread = likelihood.of(self.policy).score(seen, part.tokens, self.temperature)
            loss = policy_loss(
                logprob, part.old_logprob, part.mask, part.advantage, part.weight, part.num_episodes, self.config.clip
            )
            loss.total.backward()
            spread = (spread * part.mask).sum()
            sums += torch.stack([loss.clipped, loss.kl, spread, torch.tensor(float(loss.num_tokens))]).detach()
        return sums

    def _clip(self) -> Tensor:
        """Limits the gradient; returns its norm before."""
        return nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)

    def _num_steps(self) -> int:
        """Optimiser steps so far; AdamW counts them, so a restored learner knows too."""
        states = self._optimizer.state.values()
        return int(next(iter(states))["step"]) if states else 0

    def publish(self) -> Mapping[str, Tensor]:
        """The newest weights, for samplers, which take them in their own type."""
        return {name: tensor.detach().clone() for name, tensor in self.policy.state_dict().items()}

    def save(self) -> dict[str, Tensor]:
        """Weights and optimiser, for a checkpoint."""
        return pack_training(self.policy, self._optimizer, [])

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        unpack_training(tensors, self.policy, self._optimizer)
