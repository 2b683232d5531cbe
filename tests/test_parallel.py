"""Several ranks learn and sample what one process does, whatever happens to be where."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import ACTIONS, BINS, CHUNK, BanditEnv, TablePolicy, decisions, small_policy, some_starts
from torch import Tensor

import wmpo.nn
from wmpo.division import split
from wmpo.execution.local import LocalSampler
from wmpo.execution.parallel import Team, TeamSampler, spawned
from wmpo.execution.sharded import TeamLearner
from wmpo.policy.codec import ActionCodec
from wmpo.policy.small import SmallPolicy
from wmpo.protocols import Learner, Sampler
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.types import Minibatch

# A small rate: where the true gradient is zero, as of the keys' biases, AdamW makes steps of full size out of rounding.
CONFIG = GRPOConfig(learning_rate=2e-6, warmup_steps=1, micro_batch=2)
TOKENS = CHUNK * ACTIONS


@dataclass(frozen=True)
class Spec:
    """A learner of the small policy and a sampler of a bandit."""

    damaged: bool = False

    def policy(self) -> SmallPolicy:
        if self.damaged:
            raise ValueError("models/base.safetensors does not exist")
        if multiprocessing.parent_process():  # the fixture float32 does not reach other processes
            wmpo.nn.has_fast_bf16 = lambda device: False
        return small_policy()

    def sampler(self) -> LocalSampler:
        codec = ActionCodec((0.0, 0.0), (BINS - 1.0, BINS - 1.0), 2, BINS)
        return LocalSampler(BanditEnv(2, 3), TablePolicy(codec, torch.zeros(4, BINS)))


def batch(step: int) -> Minibatch:
    """Of five decisions, which two ranks cannot share evenly."""
    return decisions(5, small_policy(), num_tokens=TOKENS, seed=step)


def team_learner(team: Team, shards: int = 0) -> TeamLearner:
    return TeamLearner(team, Spec(), small_policy(), CONFIG, temperature=1.0, shards=shards)


def one_learner() -> GRPOLearner:
    return GRPOLearner(small_policy(), CONFIG, temperature=1.0)


def assert_same(found: Learner, expected: Learner) -> None:
    """Weights, and AdamW's moments, which are those of the gradients."""
    wanted, weights = expected.save(), found.publish()
    for name, tensor in found.save().items():
        torch.testing.assert_close(
            tensor, wanted[name], atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
        kind, own = name.split(".", 1)
        if kind == "model":
            assert torch.equal(weights[own], tensor) and torch.equal(found.policy.state_dict()[own], tensor), name


def learn_and_resume(team: Team, shards: int) -> None:
    """Steps, metrics, and checkpoints that go from n ranks to one and back."""
    one, many = one_learner(), team_learner(team, shards)
    assert isinstance(many, Learner)
    for step in range(2):
        expected, found = one.step(batch(step)), many.step(batch(step))
        assert found == pytest.approx(expected, abs=1e-5)
    assert_same(many, one)
    assert (one.publish()["head.weight"] - small_policy().head.weight).abs().max() > 2e-6
    alone = one_learner()
    alone.restore(many.save())
    for each in (alone, one):
        each.step(batch(2))
    assert_same(alone, one)
    again = team_learner(team, shards)
    again.restore(alone.save())
    for each in (again, one):
        each.step(batch(3))
    assert_same(again, one)


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
def test_one_rank_learns_like_no_rank_and_its_checkpoints_are_whole(alone: Team) -> None:
    learn_and_resume(alone, shards=0)


def played(sampler: Sampler, weights: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    sampler.load(weights)
    found = sampler.run(some_starts(count), 1.0, 3)
    return {name: getattr(found, name) for name in ("tokens", "logprob", "executed", "success", "group", "episode_id")}


def sample(team: Team) -> None:
    many, one = TeamSampler(team, Spec(), Spec().sampler()), Spec().sampler()
    assert isinstance(many, Sampler)
    weights = {"logits": torch.randn(4, BINS, generator=torch.Generator().manual_seed(0))}
    for count in (7, 1):  # one start leaves nothing to the second rank
        expected = played(one, weights, count)
        for name, tensor in played(many, weights, count).items():
            assert torch.equal(tensor, expected[name]), name


def test_one_rank_samples_like_no_rank(alone: Team) -> None:
    sample(alone)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_a_split_minibatch_has_equal_parts_and_the_same_sum(size: int) -> None:
    whole = batch(0)
    parts = split(whole, size)
    assert {len(part) for part in parts} == {-(-5 // size)} and len(parts) == size
    assert all(part.num_episodes == whole.num_episodes for part in parts)
    assert sum(int(part.mask.sum()) for part in parts) == whole.mask.sum()
    real = [part.tokens[part.mask.any(dim=1)] for part in parts]
    assert torch.equal(torch.cat(real), whole.tokens)


def test_shards_that_do_not_divide_the_ranks_are_refused(alone: Team) -> None:
    with pytest.raises(ValueError, match=r"execution.shards 3 must divide the 1 processes"):
        alone.mesh(3)


def _uneven(rank: int, local_sizes: list[int], gpus: list[int], meeting: str, said: Any) -> None:
    torch.cuda.device_count = lambda: gpus[rank]
    try:
        Team(rank, len(gpus), local_rank=max(gpus), local_size=local_sizes[rank], meeting=meeting).mesh(0)
    except ValueError as error:
        said[rank] = str(error)


@pytest.mark.parametrize(
    ("local_sizes", "gpus", "message"),
    [
        ([2, 2, 1], [0, 0, 0], "machines run 1 and 2 of the 3 processes; start as many on each, or name --execution"),
        ([1, 2, 2], [1, 1, 1], "2 processes on a machine need a GPU each, but it has 1; start fewer"),
    ],
)
def test_unequal_machines_are_refused_on_every_rank(
    tmp_path: Path, local_sizes: list[int], gpus: list[int], message: str
) -> None:
    with multiprocessing.get_context("spawn").Manager() as manager:
        said = manager.dict()
        arguments = (local_sizes, gpus, f"file://{tmp_path / 'ranks'}", said)
        torch.multiprocessing.start_processes(_uneven, arguments, nprocs=len(gpus), start_method="spawn")
        assert len(said) == len(gpus) and all(message in text for text in said.values()), dict(said)


@pytest.mark.slow
@pytest.mark.timeout(300)  # four processes share two cores
@pytest.mark.usefixtures("float32")
def test_four_ranks_in_two_copies_of_two_shards_learn_like_one_process_and_resume() -> None:
    """The layout across machines. Before the tests with a pair, whose team lasts until the end of this file."""
    with spawned(4) as team:
        assert team.check_sizes(2) == (2, 2)
        learn_and_resume(team, shards=2)


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("shards", [1, 2], ids=["DDP", "FSDP2"])
def test_two_ranks_learn_like_one_process_and_resume_each_other(pair: Team, shards: int) -> None:
    learn_and_resume(pair, shards)


@pytest.mark.slow
def test_two_ranks_sample_like_one_process(pair: Team) -> None:
    sample(pair)


@pytest.mark.slow
def test_what_a_rank_cannot_do_is_said_with_its_number(pair: Team) -> None:
    with pytest.raises(ValueError, match=r"models/base.safetensors does not exist"):
        TeamLearner(pair, replace(Spec(), damaged=True), small_policy(), CONFIG, temperature=1.0)
