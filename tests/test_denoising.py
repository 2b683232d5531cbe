"""Flow-matching policies: closed forms of their sampler and likelihood, and that GRPO and cloning learn them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import ACTIONS, CHUNK, SIZE, BanditEnv, some_starts
from test_bandit import success, trained
from torch import Tensor, nn

from wmpo import likelihood
from wmpo.data.episode import Episode
from wmpo.denoising import DenoisingConfig, PathLikelihood, steps
from wmpo.likelihood import NoiseKeys
from wmpo.policy.codec import PathCodec
from wmpo.policy.small_flow import SmallFlowPolicy, SmallFlowPolicyConfig
from wmpo.report.run import RunFolder, StageLog
from wmpo.rl.grpo import GRPOConfig, GRPOLearner, minibatches
from wmpo.rng import keyed
from wmpo.rollout.run import run_episodes
from wmpo.train.fit import FitConfig, fit
from wmpo.train.sft import SFTConfig, cloning
from wmpo.types import Observation

pytestmark = pytest.mark.usefixtures("float32")
BANDIT = PathCodec((0.0, 0.0), (1.0, 1.0), 2)


class GaussianFlow(nn.Module):
    """Looks at nothing; its velocity is the exact one of independent numbers with this mean and deviation."""

    def __init__(self, config: DenoisingConfig, mean: float = 0.0, std: float = 1.0, codec: PathCodec = BANDIT) -> None:
        super().__init__()
        self.config, self.codec, self.std = config, codec, std
        self.mean = nn.Parameter(torch.full((codec.chunk_size, codec.action_dim), mean))

    @property
    def likelihood(self) -> PathLikelihood:
        return PathLikelihood(self, self.config)

    def prepare(self, observation: Observation) -> Mapping[str, Tensor]:
        return {"frame": observation.frame}

    def forward(self, frame: Tensor) -> Tensor:
        return torch.zeros(len(frame), 1)

    def velocity(self, context: Tensor, states: Tensor, time: Tensor) -> Tensor:
        t = time[..., None, None]
        slope = (t - (1 - t) * self.std**2) / (t**2 + ((1 - t) * self.std) ** 2)
        return slope * (states - (1 - t) * self.mean) - self.mean


def flow_policy(seed: int = 0, chunk_size: int = CHUNK, actions: int = ACTIONS, num_steps: int = 3) -> SmallFlowPolicy:
    torch.manual_seed(seed)
    codec = PathCodec((0.0,) * actions, (1.0,) * actions, chunk_size, 1.0)
    denoising = DenoisingConfig(num_steps=num_steps, times_per_sample=8)
    sizes = SmallFlowPolicyConfig(dim=16, depth=1, num_heads=2, hidden=48, chunk_size=chunk_size, denoising=denoising)
    return sizes.build(codec, SIZE).eval()


def seen_by(policy: GaussianFlow | SmallFlowPolicy, count: int, seed: int = 0) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return policy.prepare(Observation(frame=frame, instruction=("push it",) * count))


def keys(count: int, seed: int = 0) -> NoiseKeys:
    return NoiseKeys(seed, range(count), 0)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_one_step_is_one_gaussian(temperature: float) -> None:
    policy = GaussianFlow(DenoisingConfig(num_steps=1, min_std=0.2), mean=0.7, std=0.3)
    path, logprob = policy.likelihood.draw(seen_by(policy, 5), temperature, keys(5))
    # at time 1 the velocity is x - mean, so the step ends at the mean
    expected = torch.distributions.Normal(0.7, 0.2 * temperature).log_prob(path[..., 1])
    assert path.shape == (5, 4, 2) and torch.allclose(logprob, expected, atol=1e-5)
    again, spread = policy.likelihood.score(seen_by(policy, 5), path, temperature)
    assert torch.allclose(again, expected, atol=1e-5)
    assert torch.allclose(spread, torch.distributions.Normal(0.7, 0.2 * temperature).entropy())


@torch.no_grad()
@pytest.mark.parametrize("noise_level", [0.0, 0.7])
def test_the_marginals_of_a_linear_field_are_those_of_the_flow(noise_level: float) -> None:
    config = DenoisingConfig(num_steps=160, noise_level=noise_level, min_std=1e-3)
    policy = GaussianFlow(config, mean=0.6, std=0.4, codec=PathCodec((0.0,) * 8, (1.0,) * 8, 8))
    path, _ = policy.likelihood.draw(seen_by(policy, 400), 1.0, keys(400))
    for index in (40, 80, 120, 160):
        t, found = 1 - index / 160, path[..., index]
        assert float(found.mean()) == pytest.approx((1 - t) * 0.6, abs=0.03), index
        assert float(found.std()) == pytest.approx(math.hypot(t, (1 - t) * 0.4), rel=0.06), index
    fresh = (path[..., 1] - path[..., 0]).std() > 0 and np.corrcoef(path[..., 0].flatten(), path[..., -1].flatten())[
        0, 1
    ]
    assert fresh > 0.9 if noise_level == 0 else fresh < 0.7, "noise is forgotten on the way, or the sampler is no SDE"


def test_in_small_steps_the_noise_is_that_of_flow_grpo() -> None:
    for step in steps(DenoisingConfig(num_steps=1000, noise_level=0.5, min_std=1e-6), 1.0)[100:900:100]:
        sigma = 0.5 * math.sqrt(2 * step.time / (1 - step.time))
        assert step.std == pytest.approx(sigma * math.sqrt(1 / 1000), rel=0.02)


@torch.no_grad()
def test_greedy_is_eulers_method_from_zero() -> None:
    policy = flow_policy()
    seen = seen_by(policy, 3)
    path, logprob = policy.likelihood.draw(seen, 0.0, None)
    state, context = torch.zeros(3, 1, CHUNK, ACTIONS), policy(**seen)
    for time in (1.0, 2 / 3, 1 / 3):
        state = state - policy.velocity(context, state, torch.full((3, 1), time)) / 3
    assert torch.allclose(path[..., -1], state.flatten(1), atol=1e-5) and not path[..., 0].any()
    assert torch.allclose(policy.likelihood.score(seen, path, 1.0)[0], logprob, atol=1e-4)
    assert torch.allclose(policy.codec.decode(path), state.squeeze(1).clamp(-1, 1), atol=1e-5)


@torch.no_grad()
def test_rows_are_drawn_and_judged_by_themselves() -> None:
    policy, rows = flow_policy(), torch.tensor([3, 1])
    seen = seen_by(policy, 4)
    path, logprob = policy.likelihood.draw(seen, 0.7, keys(4))
    part = {name: tensor[rows] for name, tensor in seen.items()}
    again, judged = policy.likelihood.draw(part, 0.7, NoiseKeys(0, rows.tolist(), 0))
    assert torch.allclose(again, path[rows], atol=1e-5) and torch.allclose(judged, logprob[rows], atol=1e-3)
    assert not torch.allclose(policy.likelihood.draw(seen, 0.7, keys(4, seed=1))[0], path, atol=1e-2)
    assert torch.allclose(policy.likelihood.score(part, path[rows], 0.7)[0], logprob[rows], atol=1e-3)


def test_the_learner_finds_ratio_one_in_episodes_that_were_just_played() -> None:
    policy = flow_policy(chunk_size=2)
    played = run_episodes(BanditEnv(0.0, 9.0), policy, some_starts(16), temperature=0.6, seed=0)
    assert played.tokens.shape == (16, 1, 4, 4) and 0 < int(played.success.sum()) < 16
    assert played.logprob.shape == played.executed.shape == (16, 1, 4)
    (batch,) = minibatches(played, GRPOConfig(num_minibatches=1), seed=0, iteration=0)
    metrics = GRPOLearner(policy, GRPOConfig(), temperature=0.6).step(batch)
    assert metrics["clip_fraction"] == 0 and metrics["kl"] == pytest.approx(0, abs=1e-5) and metrics["grad_norm"] > 0
    assert GRPOLearner(flow_policy(seed=1, chunk_size=2), GRPOConfig(), temperature=0.6).step(batch)["kl"] > 1e-3


@pytest.mark.parametrize("flip", [False, True])
def test_success_rises_on_the_bandit_and_falls_when_failure_is_rewarded(flip: bool) -> None:
    def make() -> GaussianFlow:
        return GaussianFlow(DenoisingConfig(num_steps=4), std=0.7)

    env = BanditEnv(0.35, 99.0)
    assert 0.2 < success(make(), env) < 0.4
    policy = trained(make, env, rate=0.06, iterations=24, flip=flip)
    assert success(policy, env) < 0.1 if flip else success(policy, env) > 0.9
    others = next(policy.parameters()).flatten()[1:]
    assert others.abs().max() < 0.8, "numbers that do not matter stay where they are"


def test_cloning_overfits_what_pictures_tell_apart(tmp_path: Path) -> None:
    policy, rng, folder = flow_policy(), np.random.default_rng(0), RunFolder(tmp_path)
    wanted = rng.uniform(-0.9, 0.9, (4, ACTIONS)).astype(np.float32)
    episodes = [
        Episode(
            frames=np.repeat(rng.integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8), CHUNK + 1, axis=0),
            actions=np.repeat(action[None], CHUNK, axis=0),
            solved_at=CHUNK,
            instruction="push",
            start=i,
            episode_id=i,
            policy="expert",
        )
        for i, action in enumerate(wanted)
    ]
    frame = torch.stack([torch.from_numpy(episode.frames[0]) for episode in episodes])
    seen = policy.prepare(Observation(frame=frame, instruction=("push",) * 4))

    def error() -> float:
        with torch.no_grad():
            tokens, _ = likelihood.of(policy).draw(seen, 0.0, None)
        return float((policy.codec.decode(tokens) - torch.from_numpy(wanted).unsqueeze(1)).abs().mean())

    before, log = error(), StageLog(folder, "sft", quiet=True)
    config = SFTConfig(fit=FitConfig(num_steps=120, batch_size=16, learning_rate=5e-3), max_shift=0)
    fit(cloning(policy, episodes, config, seed=0), config.fit, checkpoint=folder.checkpoint("sft"), log=log)
    assert before > 0.3 and error() < 0.1, (before, error())


def test_the_loss_of_cloning_is_zero_only_for_the_exact_velocity() -> None:
    policy = GaussianFlow(DenoisingConfig(), mean=0.5, std=1e-4)  # a flow that ends at one point
    seen, target = seen_by(policy, 64), torch.full((64, 2, 2), 0.5)
    noise = policy.likelihood.cloning_noise(64, keyed(0, "test"))
    loss = [float(policy.likelihood.cloning_loss(seen, target + d, *noise).detach()) for d in (0.0, 0.3)]
    assert loss[0] < 1e-3 < loss[1]


def test_codec_and_settings() -> None:
    actions = torch.rand(200, 3) * torch.tensor([1.0, 4.0, 0.0]) - 1
    codec = PathCodec.fit(actions, chunk_size=2)
    unit = codec.normalize(actions[:2]).flatten()
    path = torch.stack([torch.zeros(6), unit], dim=-1)
    low, high = torch.tensor(codec.low), torch.tensor(codec.high)
    assert torch.allclose(codec.decode(path), actions[:2].clamp(low, high), atol=1e-5)
    with pytest.raises(ValueError, match="scale above 0"):
        PathCodec((0.0,), (0.0,), 1)
    with pytest.raises(ValueError, match=r"min_std 0\.0"):
        DenoisingConfig(min_std=0.0).validate()
    with pytest.raises(ValueError, match="num_steps 0"):
        replace(SmallFlowPolicyConfig(), denoising=DenoisingConfig(num_steps=0)).build(codec, SIZE)
