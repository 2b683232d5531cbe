"""Preferences among a policy's own real episodes: successes over failures (DPO, arXiv 2305.18290).

Differs from the original: outcomes take the place of human preferences, a pair need not share its start, and successes
are also cloned (as in arXiv 2404.19733): preference alone is satisfied when both get less likely, the failure more so,
and after fifteen small steps such a policy fails. The reference is the policy that played the episodes, so its
log-probabilities are those of the rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wmpo import likelihood
from wmpo.data.episode import Episode
from wmpo.protocols import TrainablePolicy
from wmpo.report.run import StageLog
from wmpo.rl.dpo import dpo_loss, sequence_logprob
from wmpo.rng import keyed
from wmpo.train.fit import FitConfig, Part, Training, fit
from wmpo.types import Observation, Rollouts


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Preference optimisation on collected episodes."""

    beta: float = 0.1
    "Strength of the tie to the base policy: small values let the policy go far from it."
    imitation: float = 1.0
    "Weight of the successes' negative log-likelihood per token beside the preference; 0: preference alone."
    pairing: Literal["start", "task"] = "start"
    "A success is paired with failures from its own start, failing that (or with task: always) with any of its task."
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(num_steps=100, batch_size=8, learning_rate=1e-4, weight_decay=0.0)
    )
    "The training loop; a sample is a pair."


@dataclass(frozen=True, slots=True)
class Pairs:
    """``success[i]`` may be paired with each of ``failures[i]``: rows of the rollouts."""

    success: Int[Tensor, " W"]
    failures: tuple[Int[Tensor, " _"], ...]
    same_start: int
    "Successes whose failures begin at the same start."

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
        """(successes, failures): every success equally often, and of its failures every one."""
        picked = rng.integers(len(self.success), size=count)
        losers = [self.failures[i][int(rng.integers(len(self.failures[i])))] for i in picked]
        return self.success[torch.from_numpy(picked)], torch.stack(losers)


def pair(rollouts: Rollouts, pairing: Literal["start", "task"]) -> Pairs:
    """Raises ValueError when no success has a failure beside it."""
    lost = (~rollouts.success).nonzero().squeeze(1)
    won, failures, same_start = [], [], 0
    for row in rollouts.success.nonzero().squeeze(1).tolist():
        near = lost[rollouts.sim_seed[lost] == rollouts.sim_seed[row]]
        if pairing == "task" or not len(near):
            near = torch.tensor([i for i in lost.tolist() if rollouts.instruction[i] == rollouts.instruction[row]])
        else:
            same_start += 1
        if len(near):
            won.append(row)
            failures.append(near)
    if not won:
        wins = int(rollouts.success.sum())
        raise ValueError(
            f"DPO needs successes and failures of the same task, but {wins} of {len(rollouts)} episodes succeeded; "
            "raise the budget, or make the base policy stronger or weaker (--demos.num-episodes)"
        )
    return Pairs(torch.tensor(won), tuple(failures), same_start)


@torch.no_grad()
def rollouts_of(episodes: Sequence[Episode], policy: TrainablePolicy, *, temperature: float) -> Rollouts:
    """Recorded episodes of ``policy`` as rollouts again, with the log-probabilities that it gives to its actions."""
    size, codec = policy.codec.chunk_size, policy.codec
    if not hasattr(codec, "encode"):
        raise ValueError("DPO judges recorded actions, so the policy must be one of discrete tokens")
    num_tokens = size * codec.action_dim
    chunks = [len(episode.actions) // size for episode in episodes]
    shape = len(episodes), max(chunks)
    frame = torch.zeros(*shape, *episodes[0].frames.shape[1:], dtype=torch.uint8)
    tokens = torch.zeros(*shape, num_tokens, dtype=torch.long)
    logprob = torch.zeros(*shape, num_tokens)
    num_steps = torch.tensor([e.solved_at if e.success else len(e.actions) for e in episodes])
    for i, episode in enumerate(episodes):
        seen = torch.from_numpy(episode.frames[: chunks[i] * size : size])
        actions = torch.from_numpy(episode.actions[: chunks[i] * size]).unflatten(0, (chunks[i], size))
        frame[i, : chunks[i]], tokens[i, : chunks[i]] = seen, codec.encode(actions)
        said = (episode.instruction,) * chunks[i]
        logprob[i, : chunks[i]] = _logprob(policy, seen, said, tokens[i, : chunks[i]], temperature)
    steps = torch.arange(shape[1] * size) < num_steps.unsqueeze(1)
    starts = torch.tensor([episode.start for episode in episodes])
    return Rollouts(
        frame=frame,
        instruction=tuple(episode.instruction for episode in episodes),
        tokens=tokens,
        logprob=logprob,
        executed=steps.repeat_interleave(codec.action_dim, dim=1).unflatten(1, (shape[1], num_tokens)),
        success=torch.tensor([episode.success for episode in episodes]),
        num_steps=num_steps,
        sim_seed=starts,
        group=starts,
        episode_id=torch.tensor([episode.episode_id for episode in episodes]),
        trusted=torch.ones(len(episodes), dtype=torch.bool),
    )


def _logprob(
    policy: TrainablePolicy, frame: Tensor, instruction: tuple[str, ...], tokens: Tensor, temperature: float
) -> Float[Tensor, "D N"]:
    seen = policy.prepare(Observation(frame=frame, instruction=instruction))
    return likelihood.of(policy).score(seen, tokens, temperature)[0]


def prefer(
    policy: TrainablePolicy,
    rollouts: Rollouts,
    config: DPOConfig,
    *,
    temperature: float,
    seed: int,
    checkpoint: Path,
    log: StageLog,
) -> Pairs:
    """Trains the policy that played ``rollouts``, in place, to prefer its successes. Returns the pairs.

    Args:
        temperature: at which the episodes were sampled; log-probabilities are taken there.
    """
    assert isinstance(policy, torch.nn.Module)
    pairs = pair(rollouts, config.pairing)

    def batch(step: int) -> Part:
        won, lost = pairs.draw(keyed(seed, "dpo/pairs", step), config.fit.batch_size)
        return lambda rows: _loss(policy, rollouts.rows(torch.cat([won[rows], lost[rows]])), config, temperature)

    fit(Training(policy, batch, config.fit), config.fit, checkpoint=checkpoint, log=log)
    return pairs


def _loss(policy: TrainablePolicy, both: Rollouts, config: DPOConfig, temperature: float) -> Float[Tensor, ""]:
    """Of pairs: first all successes, then the failure of each."""
    played = both.executed.any(dim=2)
    episode, _ = played.nonzero(as_tuple=True)
    said = tuple(both.instruction[i] for i in episode.tolist())
    logprob = _logprob(policy, both.frame[played], said, both.tokens[played], temperature)
    mask = both.executed[played]
    mine = sequence_logprob(logprob, mask, episode, len(both))
    reference = sequence_logprob(both.logprob[played], mask, episode, len(both))
    (chosen, rejected), (before_chosen, before_rejected) = mine.chunk(2), reference.chunk(2)
    preference = dpo_loss(chosen, rejected, before_chosen, before_rejected, config.beta).total
    num_tokens = both.executed[: len(chosen)].flatten(1).sum(dim=1)
    return preference - config.imitation * (chosen / num_tokens).mean()
