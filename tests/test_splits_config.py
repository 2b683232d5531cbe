"""Start states never overlap, configurations survive JSON, and what cannot work is refused in one sentence."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
from collections import Counter
from itertools import combinations
from typing import Any, get_args

import pytest

from wmpo.checkpoint import load_tensors
from wmpo.config import CollectConfig, Experiment, flatten, from_json, to_json
from wmpo.data.splits import Split, hold_out, simulator_starts, start_seeds
from wmpo.evaluation.audit import AuditConfig
from wmpo.recipes import RECIPES, recipe
from wmpo.stages.pretrained import check_pretrained, pretrained_path

SPLITS: tuple[Split, ...] = get_args(Split)
LAST = 99_999


def spans(split: Split, seeds: tuple[int, ...] = (0, 1, 98, 99)) -> list[tuple[int, int]]:
    """First and last simulator seed that runs of these seeds can get."""
    return [(start_seeds(split, s, 0, 1)[0], start_seeds(split, s, LAST, 1)[0]) for s in seeds]


def test_no_two_purposes_ever_share_a_start_whatever_the_seeds_of_the_runs() -> None:
    assert {"demonstrations", "collection", "validation", "test"} <= set(SPLITS)
    for a, b in combinations(SPLITS, 2):
        for (low1, high1), (low2, high2) in ((x, y) for x in spans(a) for y in spans(b)):
            assert high1 < low2 or high2 < low1, (a, b)


@pytest.mark.parametrize("split", [s for s in SPLITS if s != "test"])
def test_runs_of_different_seeds_share_no_start(split: Split) -> None:
    for (_, high), (low, _) in zip(spans(split)[:-1], spans(split)[1:], strict=True):
        assert high < low


def test_every_run_is_tested_on_the_same_starts() -> None:
    assert start_seeds("test", 0, 0, 50) == start_seeds("test", 7, 0, 50)


def test_starts_continue_where_an_earlier_request_ended() -> None:
    whole = start_seeds("collection", 3, 0, 10)
    assert len(set(whole)) == 10 and start_seeds("collection", 3, 4, 6) == whole[4:]


@pytest.mark.parametrize(("seed", "first", "count"), [(-1, 0, 1), (100, 0, 1), (0, LAST, 2), (0, 0, LAST + 2)])
def test_asking_for_more_starts_than_there_are_is_refused(seed: int, first: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"--seed must be in 0\.\.99|only 100000 start states"):
        start_seeds("collection", seed, first, count)


@pytest.mark.parametrize(("num_solved", "count"), [(0, 4), (3, 6), (11, 2), (12, 4), (20, 5)])
def test_held_out_episodes_hold_their_share_of_successes(num_solved: int, count: int) -> None:
    success = [(7 * i) % 20 < num_solved for i in range(20)]
    apart = hold_out(success, count)
    assert len(apart) == count and apart <= set(range(20))
    assert abs(sum(success[i] for i in apart) - count * num_solved / 20) < 1
    assert not any(success) or hold_out(success, 1) <= set(range(20))


@pytest.mark.parametrize(
    ("num_rounds", "shares"), [(1, [(128, 32)]), (2, [(86, 22), (42, 10)]), (3, [(64, 16), (32, 8)])]
)
def test_rounds_share_the_budget_and_no_more(num_rounds: int, shares: list[tuple[int, int]]) -> None:
    found = recipe("quickstart").collect.shares(num_rounds)
    assert len(found) == num_rounds and found[: len(shares)] == shares
    assert [sum(column) for column in zip(*found, strict=True)] == [128, 32]


def test_rounds_without_an_episode_held_out_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a round would have 3 episodes and hold 0 of them out.*num_rounds 4"):
        dataclasses.replace(
            recipe("tiny"), num_rounds=4, collect=CollectConfig(num_episodes=16, num_held_out=4)
        ).validate()


def test_a_start_is_its_own_identity() -> None:
    starts = simulator_starts([5, 9], ("open it",))
    assert starts.episode_id.tolist() == starts.sim_seed.tolist() == [5, 9] and starts.instruction == ("open it",) * 2
    assert starts.group.tolist() == [0, 1] and starts.frames is None


def test_of_several_tasks_starts_alternate_and_each_is_held_out_evenly() -> None:
    told = ("open it", "close it")
    starts = simulator_starts(start_seeds("test", 0, 0, 5), told)
    assert starts.instruction == ("open it", "close it", "open it", "close it", "open it")
    assert simulator_starts([7], told).instruction == ("close it",), "a seed's task does not depend on its neighbours"
    solved = [i % 4 < 2 for i in range(40)]
    apart = hold_out(solved, 8, [told[i % 2] for i in range(40)])
    kinds = Counter((i % 2, solved[i]) for i in apart)
    assert len(kinds) == 4 and set(kinds.values()) == {2}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_survive_json(name: str) -> None:
    experiment = recipe(name)
    if name == "paper-coffee":  # its machine is MimicGen's alone
        with pytest.raises(ValueError, match=r"--env.mimicgen-path CHECKOUT"):
            experiment.validate()
    elif name == "recorded":  # its robot is that of the datasets
        with pytest.raises(ValueError, match=r"--demos\.recorded and --collect\.recorded"):
            experiment.validate()
    else:
        experiment.validate()
    found = from_json(Experiment, json.loads(json.dumps(to_json(experiment))))
    assert found == experiment and repr(found) == repr(experiment)


def test_changed_leaves_survive_json_too() -> None:
    changed = with_leaf(with_leaf(recipe("quickstart"), "evaluate.temperatures", (0.25,)), "env.camera.azimuth", 7.0)
    found = from_json(Experiment, json.loads(json.dumps(to_json(changed))))
    assert found == changed != recipe("quickstart")
    assert isinstance(found.evaluate.temperatures, tuple) and isinstance(found.env.camera.lookat, tuple)


def test_every_leaf_says_what_it_is() -> None:
    """A string under each field: it is the help text of the command line."""

    def check(config: Any) -> None:
        (tree,) = ast.parse(inspect.getsource(type(config)).lstrip()).body
        assert isinstance(tree, ast.ClassDef)
        fields = [i for i, node in enumerate(tree.body) if isinstance(node, ast.AnnAssign)]
        for i in fields:
            name = tree.body[i].target.id  # type: ignore[attr-defined]
            value = getattr(config, name)
            follower = tree.body[i + 1] if i + 1 < len(tree.body) else None
            text = isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant)
            assert text or dataclasses.is_dataclass(value), f"{type(config).__name__}.{name}"
            if dataclasses.is_dataclass(value):
                check(value)

    check(recipe("quickstart"))


def test_names_that_this_version_does_not_know_are_refused() -> None:
    content = to_json(recipe("tiny"))
    content["improve"]["grpo"]["entropy_bonus"] = 0.1
    with pytest.raises(ValueError, match="GRPOConfig has no field entropy_bonus"):
        from_json(Experiment, content)


def with_leaf(config: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: with_leaf(getattr(config, name), rest, value) if rest else value})


def test_audits_need_as_many_held_out_episodes() -> None:
    audit = AuditConfig(num_episodes=9, max_episodes=9)
    with pytest.raises(ValueError, match=r"improve\.audit\.num_episodes 9 must be at most collect\.num_held_out 8"):
        with_leaf(recipe("tiny"), "improve.audit", audit).validate()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("world_model.frame_stride", 3, "world_model.frame_stride 3 must divide policy.chunk_size 4"),
        ("env.image_size", 20, "env.image_size must be a multiple of 16"),
        ("env.task", "drawer-opn-v3", "drawer-open-v3"),
        ("collect.num_held_out", 16, "collect.num_held_out 16 must be at least 2 and below collect.num_episodes 16"),
        ("collect.num_held_out", 1, "collect.num_held_out 1 must be at least 2"),
        ("improve.groups.group_size", 1, "improve.groups.group_size 1: siblings need at least 2"),
        ("sft.fit.num_steps", 0, "sft.fit.num_steps must be at least 1, not 0"),
        ("improve.temperature", -0.5, "improve.temperature must be at least 0, not -0.5"),
        ("improve.temperature", 1.6, "improve.temperature 1.6 must be collect.temperature 1.0"),
        ("policy.num_bins", 1, "policy.num_bins must be at least 2, not 1"),
        ("improve.grpo.micro_batch", 0, "improve.grpo.micro_batch must be at least 1"),
        ("max_chunks", 0, "max_chunks must be at least 1"),
        ("improve.audit.num_episodes", 0, "improve.audit.num_episodes must be at least 1"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_by_name(path: str, value: Any, message: str) -> None:
    assert path in flatten(to_json(recipe("tiny")))
    with pytest.raises(ValueError, match=message):
        with_leaf(recipe("tiny"), path, value).validate()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sft.fit.learning_rate", math.nan),
        ("policy.num_heads", 3),
        ("evaluate.temperatures", (-1.0,)),
        ("evaluate.temperatures", ()),
        ("sft.fit.ema", 1.5),
        ("tokenizer.channels", 0),
    ],
)
def test_settings_that_would_fail_only_hours_later_are_refused_at_once(path: str, value: Any) -> None:
    with pytest.raises(ValueError, match=path.rsplit(".", 1)[0]):
        with_leaf(recipe("tiny"), path, value).validate()


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'quikstart'; did you mean quickstart"):
        recipe("quikstart")
    with pytest.raises(ValueError, match="paper-coffee or paper-square"):
        recipe("zzz")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("env.image_size", 96, "env.image_size 64 there, 96 here.*--world-model.pretrained none"),
        ("env.camera.distance", 0.8, "env.camera"),
        ("world_model.blocks", 2, "world_model.blocks 1 there, 2 here"),
        ("tokenizer.channels", 32, "tokenizer.channels 64 there, 32 here"),
        ("world_model.pretrained", "nothing", "'nothing' is neither a file nor one of meta-world, none"),
    ],
)
def test_pretrained_weights_that_do_not_fit_are_refused_before_anything_is_played(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_pretrained(with_leaf(recipe("quickstart"), path, value))


def test_the_shipped_weights_fit_the_quickstart_and_saw_none_of_the_tasks_that_judge() -> None:
    experiment = recipe("quickstart")
    check_pretrained(experiment)
    check_pretrained(with_leaf(experiment, "world_model.euler_steps", 2))
    check_pretrained(with_leaf(experiment, "env.more_tasks", ("plate-slide-v3",)))
    path = pretrained_path(experiment.world_model.pretrained)
    assert path is not None and not set(load_tensors(path)[1]["tasks"]) & set(experiment.pretrain.excluded)
    assert experiment.env.task in experiment.pretrain.excluded
