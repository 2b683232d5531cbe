"""Intervals and rates against published examples and hand counts; and when an audit ends a training."""

from __future__ import annotations

import math
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
from miniatures import ACTIONS, CHUNK, SIZE, Brightness, small_world_model

from wmpo.data.episode import Episode
from wmpo.evaluation.audit import Audit, AuditConfig, better, judge, parted
from wmpo.evaluation.policy import Outcomes, difference
from wmpo.evaluation.statistics import best_threshold, newcombe, paired_difference, rates, wilson


def flags(wins: int, count: int) -> np.ndarray:
    return np.arange(count) < wins


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_gives_the_published_intervals(wins: int, count: int, low: float, high: float) -> None:
    assert wilson(wins, count) == pytest.approx((low, high), abs=6e-5)


def test_without_observations_everything_is_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = newcombe((0, 0), (0, 0))
    assert low < -0.5 and high > 0.5


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),  # Newcombe 1998, Statistics in Medicine 17:873, table II, method 10
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_gives_the_published_intervals(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    assert newcombe(first, second) == pytest.approx((low, high), abs=6e-5)
    assert newcombe(second, first) == pytest.approx((-high, -low), abs=6e-5)


def test_pairing_beats_counting_when_the_same_starts_are_hard_for_both() -> None:
    base = flags(40, 100)
    improved = flags(52, 100)  # solves all that the base policy solves, and twelve more
    points, (low, high) = paired_difference(base, improved)
    assert points == pytest.approx(12)
    deviation = 100 * math.sqrt(0.12 * 0.88 / 100)
    assert low == pytest.approx(12 - 1.96 * deviation, abs=1) and high == pytest.approx(12 + 1.96 * deviation, abs=1)
    unpaired = newcombe((52, 100), (40, 100))
    assert high - low < 0.6 * 100 * (unpaired[1] - unpaired[0])
    assert paired_difference(improved, base)[0] == pytest.approx(-12)


def test_paired_difference_of_equals_is_exactly_zero_and_of_unequal_lengths_an_error() -> None:
    assert paired_difference(flags(3, 10), flags(3, 10)) == (0.0, (0.0, 0.0))
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="9"):
        paired_difference(flags(3, 9), flags(3, 10))


def test_outcomes_are_summarised_with_their_interval() -> None:
    base = Outcomes(success=flags(0, 4), num_steps=np.full(4, 48), temperature=0.0)
    improved = Outcomes(success=flags(2, 4), num_steps=np.array([10, 20, 48, 48]), temperature=0.5)
    assert base.summary()["mean_success_steps"] is None and base.summary()["decoding"] == "greedy"
    assert improved.summary() == {
        "success": 0.5, "n": 4, "interval": list(wilson(2, 4)), "mean_success_steps": 15.0, "decoding": "T = 0.5",
    }  # fmt: skip
    assert difference(base, improved)["points"] == 50


def test_rates_by_hand() -> None:
    truth = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    predicted = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0], dtype=bool)
    found = rates(predicted, truth)
    assert (found.tpr, found.fpr, found.n, found.positives) == (0.75, pytest.approx(1 / 6), 10, 4)
    assert found.j == pytest.approx(0.75 - 1 / 6) and found.f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found.j_interval == newcombe((3, 4), (1, 6)) and found.j_interval[0] < found.j < found.j_interval[1]


def test_rates_of_one_class_are_not_defined_rather_than_good() -> None:
    only_failures = rates(flags(1, 5), flags(0, 5))
    assert math.isnan(only_failures.tpr) and only_failures.fpr == 0.2 and math.isnan(only_failures.j)
    only_successes = rates(flags(4, 5), flags(5, 5))
    assert only_successes.tpr == 0.8 and math.isnan(only_successes.fpr) and math.isnan(only_successes.j)
    assert math.isnan(rates(flags(0, 5), flags(0, 5)).f1)


def test_the_threshold_lies_in_the_middle_of_the_gap_that_separates() -> None:
    scores, truth = np.array([-3.0, -1.0, 2.0, 4.0]), np.array([False, False, True, True])
    assert best_threshold(scores, truth) == pytest.approx(0.5)


def test_of_equally_good_thresholds_the_one_in_the_widest_gap_is_taken() -> None:
    scores, truth = np.array([-10.0, -9.0, 0.0, 5.0]), np.array([False, True, False, True])  # J = 1/2 in two gaps
    assert best_threshold(scores, truth) == pytest.approx(2.5)


def test_of_thresholds_alike_in_j_the_one_that_calls_as_many_solved_as_are_is_taken() -> None:
    truth = flags(2, 10)
    scores = np.array([0.0, 6.0, 4.5, 4.0, 1.0, 0.5, -2.0, -3.0, -4.0, -5.0])
    # J = 1/2 at 5.25, and again below 0 where six are called solved
    assert best_threshold(scores, truth) == pytest.approx(5.25)


def test_the_threshold_has_the_greatest_worth_even_when_nothing_separates() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.4
    scores = rng.standard_normal(200) + 1.5 * truth

    def worth(threshold: float) -> float:
        called = scores > threshold
        return rates(called, truth).j - abs(called.mean() - truth.mean()) / 2

    assert worth(best_threshold(scores, truth)) == pytest.approx(max(map(worth, np.linspace(-5, 5, 801))), abs=0.01)


