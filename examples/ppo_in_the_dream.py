"""PPO (arXiv 1707.06347), in one file, trained in the dream of a finished run and then evaluated in the simulator.

    python examples/ppo_in_the_dream.py runs/quickstart --num-updates 40

An example of wrapping any agent, no rival of GRPO from a cloned policy: it begins from nothing and is paid only where
the classifier sees success. Needs the extra sim. The real episodes at the end are in the run's ledger, as ``example``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from wmpo.data.splits import simulator_starts, start_seeds
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.statistics import wilson
from wmpo.stages.job import existing_job

UNUSED_START = 50_000
"""Of the validation starts: beyond those that the stages play."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """PPO's usual ones; ``num_steps`` are chunks that every row plays between two updates."""

    num_envs: int = 16
    num_steps: int = 12
    num_updates: int = 40
    num_epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 3e-4
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 1e-3


class Agent(nn.Module):
    """Pictures to a Gaussian over whole chunks, in units of the bounds (-1..1), and to a value."""

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__()
        low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
        self.register_buffer("centre", (high + low) / 2)
        self.register_buffer("reach", (high - low) / 2)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 128), nn.ReLU(),
        )  # fmt: skip
        self.mean, self.value = nn.Linear(128, low.numel()), nn.Linear(128, 1)
        nn.init.zeros_(self.mean.weight)  # begins in the middle of the bounds
        nn.init.zeros_(self.mean.bias)
        self.log_std = nn.Parameter(torch.full((low.numel(),), -0.7))

    def forward(self, frames: Tensor) -> tuple[Independent, Tensor]:
        """uint8 [B,h,w,3] -> distribution of [B,K*A], value [B]."""
        seen = self.body(frames.permute(0, 3, 1, 2).float() / 255)
        return Independent(Normal(self.mean(seen), self.log_std.exp()), 1), self.value(seen).squeeze(1)

    def chunk(self, action: Tensor) -> Tensor:
        """[B,K*A] -> [B,K,A] in the environment's units. The environment clips, so the density is that of what was
        drawn, not of what was played."""
        return self.centre + action.unflatten(1, self.centre.shape) * self.reach


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
        return Played(*(torch.stack(part) for part in zip(*rows, strict=True)), last_value=agent(self.frames)[1])


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


def update(agent: Agent, optimizer: torch.optim.Optimizer, played: Played, settings: Settings) -> float:
    """Some epochs of the clipped objective; returns the last loss."""
    gain = advantages(played, settings)
    chosen = played.real.flatten()
    frames, actions = played.frames.flatten(0, 1)[chosen], played.actions.flatten(0, 1)[chosen]
    old, gain, value = (part.flatten()[chosen] for part in (played.logprob, gain, played.value))
    target, loss = gain + value, torch.zeros(())
    for _ in range(settings.num_epochs):
        for rows in torch.randperm(len(old)).split(settings.batch_size):
            policy, guess = agent(frames[rows])
            ratio = (policy.log_prob(actions[rows]) - old[rows]).exp()
            scaled = (gain[rows] - gain[rows].mean()) / (gain[rows].std(correction=0) + 1e-8)
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            surrogate = torch.minimum(ratio * scaled, clipped * scaled).mean()
            fit = (guess - target[rows]).square().mean()
            loss = 0.5 * fit - surrogate - settings.entropy * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
    return loss.item()


def train(run: Path, settings: Settings, seed: int) -> Agent:
    """In the dream only."""
    # Whole chunks: the world model imagines one at a time. With action="single" pictures would stand still in between.
    envs = gymnasium.make_vec("wmpo.envs.gym:wmpo/Dream-v0", num_envs=settings.num_envs, run=run)
    torch.manual_seed(seed)
    agent = Agent(envs.single_action_space)
    optimizer = torch.optim.Adam(agent.parameters(), lr=settings.learning_rate, eps=1e-5)
    player = Player(envs, seed)
    for number in range(1, settings.num_updates + 1):
        played = player.play(agent, settings.num_steps)
        loss = update(agent, optimizer, played, settings)
        solved, ended = int(played.terminated.sum()), int(played.ended.sum())
        print(f"update {number:3d}  solved in the dream {solved} of {ended}  loss {loss:+.3f}", flush=True)
    envs.close()
    return agent


@torch.no_grad()
def evaluate(agent: Agent, run: Path, num_episodes: int) -> int:
    """Successes in the simulator, with the mean action. The same frames, bounds and time limit as in the dream."""
    with existing_job(run) as job:
        size = job.experiment.policy.chunk_size
        env = job.real_env(Purpose("example", "ppo", 0.0, job.seed), frame_stride=size)
        seeds = start_seeds("validation", job.seed, UNUSED_START, num_episodes)
        frame = env.reset(simulator_starts(seeds, job.experiment.env.instruction())).frame
        solved = torch.zeros(num_episodes, dtype=torch.bool)
        for _ in range(job.experiment.max_chunks):
            chunk = agent.chunk(agent(frame)[0].mean)
            low, high = agent.centre - agent.reach, agent.centre + agent.reach
            step = env.step(torch.minimum(torch.maximum(chunk, low), high))  # the dream clips by itself
            frame, solved = step.frames[:, -1], solved | step.terminated
    return int(solved.sum())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with a complete round")
    parser.add_argument("--num-updates", type=int, default=Settings.num_updates)
    parser.add_argument("--num-envs", type=int, default=Settings.num_envs)
    parser.add_argument("--num-episodes", type=int, default=32, help="real episodes at the end")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    agent = train(given.run, Settings(num_updates=given.num_updates, num_envs=given.num_envs), given.seed)
    solved = evaluate(agent, given.run, given.num_episodes)
    low, high = np.array(wilson(solved, given.num_episodes)) * 100
    print(f"solved in the simulator: {solved} of {given.num_episodes} [{low:.0f}, {high:.0f}] % (Wilson, 95 %)")


if __name__ == "__main__":
    main()
