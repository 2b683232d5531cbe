"""Groups of siblings: repetition, dynamic sampling, the cap, and identities; with a sampler that plays no episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from miniatures import rollouts_of, some_starts
from torch import Tensor

from wmpo.rollout.groups import GroupConfig, mixed, sample_groups
from wmpo.types import Rollouts, Starts, concatenate


@dataclass
class ScriptedSampler:
    """In round r the first ``mixed_groups[r]`` groups are mixed; the others all fail. Rounds differ in length."""

    mixed_groups: list[int]
    group_size: int
    asked: list[Starts] = field(default_factory=list)

    def run(self, starts: Starts, temperature: float, seed: int) -> Rollouts:
        round_ = len(self.asked)
        self.asked.append(starts)
        rows = torch.arange(len(starts))
        success = (rows // self.group_size < self.mixed_groups[round_]) & (rows % self.group_size == 0)
        played = rollouts_of(success.tolist(), starts.group.tolist(), chunks=1 + round_)
        return replace(played, episode_id=starts.episode_id, sim_seed=starts.sim_seed)

    def load(self, weights: Mapping[str, Tensor]) -> None: ...


def sample(sampler: ScriptedSampler, pool: int = 10, iteration: int = 0, **config: object):
    wanted = GroupConfig(num_groups=4, group_size=sampler.group_size, **config)  # type: ignore[arg-type]
    return sample_groups(sampler, some_starts(pool), wanted, temperature=1.0, seed=0, iteration=iteration)


def test_what_is_missing_is_refilled() -> None:
    sampler = ScriptedSampler([1, 2, 1], group_size=3)
    found = sample(sampler)
    assert [len(starts) // 3 for starts in sampler.asked] == [4, 3, 1]
    assert found.num_mixed == 4 and found.num_groups == 8 and found.num_episodes == 24
    assert found.success == pytest.approx(4 / 24)
    assert found.kept is not None and len(found.kept) == 12 and mixed(found.kept.success, found.kept.group).all()
    assert found.kept.tokens.shape[1] == 3, "shorter rounds are padded to the longest"


def test_rounds_are_capped_and_what_is_still_missing_is_simply_missing() -> None:
    found = sample(ScriptedSampler([1, 0, 1], group_size=2), max_rounds=3)
    assert found.num_mixed == 2 and found.kept is not None and len(found.kept) == 4
    assert sample(ScriptedSampler([0, 0], group_size=2), max_rounds=2).kept is None


def test_without_dynamic_sampling_every_episode_is_kept() -> None:
    sampler = ScriptedSampler([1], group_size=2)
    found = sample(sampler, dynamic_sampling=False)
    assert len(sampler.asked) == 1 and found.kept is not None and len(found.kept) == 8 and found.num_mixed == 1


def test_siblings_share_a_start_and_no_two_episodes_of_a_training_share_an_identity() -> None:
    ids, groups, first = [], [], []
    for iteration in range(3):
        sampler = ScriptedSampler([0, 0, 0], group_size=4)
        sample(sampler, iteration=iteration)
        first.append(sampler.asked[0].sim_seed.tolist())
        for starts in sampler.asked:
            ids += starts.episode_id.tolist()
            groups += starts.group.unique().tolist()
            assert len(starts.group.unique()) == len(starts) // 4
            for group in starts.group.unique():
                assert len(starts.sim_seed[starts.group == group].unique()) == 1
    assert len(set(ids)) == len(ids) and len(set(groups)) == len(groups)
    assert first[0] != first[1], "every iteration picks other starts"


def test_starts_repeat_only_when_the_pool_is_too_small() -> None:
    sampler = ScriptedSampler([4], group_size=2)
    sample(sampler, pool=4)
    assert sampler.asked[0].sim_seed.unique().tolist() == [0, 1, 2, 3]
    sampler = ScriptedSampler([4], group_size=2)
    sample(sampler, pool=2)
    assert len(sampler.asked[0]) == 8 and len(sampler.asked[0].group.unique()) == 4


def test_a_group_is_mixed_if_it_holds_both_outcomes() -> None:
    success = torch.tensor([True, True, False, False, True, False])
    assert mixed(success, torch.tensor([5, 5, 1, 1, 9, 9])).tolist() == [False] * 4 + [True] * 2
    order = torch.tensor([5, 0, 3, 4, 2, 1])
    group = torch.tensor([5, 5, 1, 1, 9, 9])
    assert torch.equal(mixed(success[order], group[order]), mixed(success, group)[order])


def test_concatenation_pads_with_nothing_executed() -> None:
    short, long = rollouts_of([True, False], [0, 0], chunks=1), rollouts_of([False], [1], chunks=3)
    joined = concatenate([short, long])
    assert joined.tokens.shape[:2] == (3, 3) and joined.instruction == short.instruction + long.instruction
    assert not joined.executed[:2, 1:].any() and torch.equal(joined.executed[2], long.executed[0])
    assert torch.equal(joined.logprob[:2, :1], short.logprob)
    assert joined.video is None
    with pytest.raises(ValueError, match="no rollouts"):
        concatenate([])


def test_concatenated_videos_stand_still_where_they_are_over() -> None:
    parts = []
    for count, length in ((2, 3), (1, 5)):
        rollouts = rollouts_of([False] * count, [0] * count)
        video = torch.randint(0, 256, (count, length, *rollouts.frame.shape[2:]), dtype=torch.uint8)
        parts.append(replace(rollouts, video=video))
    joined = concatenate(parts).video
    assert joined is not None and parts[0].video is not None and joined.shape[:2] == (3, 5)
    assert torch.equal(joined[:2, :3], parts[0].video) and torch.equal(joined[2:], parts[1].video)
    assert (joined[:2, 3:] == parts[0].video[:, -1:]).all()
    assert concatenate([parts[0], replace(parts[1], video=None)]).video is None
