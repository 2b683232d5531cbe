"""The one interaction loop: collection, imagination, audits and evaluation all go through it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wmpo import likelihood
from wmpo.protocols import ChunkEnv, Policy
from wmpo.types import Observation, Rollouts, Starts


@torch.no_grad()
def run_episodes(
    env: ChunkEnv, policy: Policy, starts: Starts, *, temperature: float, seed: int, record_video: bool = False
) -> Rollouts:
    """Plays one episode per start, in lockstep over chunks; rows that finished leave the policy's batch.

    Token noise is keyed by (seed, episode_id, chunk): the same start gives the same episode in any batch.
    """
    observation = env.reset(starts)
    frames, tokens, logprobs, executed, video = [], [], [], [], [observation.frame.unsqueeze(1)]
    playing = torch.ones(len(starts), dtype=torch.bool)
    success = torch.zeros(len(starts), dtype=torch.bool)
    num_steps = torch.zeros(len(starts), dtype=torch.long)
    trusted = torch.ones(len(starts), dtype=torch.bool)
    for chunk in range(env.max_chunks):
        rows = playing.nonzero().squeeze(1)
        row_tokens, row_logprob = decide(policy, observation, starts, rows, temperature, seed, chunk)
        chunk_tokens = row_tokens.new_zeros(len(starts), *row_tokens.shape[1:])
        chunk_logprob = torch.zeros(chunk_tokens.shape[:2])
        chunk_tokens[rows], chunk_logprob[rows] = row_tokens, row_logprob
        step = env.step(policy.codec.decode(chunk_tokens))
        frames.append(observation.frame)
        tokens.append(chunk_tokens)
        logprobs.append(chunk_logprob)
        executed.append(_executed(step.steps, env.chunk_size, chunk_tokens.shape[1]))
        if record_video:
            video.append(step.frames)
        success |= step.terminated
        num_steps += step.steps
        if step.trusted is not None:
            trusted &= step.trusted
        playing &= ~(step.terminated | step.truncated)
        observation = Observation(frame=step.frames[:, -1], instruction=starts.instruction)
        if not playing.any():
            break
    return Rollouts(
        frame=torch.stack(frames, dim=1),
        instruction=starts.instruction,
        tokens=torch.stack(tokens, dim=1),
        logprob=torch.stack(logprobs, dim=1),
        executed=torch.stack(executed, dim=1),
        success=success,
        num_steps=num_steps,
        sim_seed=starts.sim_seed,
        group=starts.group,
        episode_id=starts.episode_id,
        trusted=trusted,
        video=torch.cat(video, dim=1) if record_video else None,
    )


def run_in_parts(
    env: ChunkEnv, policy: Policy, starts: Starts, most: int, *, temperature: float, seed: int
) -> Iterator[Rollouts]:
    """The same episodes, at most so many at once (0: all), one part after the other."""
    for rows in torch.arange(len(starts)).split(most or len(starts)):
        yield run_episodes(env, policy, starts.rows(rows), temperature=temperature, seed=seed)


def decide(
    policy: Policy, observation: Observation, starts: Starts, rows: Tensor, temperature: float, seed: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """Tokens of ``rows``, those that still play, and their log-probabilities (at temperature 1 when greedy)."""
    seen = Observation(frame=observation.frame[rows], instruction=tuple(starts.instruction[i] for i in rows.tolist()))
    keys = likelihood.NoiseKeys(seed, starts.episode_id[rows].tolist(), chunk)
    return likelihood.of(policy).draw(policy.prepare(seen), temperature, keys)


def _executed(steps: Tensor, chunk_size: int, num_tokens: int) -> Tensor:
    """[B] executed actions -> [B, N] mask over the chunk's tokens (time first)."""
    per_step = torch.arange(chunk_size) < steps.unsqueeze(1)
    return per_step.repeat_interleave(num_tokens // chunk_size, dim=1)
