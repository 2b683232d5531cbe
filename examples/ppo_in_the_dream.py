"""PPO (arXiv 1707.06347), in one file: cloned from what the base policy of a finished run solved, trained in the run's
dream, and watched in the simulator, where it is evaluated at the end beside the clone.

    python examples/ppo_in_the_dream.py runs/quickstart

An example of wrapping any agent. Paid only where the classifier sees success, from nothing it would hardly ever be, so
it begins as a clone, and stays near the solved episodes while it practises (DAPG, arXiv 1709.10087). Now and then it
plays a few real episodes, because a dream can be fooled: the agent that solved most of them is the one that is kept.
Needs the extra sim. Every real episode is in the run's ledger, as ``example``.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from wmpo.data.clips import ChunkClips, chunk_clips, shift
from wmpo.data.lerobot import read_episodes
from wmpo.data.splits import simulator_starts, start_seeds
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.statistics import paired_difference
from wmpo.stages.job import Job, existing_job

UNUSED_START = 50_000
"""Of the validation starts: beyond those that the stages play."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """PPO's usual ones; ``num_steps`` are chunks that every row plays between two updates."""

    num_envs: int = 32
    num_steps: int = 12
    num_updates: int = 40
    num_epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-4
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    deviation: float = 0.14
    "Of the Gaussian, where the bounds are -1..1."
    clone_steps: int = 1500
    clone_rate: float = 1e-3
    stay: float = 0.1
    "Weight of the cloning loss beside PPO's."
    value_updates: int = 4
    "The first ones teach only the value: advantages by an untrained one would ruin the clone."
    audit_every: int = 8
    num_audit: int = 32


class Agent(nn.Module):
    """Pictures to a Gaussian over whole chunks, in units of the bounds (-1..1), and to a value."""

    centre: Tensor
    reach: Tensor

    def __init__(self, space: gymnasium.spaces.Box, deviation: float) -> None:
        super().__init__()
        low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
        self.register_buffer("centre", (high + low) / 2)
        self.register_buffer("reach", (high - low) / 2)
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2), nn.ReLU(),
            nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(1152, 256), nn.ReLU(),
        )  # fmt: skip
        self.mean, self.value = nn.Linear(256, low.numel()), nn.Linear(256, 1)
        self.log_std = nn.Parameter(torch.full((low.numel(),), deviation).log())

    def forward(self, frames: Tensor) -> tuple[Independent, Tensor]:
        """uint8 [B,h,w,3] -> distribution of [B,K*A], value [B]."""
        seen = self.body(frames.permute(0, 3, 1, 2).float() / 255)
        # The value's gradient stops here: at first it is large, and would undo what the body learned as a clone.
        return Independent(Normal(self.mean(seen), self.log_std.exp()), 1), self.value(seen.detach()).squeeze(1)

    def chunk(self, action: Tensor) -> Tensor:
        """[B,K*A] -> [B,K,A] in the environment's units. The dream clips, so the density is that of what was drawn,
        not of what was played."""
        return self.centre + action.unflatten(1, self.centre.shape) * self.reach

    def clipped_mean(self, frames: Tensor) -> Tensor:
        """[B,K,A] for the simulator, within the bounds."""
        return self.chunk(self(frames)[0].mean.clamp(-1, 1))

    def cloning_loss(self, solved: ChunkClips, batch_size: int) -> Tensor:
        """Squared error of the mean on chunks of solved episodes, with pictures shifted by a few pixels."""
        rows, offsets = torch.randint(len(solved.actions), (batch_size,)), torch.randint(9, (batch_size, 2))
        wanted = ((solved.actions[rows] - self.centre) / self.reach).flatten(1).clamp(-1, 1)
        return (self(shift(solved.frame[rows], offsets, 4))[0].mean - wanted).square().mean()


