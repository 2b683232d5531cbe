"""Advantages, the policy loss and the learner, against results computed by hand or by plain autograd."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from miniatures import BanditEnv, decisions, rollouts_of, small_policy, some_starts
from torch import Tensor

from wmpo import likelihood
from wmpo.rl.advantage import group_advantages
from wmpo.rl.grpo import GRPOConfig, GRPOLearner, minibatches
from wmpo.rl.loss import ClipConfig, PolicyLoss, policy_loss
from wmpo.rollout.run import run_episodes
from wmpo.types import Minibatch, Observation


def loss_of(
    log_ratio: list[list[float]], advantage: list[float], clip: ClipConfig, mask: Tensor | None = None
) -> tuple[PolicyLoss, Tensor]:
    """The loss of decisions that are one episode each, and its gradient with respect to the new log-probability."""
    new = torch.tensor(log_ratio).requires_grad_()
    mask = torch.ones(new.shape, dtype=torch.bool) if mask is None else mask
    weight = 1 / mask.sum(dim=1).float()
    loss = policy_loss(new, torch.zeros(new.shape), mask, torch.tensor(advantage), weight, len(advantage), clip)
    loss.total.backward()
    assert new.grad is not None
    return loss, new.grad


def test_advantages_by_hand() -> None:
    reward = torch.tensor([1.0, 0.0, 0.0, 0.0, 3.0, 1.0])
    found = group_advantages(reward, torch.tensor([7, 7, 7, 7, 2, 2]), epsilon=0.0)
    # mean 1/4, variance (9/16 + 3/16) / 3 = 1/4; and mean 2, variance 2
    assert torch.allclose(found, torch.tensor([1.5, -0.5, -0.5, -0.5, 2**-0.5, -(2**-0.5)]))


def test_a_reward_corrected_for_the_classifiers_errors_changes_no_advantage() -> None:
    reward, group = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 0, 1, 1])
    corrected = (reward - 0.3) / (0.8 - 0.3)
    plain, after = (group_advantages(r, group, epsilon=0.0) for r in (reward, corrected))
    assert torch.allclose(plain, after, atol=1e-6)


def test_equal_rewards_teach_nothing() -> None:
    for value in (0.0, 1.0):
        assert not group_advantages(torch.full((5,), value), torch.tensor([3, 3, 3, 3, 8])).any()


def test_advantages_do_not_depend_on_the_order_of_rows() -> None:
    generator = torch.Generator().manual_seed(0)  # a number near 0 would be lost in the rounding of another order
    reward, group = torch.rand(12, generator=generator), torch.arange(12) % 3
    order = torch.randperm(12, generator=generator)
    assert torch.allclose(group_advantages(reward[order], group[order]), group_advantages(reward, group)[order])


def test_at_ratio_one_the_gradient_is_that_of_reinforce() -> None:
    """grad of - mean over episodes of A * mean over the episode's tokens of log p."""
    policy = small_policy()
    batch = decisions(6, policy, num_tokens=policy.codec.num_tokens)
    seen = policy.prepare(Observation(frame=batch.frame, instruction=batch.instruction))
    logprob = likelihood.log_probs(policy(**seen), batch.tokens)
    for ratio in ("token", "chunk"):
        loss = policy_loss(
            logprob, logprob.detach(), batch.mask, batch.advantage, batch.weight, 6, ClipConfig(ratio=ratio)
        )
        found = torch.autograd.grad(loss.total, list(policy.parameters()), retain_graph=True)
        per_episode = (logprob * batch.mask).sum(dim=1) / batch.mask.sum(dim=1)
        scale = batch.mask.sum(dim=1) if ratio == "chunk" else 1  # a chunk's ratio counts for each of its tokens
        reinforce = -(batch.advantage * per_episode * scale).mean()
        expected = torch.autograd.grad(reinforce, list(policy.parameters()), retain_graph=True)
        assert max(float(g.abs().max()) for g in expected) > 1e-3
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_masked_tokens_get_exactly_zero_gradient(ratio: str) -> None:
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    clip = ClipConfig(ratio=ratio)  # type: ignore[arg-type]
    loss, gradient = loss_of([[0.01, -0.02, 5.0, math.nan], [0.0, 9.0, -9.0, 0.3]], [1.0, -1.0], clip, mask)
    assert torch.isfinite(loss.total) and loss.num_tokens == 3
    assert torch.equal(gradient != 0, mask)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.27, 1.0, True),
        (1.29, 1.0, False),
        (0.81, -1.0, True),
        (0.79, -1.0, False),
        (1.29, -1.0, True),
        (0.79, 1.0, True),
    ],
)
def test_clipping_is_asymmetric_and_pessimistic(ratio: float, advantage: float, moves: bool) -> None:
    loss, gradient = loss_of([[math.log(ratio)]], [advantage], ClipConfig(low=0.2, high=0.28))
    assert bool(gradient != 0) == moves and float(loss.clipped) == (not moves)
    if moves:
        assert float(gradient) == pytest.approx(-advantage * ratio)
    else:
        assert float(loss.total.detach()) == pytest.approx(-advantage * (1.28 if advantage > 0 else 0.8))


