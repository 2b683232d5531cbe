"""The loop of WMPO on a bandit: it stops when it should, keeps the best audited policy, and resumes to the bit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import BINS, BanditEnv, TablePolicy, some_starts
from torch import Tensor

from wmpo.evaluation.audit import Audit, AuditConfig, fallen, warning
from wmpo.evaluation.statistics import rates
from wmpo.execution.local import LocalSampler
from wmpo.policy.codec import ActionCodec
from wmpo.protocols import Policy
from wmpo.report.run import RunFolder, StageLog
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.rollout.groups import GroupConfig
from wmpo.train.wmpo import ImproveConfig, affordable, improve
from wmpo.types import Observation, Starts

CODEC = ActionCodec((0.0, 0.0), (BINS - 1.0, BINS - 1.0), 2, BINS)
CONFIG = ImproveConfig(
    num_iterations=6,
    groups=GroupConfig(num_groups=6, group_size=6, max_rounds=2),
    grpo=GRPOConfig(learning_rate=0.05, num_minibatches=2),
    audit=AuditConfig(every=2, num_episodes=16, max_episodes=64),  # after 0, 2, 4 and 6 iterations
)


class Interrupted(Exception):
    pass


class Auditor:
    """Says what it was told about each iteration, remembers the policies, and may be struck by lightning."""

    def __init__(self, real: dict[int, float], interrupt_at: int = -1, **found: Any) -> None:
        self.real, self.interrupt_at, self.found = real, interrupt_at, found
        self.seen: dict[int, Tensor] = {}

    def __call__(self, policy: Policy, iteration: int) -> Audit:
        if iteration == self.interrupt_at:
            raise Interrupted
        assert isinstance(policy, TablePolicy)
        self.seen[iteration] = policy.logits.detach().clone()
        found = {"imagined": 0.5, "j": 0.5, "j_interval": (0.1, 0.9)} | self.found
        real = self.real.get(iteration, 0.5)
        solved = tuple(i < round(16 * real) for i in range(16))
        return Audit(iteration=iteration, real=real, n=16, solved=solved, **found)


def run(
    path: Path,
    audit: Auditor | None,
    env: BanditEnv | None = None,
    config: ImproveConfig = CONFIG,
    *,
    begun: bool = False,
    budget: int | None = None,
) -> tuple[dict, Tensor]:
    def policy() -> TablePolicy:
        return TablePolicy(CODEC, torch.zeros(CODEC.num_tokens, BINS))

    folder, learner = RunFolder(path), GRPOLearner(policy(), config.grpo, temperature=config.temperature)
    summary = improve(
        LocalSampler(env or BanditEnv(2, 3), policy()), learner, some_starts(8), config, audit,
        seed=0, checkpoint=folder.checkpoint("improve"), log=StageLog(folder, "improve", quiet=True), begun=begun,
        **({"schedule": affordable(budget, config.groups), "kind": "real"} if budget else {}),
    )  # fmt: skip
    assert isinstance(learner.policy, TablePolicy)
    return summary, learner.policy.logits.detach()


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics" / "improve.jsonl").read_text().splitlines()]


def test_imagined_success_rises_and_the_best_audited_policy_is_kept(tmp_path: Path) -> None:
    audit = Auditor({2: 0.5, 4: 0.75, 6: 0.6})
    summary, logits = run(tmp_path, audit)
    rows = metrics(tmp_path)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["imagined_success"] > rows[0]["imagined_success"] + 0.1
    assert (
        list(audit.seen) == [0, 2, 4, 6]
        and summary["kept_iteration"] == 4
        and summary["stopped"] == "all iterations done"
    )
    assert torch.equal(logits, audit.seen[4]) and not torch.equal(audit.seen[4], audit.seen[6])


def test_it_stops_when_dream_and_reality_part_and_keeps_the_policy_of_before(tmp_path: Path) -> None:
    audit = Auditor({2: 0.6, 4: 0.1})
    summary, logits = run(tmp_path, audit)
    assert summary["iteration"] == 4 and "fell from 60 to 10 %" in summary["stopped"]
    assert summary["kept_iteration"] == 2 and torch.equal(logits, audit.seen[2])


def test_when_already_the_first_audit_is_bad_the_base_policy_stays(tmp_path: Path) -> None:
    summary, logits = run(tmp_path, Auditor({2: 0.0}))
    assert summary["kept_iteration"] == 0 and not logits.any()


@pytest.mark.parametrize("interrupt_at", [0, 2, 4, 6])
def test_an_improvement_that_was_interrupted_ends_with_the_same_bits(interrupt_at: int, tmp_path: Path) -> None:
    real = {2: 0.5, 4: 0.7, 6: 0.7}
    expected, whole = run(tmp_path / "whole", Auditor(real))
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", Auditor(real, interrupt_at))
    found, logits = run(tmp_path / "stopped", Auditor(real))
    assert torch.equal(logits, whole)
    assert json.dumps(found) == json.dumps(expected)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_audits_cost_no_more_real_episodes_than_allowed(tmp_path: Path) -> None:
    audit = Auditor({})
    run(tmp_path, audit, config=replace(CONFIG, audit=AuditConfig(every=1, num_episodes=16, max_episodes=40)))
    assert list(audit.seen) == [0, 6], "the last one is of the policy that training ends with"
    audit = Auditor({})
    one = AuditConfig(every=1, num_episodes=16, max_episodes=16)
    summary, _ = run(tmp_path / "one", audit, config=replace(CONFIG, audit=one))
    assert list(audit.seen) == [6] and summary["audits"][0]["verdict"] == "the only audit: kept"


@pytest.mark.parametrize("num_iterations", [3, 5])
def test_the_policy_that_training_ends_with_is_audited_and_kept(num_iterations: int, tmp_path: Path) -> None:
    config = replace(CONFIG, num_iterations=num_iterations, audit=replace(CONFIG.audit, every=4, max_episodes=48))
    audit = Auditor({})
    summary, logits = run(tmp_path, audit, config=config)
    assert list(audit.seen) == [0, *range(4, num_iterations, 4), num_iterations]
    assert summary["kept_iteration"] == num_iterations and torch.equal(logits, audit.seen[num_iterations])


def test_what_was_learned_before_a_dream_had_no_more_to_teach_is_kept(tmp_path: Path) -> None:
    class Exhausted(BanditEnv):
        """Everything is solved from the third sampling on."""

        def reset(self, starts: Starts) -> Observation:
            if int(starts.episode_id[0]) >> 20 >= 2 * 64:
                self.low, self.high = -9, 9
            return super().reset(starts)

    audit = Auditor({})
    summary, logits = run(
        tmp_path, audit, Exhausted(2, 3), replace(CONFIG, audit=AuditConfig(every=6, num_episodes=16, max_episodes=32))
    )
    assert list(audit.seen) == [0, 2] and "no more to teach" in summary["stopped"]
    assert summary["kept_iteration"] == 2 and logits.any()


def test_without_audits_the_last_policy_is_kept(tmp_path: Path) -> None:
    audit = Auditor({})
    summary, logits = run(tmp_path, audit, config=replace(CONFIG, audit=AuditConfig(num_episodes=16, max_episodes=0)))
    assert not audit.seen and summary["kept_iteration"] == CONFIG.num_iterations and logits.any()


class CountingEnv(BanditEnv):
    """Knows which episodes it played, and may be struck by lightning after some of them."""

    def __init__(self, stop_after: int = 10_000) -> None:
        super().__init__(2, 3)
        self.played: list[tuple[int, int]] = []
        self.stop_after = stop_after

    def reset(self, starts: Starts) -> Observation:
        if len(self.played) >= self.stop_after:
            raise Interrupted
        self.played += list(zip(starts.sim_seed.tolist(), starts.episode_id.tolist(), strict=True))
        return super().reset(starts)


REAL = replace(CONFIG, groups=GroupConfig(num_groups=3, group_size=4, dynamic_sampling=False))


@pytest.mark.parametrize(("budget", "groups"), [(4, [1]), (24, [3, 3]), (31, [3, 3, 1])])
def test_a_real_budget_is_spent_to_the_last_whole_group_and_never_exceeded(
    budget: int, groups: list[int], tmp_path: Path
) -> None:
    env = CountingEnv()
    summary, _ = run(tmp_path, None, env, REAL, budget=budget)
    assert summary["iteration"] == len(groups)
    assert [row["groups"] for row in metrics(tmp_path)] == groups and "real_success" in metrics(tmp_path)[0]
    assert len(set(env.played)) == len(env.played) == budget // 4 * 4


def test_a_real_budget_that_was_interrupted_is_spent_on_the_same_episodes(tmp_path: Path) -> None:
    env = CountingEnv()
    _, whole = run(tmp_path / "whole", None, env, REAL, budget=31)
    stopped = CountingEnv(stop_after=12)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", None, stopped, REAL, budget=31)
    again = CountingEnv()
    _, logits = run(tmp_path / "stopped", None, again, REAL, budget=31)
    assert torch.equal(logits, whole) and stopped.played + again.played == env.played


@pytest.mark.parametrize(
    ("config", "budget", "says"),
    [(REAL, 3, "less than one group of 4"), (CONFIG, 36, "dynamic sampling would throw real episodes")],
)
def test_a_budget_that_cannot_be_kept_is_refused(config: ImproveConfig, budget: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        run(tmp_path, None, CountingEnv(), config, budget=budget)


@pytest.mark.parametrize(("low", "high", "rate"), [(9, 10, "0 %"), (-9, 9, "100 %")])
def test_a_dream_without_mixed_groups_teaches_nothing_and_says_so(
    low: float, high: float, rate: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"imagined success is {rate} and none of 1[02] groups is mixed"):
        run(tmp_path, Auditor({}), BanditEnv(low, high))


def test_a_policy_of_an_earlier_round_may_have_learned_all_that_there_is(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, Auditor({}), BanditEnv(-9, 9), begun=True)
    assert "no more to teach" in summary["stopped"] and summary["iteration"] == 0


@pytest.mark.parametrize(
    ("earlier", "now", "returns_to"),
    [
        ([(20, 64)], (10, 32), None),
        ([(20, 64)], (5, 32), None),
        ([(20, 64), (28, 32)], (5, 32), 1),
        ([(40, 64)], (0, 32), 0),
    ],
)
def test_only_a_clear_fall_leads_back_to_an_earlier_policy(
    earlier: list[tuple[int, int]], now: tuple[int, int], returns_to: int | None
) -> None:
    assert fallen(earlier, now) == returns_to


def solved_of(truth: list[int], imagined: list[int]) -> str:
    """The warning after 0/1 outcomes, real and imagined, each repeated four times."""
    real, dreamt = (np.repeat(np.array(flags, dtype=bool), 4) for flags in (truth, imagined))
    return warning(rates(dreamt, real), float(dreamt.mean()))


@pytest.mark.parametrize(
    ("truth", "imagined", "says"),
    [
        ([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], ""),
        ([1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], "the dream lies.*collect more"),
        ([1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1, 0, 0], "may be chance.*; align longer"),
        ([1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], "too rosy: 50 % imagined"),
        ([1, 1, 1, 1], [1, 0, 1, 1], ""),
    ],
)
def test_a_dream_that_may_be_lying_is_warned_of(truth: list[int], imagined: list[int], says: str) -> None:
    assert re.search(says, solved_of(truth, imagined)) if says else not solved_of(truth, imagined)


@pytest.mark.parametrize(("solved", "kind"), [(31, "only 1 of 32 episodes failed"), (3, "only 3 of 32 episodes succ")])
def test_of_few_failures_or_successes_it_is_said_that_they_tell_little(solved: int, kind: str) -> None:
    truth = np.arange(32) < solved
    assert kind in warning(rates(np.ones(32, dtype=bool) if solved > 3 else ~truth, truth), 1.0 if solved > 3 else 0.0)


def test_a_dream_that_turns_failures_into_successes_is_stopped_at_the_first_audit(tmp_path: Path) -> None:
    found = warning(rates(np.ones(16, dtype=bool), np.arange(16) < 8), 1.0)
    summary, _ = run(tmp_path, Auditor({}, imagined=1.0, j=0.0, warning=found))
    assert summary["iteration"] == 0 and "100 % solved where 50 % are" in summary["stopped"]
    assert "the dream lies" in summary["audits"][0]["warning"]


def test_when_imagination_has_no_more_to_teach_training_ends_well(tmp_path: Path) -> None:
    config = replace(CONFIG, grpo=GRPOConfig(learning_rate=3.0, num_minibatches=1), num_iterations=50)
    summary, _ = run(tmp_path, Auditor({}), config=config)
    assert "no more to teach" in summary["stopped"] and 0 < summary["iteration"] < 50


def test_rounds_before_the_last_are_shorter() -> None:
    config = ImproveConfig(num_iterations=8, early_iterations=4)
    assert config.early.num_iterations == 4 and replace(config, early_iterations=0).early.num_iterations == 8