def solved_chunks(job: Job) -> ChunkClips:
    """Demonstrations and what the base policy solved, as long as it needed for it: nothing that the dream taught."""
    episodes = [*job.demonstrations(), *read_episodes(job.collected_in(1))]
    return chunk_clips([each.until_solved() for each in episodes if each.success], job.experiment.policy.chunk_size)


def clone(agent: Agent, solved: ChunkClips, settings: Settings) -> None:
    """What the agent begins with."""
    optimizer = torch.optim.Adam(agent.parameters(), lr=settings.clone_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.clone_steps)
    for step in range(1, settings.clone_steps + 1):
        loss = agent.cloning_loss(solved, settings.batch_size)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        if step % 250 == 0 or step == settings.clone_steps:
            print(f"clone {step}/{settings.clone_steps}  error {loss.item():.4f}", flush=True)


@dataclass
class Played:
    """[T,B] of everything that the agent saw and did; ``real`` is False where a row was only being reset."""

    frames: Tensor
    actions: Tensor
    logprob: Tensor
    value: Tensor
    reward: Tensor
    terminated: Tensor
    ended: Tensor
    real: Tensor
    last_value: Tensor


class Player:
    """Keeps the dream going from one update to the next."""

    def __init__(self, envs: gymnasium.vector.VectorEnv, seed: int) -> None:
        self.envs = envs
        # Rows depend on the seed only, not on num_envs; the first of each starts with seed, seed + 1, ...
        self.frames = torch.from_numpy(envs.reset(seed=seed)[0])
        self.ended = torch.zeros(envs.num_envs, dtype=torch.bool)

    @torch.no_grad()
    def play(self, agent: Agent, num_steps: int) -> Played:
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(num_steps):
            policy, value = agent(self.frames)
            action = policy.sample()
            before, resetting = self.frames, self.ended
            frames, reward, terminated, truncated, _ = self.envs.step(agent.chunk(action).numpy())
            # The frame of the step that ends an episode is still that episode's: its value is what a time limit cut
            # off. The row is reset in the *next* step, which ignores the action: no transition to learn from.
            self.frames, done = torch.from_numpy(frames), torch.from_numpy(terminated)
            self.ended = done | torch.from_numpy(truncated)
            paid = torch.from_numpy(reward).float()
            rows.append((before, action, policy.log_prob(action), value, paid, done, self.ended, ~resetting))
        stacked = [torch.stack(part) for part in zip(*rows, strict=True)]
        return Played(*[*stacked, agent(self.frames)[1]])


def advantages(played: Played, settings: Settings) -> Tensor:
    """Generalised advantage estimates (arXiv 1506.02438) [T,B]. Success has no future; a time limit is only the end of
    what was seen, so there the value of the last frame stands in for the rest."""
    result, carried, following = torch.zeros_like(played.reward), torch.zeros(()), played.last_value
    for t in reversed(range(len(played.reward))):
        future = settings.discount * following * ~played.terminated[t]
        error = played.reward[t] + future - played.value[t]
        carried = error + settings.discount * settings.trace * carried * ~played.ended[t]
        result[t], following = carried, played.value[t]
    return result


def update(
    agent: Agent, optimizer: torch.optim.Optimizer, played: Played, solved: ChunkClips, settings: Settings, *,
    value_only: bool,
) -> None:  # fmt: skip
    """Some epochs of the clipped objective."""
    gain = advantages(played, settings)
    chosen = played.real.flatten()
    frames, actions = played.frames.flatten(0, 1)[chosen], played.actions.flatten(0, 1)[chosen]
    old, gain, value = (part.flatten()[chosen] for part in (played.logprob, gain, played.value))
    target = gain + value
    for _ in range(settings.num_epochs):
        for rows in torch.randperm(len(old)).split(settings.batch_size):
            policy, guess = agent(frames[rows])
            loss = (guess - target[rows]).square().mean()
            if not value_only:
                ratio = (policy.log_prob(actions[rows]) - old[rows]).exp()
                scaled = (gain[rows] - gain[rows].mean()) / (gain[rows].std(correction=0) + 1e-8)
                clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                loss = loss - torch.minimum(ratio * scaled, clipped * scaled).mean()
                loss = loss + settings.stay * agent.cloning_loss(solved, settings.batch_size) / settings.deviation**2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