def test_one_ratio_per_chunk_is_the_product_over_executed_tokens() -> None:
    mask = torch.tensor([[True, True, False]])
    steps = [[0.2, 0.1, 7.0]]  # each token's ratio is inside the clip range, their product is not
    _, free = loss_of(steps, [1.0], ClipConfig(ratio="token"), mask)
    loss, clipped = loss_of(steps, [1.0], ClipConfig(ratio="chunk"), mask)
    assert free[0, 0] != 0 and not clipped.any()
    assert float(loss.total.detach()) == pytest.approx(-1.28)
    wide, _ = loss_of(steps, [1.0], ClipConfig(ratio="chunk", high=1.0), mask)
    assert float(wide.total.detach()) == pytest.approx(-math.exp(0.3))
    assert float(wide.kl) == pytest.approx(2 * (math.exp(0.3) - 1 - 0.3), rel=1e-4)


def test_micro_batches_add_up_to_the_whole_loss() -> None:
    batch = decisions(8, small_policy())
    parts = [batch.rows(slice(i, i + 3)) for i in range(0, 8, 3)]

    def total(part: Minibatch) -> PolicyLoss:
        new = part.old_logprob + 0.1
        return policy_loss(
            new, part.old_logprob, part.mask, part.advantage, part.weight, part.num_episodes, ClipConfig()
        )

    assert float(sum(total(part).total for part in parts)) == pytest.approx(float(total(batch).total), rel=1e-5)
    assert sum(total(part).num_tokens for part in parts) == total(batch).num_tokens


@pytest.mark.usefixtures("float32")
def test_eight_micro_batches_of_one_train_like_one_of_eight() -> None:
    policies = [small_policy(), small_policy()]
    batch = decisions(8, policies[0], num_tokens=policies[0].codec.num_tokens)
    learners = [
        GRPOLearner(policy, GRPOConfig(micro_batch=size), temperature=1.0)
        for policy, size in zip(policies, (1, 8), strict=True)
    ]
    metrics = [learner.step(batch) for learner in learners]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3, abs=1e-5)
    one, whole = (learner.save() for learner in learners)
    for i, (name, initial) in enumerate(small_policy().named_parameters()):
        gradient = whole[f"optimizer.{i}.exp_avg"]
        assert torch.allclose(one[f"optimizer.{i}.exp_avg"], gradient, atol=1e-7), name
        clear = gradient.abs() > 1e-5  # Adam's first step is the gradient's sign, and rounding decides that of a zero
        assert torch.allclose(one[f"model.{name}"][clear], whole[f"model.{name}"][clear], atol=1e-7), name
        assert clear.any() == (one[f"model.{name}"][clear] != initial[clear]).any(), name
    assert not torch.equal(policies[0].head.weight, small_policy().head.weight)