def test_thresholds_keep_to_what_they_are_chosen_for() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(200) < 0.3
    scores = rng.standard_normal(200) + 1.2 * truth
    strict = rates(scores > best_threshold(scores, truth, "fpr", 0.05), truth)
    assert strict.fpr <= 0.05 and strict.tpr > 0.1
    tried = [rates(scores > t, truth) for t in np.linspace(-4, 3, 301)]
    for target, worth in (("f1", lambda found: found.f1), ("j", lambda found: found.j)):
        best = worth(rates(scores > best_threshold(scores, truth, target), truth))
        assert max(map(worth, tried)) - 1e-9 <= best <= max(map(worth, tried)) + 0.02


def test_the_interval_of_f1_holds_it_and_shrinks_with_more_episodes() -> None:
    few, many = (rates(np.tile(flags(7, 10), k), np.tile(flags(6, 10), k)) for k in (1, 20))
    for found in (few, many):
        assert found.f1_interval[0] <= found.f1 <= found.f1_interval[1]
    assert np.diff(many.f1_interval) < np.diff(few.f1_interval) / 3


@pytest.mark.parametrize("wins", [0, 5])
def test_a_threshold_needs_both_kinds(wins: int) -> None:
    with pytest.raises(ValueError, match="successes and failures, but all 5 are of one kind"):
        best_threshold(np.zeros(5), flags(wins, 5))


def audit(real: float, imagined: float = 0.5, j: float = 0.5, n: int = 16) -> Audit:
    solved = tuple(i < round(real * n) for i in range(n))
    return Audit(iteration=4, real=real, imagined=imagined, j=j, j_interval=(0.0, 1.0), n=n, solved=solved)


def test_training_goes_on_while_the_dream_follows_reality() -> None:
    assert parted(audit(0.5), []) == "" and parted(audit(0.9, 0.9), [audit(0.5)]) == ""
    assert parted(audit(0.3), [audit(0.5)]) == "", "a loss within two standard errors (25 points of 16) is chance"


def test_it_stops_when_real_success_falls_below_the_best_so_far() -> None:
    assert "fell from 50 to 20 %" in parted(audit(0.2), [audit(0.5)])
    assert "fell from 90 to 50 %" in parted(audit(0.5), [audit(0.9), audit(0.8)])
    assert parted(audit(0.3, n=400), [audit(0.5, n=400)]) and not parted(audit(0.3, n=16), [audit(0.5)])


def test_what_counts_is_how_many_starts_were_lost_and_won_not_the_rates_alone() -> None:
    before = replace(audit(0.5), solved=(True, False) * 8)
    lost_three = replace(audit(5 / 16), solved=(True, False) * 5 + (False, False) * 3)
    shuffled = replace(audit(5 / 16), solved=(False, True) * 5 + (False, False) * 3)  # won five, lost eight
    assert better(shuffled, [before]) and not better(lost_three, [before])


def test_it_stops_when_the_verdicts_are_no_better_than_chance_and_rosy() -> None:
    assert "calls 90 % solved where 40 % are" in parted(audit(0.4, imagined=0.9, j=0.0), [])
    assert "calls 90 % solved where 40 % are" in parted(audit(0.4, imagined=0.9, j=0.0), [audit(0.4)])
    assert parted(audit(0.4, imagined=0.9, j=0.1), []) == ""
    assert parted(audit(0.4, imagined=0.2, j=-0.1), []) == "", "a gloomy dream is not exploited"
    before = audit(0.4, imagined=0.5)
    assert "rose from 50 to 90 % while real success did not (40 to 40 %)" in parted(audit(0.4, imagined=0.9), [before])
    assert parted(audit(0.4, imagined=0.65), [before]) == "", "such a rise is chance"
    assert parted(audit(0.5, imagined=0.9), [before]) == "", "reality follows"
    assert parted(audit(0.5, imagined=0.9, j=-0.1), [audit(0.4)]) == "", "real success rises all the same"


def test_a_later_policy_is_kept_unless_it_lost_more_than_a_standard_error() -> None:
    assert better(audit(0.5), []) and better(audit(0.5), [audit(0.5)]) and better(audit(0.6), [audit(0.5), audit(0.3)])
    assert better(audit(7 / 16), [audit(0.5)]) and not better(audit(0.5), [audit(0.6), audit(0.3)])


def test_an_audit_budget_is_never_exceeded() -> None:
    assert AuditConfig(num_episodes=16, max_episodes=64).max_audits == 4
    assert AuditConfig(num_episodes=20, max_episodes=64).max_audits == 3


def test_judging_compares_what_happened_with_what_imagination_says_of_the_same_actions() -> None:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            frames=rng.integers(0, 256, (steps + 1, SIZE, SIZE, 3), dtype=np.uint8),
            actions=rng.uniform(-1, 1, (steps, ACTIONS)).astype(np.float32),
            solved_at=steps if steps > CHUNK else -1,
            instruction="push", start=steps, episode_id=steps, policy="base",
        )
        for steps in (CHUNK, 2 * CHUNK, 3 * CHUNK)
    ]  # fmt: skip
    for threshold, imagined in ((-1.0, 1.0), (256.0, 0.0)):
        found = judge(episodes, small_world_model(), Brightness(1, threshold), chunk_size=CHUNK, seed=0, iteration=8)
        assert (found.iteration, found.n, found.real, found.imagined, found.j) == (
            8,
            3,
            pytest.approx(2 / 3),
            imagined,
            0,
        )
    alike = judge(
        [replace(e, solved_at=-1) for e in episodes], small_world_model(), Brightness(1, -1.0),
        chunk_size=CHUNK, seed=0, iteration=8,
    )  # fmt: skip
    assert alike.j is None and alike.imagined == 1, "without successes J is not defined"