@torch.no_grad()
def play_for_real(agent: Agent, job: Job, first: int, num_episodes: int) -> np.ndarray:
    """Outcomes [N] in the simulator with the mean action. The same frames, bounds and time limit as in the dream."""
    env = job.real_env(Purpose("example", "ppo", 0.0, job.seed), frame_stride=job.experiment.policy.chunk_size)
    seeds = start_seeds("validation", job.seed, UNUSED_START + first, num_episodes)
    frame = env.reset(simulator_starts(seeds, job.experiment.env.instructions)).frame
    solved = torch.zeros(num_episodes, dtype=torch.bool)
    for _ in range(job.experiment.max_chunks):
        step = env.step(agent.clipped_mean(frame))
        frame, solved = step.frames[:, -1], solved | step.terminated
    return solved.numpy()


def practise(agent: Agent, job: Job, solved: ChunkClips, settings: Settings, seed: int) -> Agent:
    """In the dream; returns the agent that solved most of the real episodes between, which may be the one that came."""
    # Whole chunks: the world model imagines one at a time. With action="single" pictures would stand still in between.
    envs = gymnasium.make_vec("wmpo.envs.gym:wmpo/Dream-v0", num_envs=settings.num_envs, run=job.root.path)
    optimizer = torch.optim.Adam(agent.parameters(), lr=settings.learning_rate, eps=1e-5)
    player, best, most = Player(envs, seed), deepcopy(agent), -1
    for number in range(settings.num_updates + 1):
        if number % settings.audit_every == 0 and settings.num_audit:
            real = int(play_for_real(agent, job, 0, settings.num_audit).sum())
            print(f"audit after update {number}: {real} of {settings.num_audit} real episodes", flush=True)
            best, most = (deepcopy(agent), real) if real > most else (best, most)
        if number < settings.num_updates:
            played = player.play(agent, settings.num_steps)
            update(agent, optimizer, played, solved, settings, value_only=number < settings.value_updates)
            done, ended = int(played.terminated.sum()), int(played.ended.sum())
            print(f"update {number + 1:3d}  solved in the dream {done} of {ended}", flush=True)
    envs.close()
    return best if settings.num_audit else agent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with a complete round")
    parser.add_argument("--num-updates", type=int, default=Settings.num_updates)
    parser.add_argument("--num-envs", type=int, default=Settings.num_envs)
    parser.add_argument("--clone-steps", type=int, default=Settings.clone_steps)
    parser.add_argument("--num-audit", type=int, default=Settings.num_audit, help="real episodes of an audit; 0: none")
    parser.add_argument("--num-episodes", type=int, default=64, help="real episodes at the end, on other starts")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(arguments))
    path, num_episodes, seed = given.pop("run"), given.pop("num_episodes"), given.pop("seed")
    settings = Settings(**given)
    torch.manual_seed(seed)
    with existing_job(path) as job:
        solved = solved_chunks(job)
        envs = gymnasium.make("wmpo.envs.gym:wmpo/Dream-v0", run=path)
        assert isinstance(envs.action_space, gymnasium.spaces.Box)
        agent = Agent(envs.action_space, settings.deviation)
        envs.close()
        clone(agent, solved, settings)
        cloned = deepcopy(agent)
        agent = practise(agent, job, solved, settings, seed)
        before, after = (play_for_real(each, job, settings.num_audit, num_episodes) for each in (cloned, agent))
    points, (low, high) = paired_difference(before, after)
    print(
        f"solved in the simulator: {before.sum()} -> {after.sum()} of {num_episodes}, "
        f"{points:+.1f} points [{low:+.1f}, {high:+.1f}] (bootstrap over starts, 95 %)"
    )


if __name__ == "__main__":
    main()