def test_minibatches_cover_every_executed_decision_once_with_its_episodes_weight() -> None:
    rollouts = rollouts_of([True, False, True, False, False, True], [0, 0, 1, 1, 2, 2])
    parts = minibatches(rollouts, GRPOConfig(num_minibatches=4), seed=0, iteration=0)
    assert sum(part.num_episodes for part in parts) == 6 and len(parts) == 4
    assert sum(int(part.mask.sum()) for part in parts) == int(rollouts.executed.sum())
    advantage = group_advantages(rollouts.success.float(), rollouts.group)
    for part in parts:
        assert part.mask.any(dim=1).all()
        for i in range(len(part)):
            episode = int(part.instruction[i].split()[1])
            assert float(part.weight[i]) == pytest.approx(1 / float(rollouts.executed[episode].sum()))
            assert part.advantage[i] == advantage[episode]
            assert (part.tokens[i] == rollouts.tokens[episode]).all(dim=1).any()


def test_episodes_that_are_not_trusted_are_compared_but_teach_nothing() -> None:
    rollouts = rollouts_of([True, False, False, True], [0, 0, 1, 1])
    config = GRPOConfig(num_minibatches=1)
    (whole,) = minibatches(rollouts, config, seed=0, iteration=0)
    (doubted,) = minibatches(
        replace(rollouts, trusted=torch.tensor([True, False, True, True])), config, seed=0, iteration=0
    )
    of_second = torch.tensor([text == "episode 1" for text in whole.instruction])
    assert not doubted.advantage[of_second].any() and whole.advantage[of_second].all()
    assert torch.equal(doubted.advantage[~of_second], whole.advantage[~of_second])


def test_minibatches_of_permuted_episodes_hold_the_same_decisions() -> None:
    rollouts = rollouts_of([True, False, False, True, True, False], [0, 0, 1, 1, 2, 2])
    config = GRPOConfig(num_minibatches=1)

    def loss(order: Tensor) -> float:
        (batch,) = minibatches(rollouts.rows(order), config, seed=0, iteration=0)
        return float(
            policy_loss(
                batch.old_logprob * 0.9, batch.old_logprob, batch.mask, batch.advantage, batch.weight,
                batch.num_episodes, ClipConfig(),
            ).total
        )  # fmt: skip

    assert loss(torch.randperm(6)) == pytest.approx(loss(torch.arange(6)), rel=1e-4)


def test_a_gradient_that_is_not_finite_stops_the_learner_before_it_harms() -> None:
    policy = small_policy()
    batch = decisions(4, policy, num_tokens=policy.codec.num_tokens)
    before = policy.head.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="learning-rate"):
        GRPOLearner(policy, GRPOConfig(), temperature=1.0).step(replace(batch, advantage=torch.full((4,), math.nan)))
    assert torch.equal(policy.head.weight, before)


@pytest.mark.usefixtures("float32")
def test_the_learner_finds_ratio_one_in_episodes_that_were_just_played() -> None:
    """Sampling and learning share one likelihood, at any temperature and with unequal lengths of episodes."""
    policy = small_policy(chunk_size=2)
    rollouts = run_episodes(BanditEnv(0.0, 9.0), policy, some_starts(16), temperature=0.6, seed=0)
    assert 0 < int(rollouts.success.sum()) < 16
    (batch,) = minibatches(rollouts, GRPOConfig(num_minibatches=1), seed=0, iteration=0)
    metrics = GRPOLearner(policy, GRPOConfig(), temperature=0.6).step(batch)
    assert metrics["clip_fraction"] == 0 and metrics["kl"] == pytest.approx(0, abs=1e-6) and metrics["grad_norm"] > 0
    assert GRPOLearner(small_policy(chunk_size=2), GRPOConfig(), temperature=1.0).step(batch)["kl"] > 1e-3
