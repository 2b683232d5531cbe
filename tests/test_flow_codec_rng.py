"""Small pure functions against closed forms: flow, codec, keyed randomness, likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wmpo import likelihood
from wmpo.noise import row_gumbel, row_normal, torch_generator
from wmpo.policy.codec import ActionCodec
from wmpo.rng import keyed
from wmpo.world_model import flow

CODEC = ActionCodec((-1.0, 0.0, -0.05), (1.0, 10.0, 0.35), chunk_size=4, num_bins=41)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_is_exact_on_the_straight_line_that_training_uses(steps: int) -> None:
    last, target, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    x0 = flow.begin(last, noise, sigma=0.5)
    assert torch.allclose(flow.euler(lambda x, t: flow.velocity(x, target, t), x0, steps), target, atol=1e-5)


def test_euler_visits_the_times_it_should() -> None:
    seen: list[float] = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        return 2 * t.view(-1, 1).expand_as(x)

    end = flow.euler(velocity, torch.zeros(2, 3), 4)  # the integral of 2t, by left sums: (0 + 1/2 + 1 + 3/2) / 4
    assert seen == [0, 0.25, 0.5, 0.75] and torch.allclose(end, torch.full((2, 3), 0.75))


def test_the_line_begins_at_the_blurred_last_frame_and_ends_at_the_next() -> None:
    x0, x1 = torch.randn(3, 2), torch.randn(3, 2)
    assert torch.equal(flow.between(x0, x1, torch.zeros(3)), x0) and torch.equal(
        flow.between(x0, x1, torch.ones(3)), x1
    )
    rows = flow.between(x0, x1, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(rows, torch.stack([x0[0], (x0[1] + x1[1]) / 2, x1[2]]))
    assert torch.equal(flow.begin(x0, x1, 0.0), x0)
    assert flow.begin(torch.zeros(10_000), torch.randn(10_000), 0.5).std().item() == pytest.approx(0.5, rel=0.05)


def test_some_flow_times_are_exactly_zero_and_the_rest_logit_normal() -> None:
    time = flow.logit_normal_time(20_000, torch.Generator().manual_seed(0))
    assert 0.05 < float((time == 0).float().mean()) < 0.5, "every sampler begins at 0"
    logit = time[time > 0].logit()
    assert float(logit.mean()) == pytest.approx(0, abs=0.03) and float(logit.std()) == pytest.approx(1, abs=0.03)


def test_codec_round_trip_is_within_half_a_bin() -> None:
    low, high = torch.tensor(CODEC.low), torch.tensor(CODEC.high)
    chunk = low + torch.rand(500, 4, 3) * (high - low)
    error = (CODEC.decode(CODEC.encode(chunk)) - chunk).abs()
    half = (high - low) / (CODEC.num_bins - 1) / 2
    assert (error <= half * 1.001).all() and (error.amax(dim=(0, 1)) > 0.9 * half).all()


@pytest.mark.parametrize("bins", [2, 11, 41, 256])
def test_every_token_comes_back_from_its_own_action(bins: int) -> None:
    codec = ActionCodec(CODEC.low, CODEC.high, 4, bins)
    tokens = torch.arange(bins).unsqueeze(1).expand(-1, codec.num_tokens)
    assert torch.equal(codec.encode(codec.decode(tokens)), tokens)


def test_tokens_are_time_first_and_actions_beyond_the_quantiles_go_to_the_end_bins() -> None:
    tokens = torch.arange(12).unsqueeze(0)
    assert torch.allclose(CODEC.normalize(CODEC.decode(tokens)), tokens.view(1, 4, 3) / 20 - 1, atol=1e-5)
    far = torch.tensor([[[-9.0, 99.0, 0.15]]]).expand(1, 4, 3)
    assert CODEC.encode(far).tolist() == [[0, 40, 20] * 4]


def test_fit_takes_the_first_and_99th_percentile_and_widens_what_never_moves() -> None:
    actions = torch.stack([torch.linspace(0, 100, 101), torch.full((101,), 3.0)], dim=1)
    codec = ActionCodec.fit(actions, 4, 5)
    assert codec.low == pytest.approx((1, 2)) and codec.high == pytest.approx((99, 4))
    assert float(codec.decode(codec.encode(torch.full((1, 4, 2), 3.0)))[0, 0, 1]) == pytest.approx(3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_actions_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        ActionCodec.fit(torch.tensor([[0.0], [bad]]), 1, 5)


@pytest.mark.parametrize(
    ("low", "high"), [((0.0,), (0.0,)), ((1.0,), (0.0,)), ((0.0,), (math.nan,)), ((0.0, 0.0), (1.0,))]
)
def test_quantiles_that_span_nothing_are_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="low < high"):
        ActionCodec(low, high, 1, 5)


def test_keyed_noise_depends_on_the_row_and_never_on_its_batch() -> None:
    for draw in (row_normal, row_gumbel):
        whole = draw(3, "test", [10, 11, 12, 13], 5, (2, 3))
        assert torch.equal(draw(3, "test", [13, 11], 5, (2, 3)), whole[[3, 1]])
        assert torch.equal(draw(3, "test", [12], 5, (2, 3))[0], whole[2])


def test_every_key_matters() -> None:
    def first(*args: object) -> float:
        return float(keyed(*args).standard_normal())  # type: ignore[arg-type]

    draws = [first(0, "a"), first(1, "a"), first(0, "b"), first(0, "a", 0), first(0, "a", 1), first(0, "a", 0, 0)]
    draws += [first(0, "a", 0, 1), first(0, "a", 1, 0), first(0, "a", 2**40), first(0, "a", 2**40 + 1)]
    assert len(set(draws)) == len(draws) and first(0, "a", 0, 1) == draws[6]
    torch_draws = [torch.rand(1, generator=torch_generator(0, "a", key)).item() for key in (0, 1, 0)]
    assert torch_draws[0] == torch_draws[2] != torch_draws[1]


def test_neighbouring_rows_and_chunks_are_uncorrelated_standard_normal() -> None:
    noise = torch.stack([row_normal(0, "test", range(20), chunk, (500,)) for chunk in range(3)]).flatten(0, 1)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02) and float(noise.std()) == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(noise) - torch.eye(len(noise))
    assert correlation.abs().max() < 0.25  # 5.6 standard errors


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_likelihood_agrees_with_torch_distributions(temperature: float) -> None:
    logits, tokens = 3 * torch.randn(4, 6, 9), torch.randint(0, 9, (4, 6))
    expected = torch.distributions.Categorical(logits=logits / temperature)
    assert torch.allclose(likelihood.log_probs(logits, tokens, temperature), expected.log_prob(tokens), atol=1e-5)
    assert torch.allclose(likelihood.entropy(logits, temperature), expected.entropy(), atol=1e-5)
    plain = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(likelihood.log_probs(logits, tokens), plain.log_prob(tokens), atol=1e-5)
    assert likelihood.log_probs(logits.bfloat16(), tokens).dtype == torch.float32


def test_gumbel_max_draws_with_the_probabilities_that_log_probs_reports() -> None:
    logits, count, temperature = torch.tensor([[0.0, 1.0, -1.0, 2.0]]), 20_000, 1.5
    noise = row_gumbel(0, "test", range(count), 0, (1, 4))
    tokens = likelihood.sample(logits.expand(count, 1, 4), temperature, noise)
    found = torch.bincount(tokens.flatten(), minlength=4) / count
    expected = torch.stack([likelihood.log_probs(logits, torch.tensor([i]), temperature)[0] for i in range(4)]).exp()
    assert np.allclose(found, expected, atol=0.012)  # more than 3 standard errors


def test_temperature_zero_is_greedy_and_needs_no_noise() -> None:
    logits = torch.randn(5, 3, 7)
    assert torch.equal(likelihood.sample(logits, 0, None), logits.argmax(dim=-1))
    with pytest.raises(AssertionError, match="noise"):
        likelihood.sample(logits, 1.0, None)
