"""Disruptions change what they say and nothing else; the push; the statistics; and the stage on a miniature run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import finished_run

from wmpo.config import DisruptionsConfig
from wmpo.data.splits import simulator_starts
from wmpo.envs.disrupt import KINDS, NONE, Disruption, Push, beyond_range, camera_moved
from wmpo.envs.ledger import Ledger
from wmpo.envs.metaworld import MetaWorldConfig, MetaWorldSim
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.evaluation.disruptions import compared, lengths, recovery
from wmpo.evaluation.policy import Outcomes
from wmpo.recipes import tiny
from wmpo.report.render import render
from wmpo.stages import disruptions as stage
from wmpo.stages.job import Job, open_job
from wmpo.stages.order import turn

CONFIG, START = MetaWorldConfig(task="plate-slide-v3", image_size=32), 40_020_007
DRAWN = [Disruption(name, kind.example) for name, kind in KINDS.items() if name not in ("none", "position")]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (4, 4))


@pytest.fixture(scope="module")
def sim() -> Iterator[MetaWorldSim]:
    sim = MetaWorldSim(CONFIG)
    yield sim
    sim.close()


def play(sim: MetaWorldSim, disruption: Disruption = NONE) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Pictures, the physics at the end, and every colour and light of the model."""
    sim.reset(START, disruption)
    frames = [sim.render(disruption)]
    for action in ACTIONS:
        sim.step(action)
        frames.append(sim.render(disruption))
    model = sim.env.model
    looks = [model.geom_rgba, model.mat_rgba, model.light_diffuse, model.light_ambient, model.geom_pos, model.body_pos]
    return frames, sim.snapshot().physics, np.concatenate([part.ravel() for part in looks])


@pytest.fixture(scope="module")
def undisturbed(sim: MetaWorldSim) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    return play(sim)


@pytest.mark.parametrize("disruption", DRAWN, ids=lambda d: d.label)
def test_what_is_drawn_otherwise_moves_otherwise_in_nothing_and_is_gone_next_time(
    sim: MetaWorldSim, undisturbed: Any, disruption: Disruption
) -> None:
    frames, physics, looks = play(sim, disruption)
    assert all((a != b).any() for a, b in zip(frames, undisturbed[0], strict=True))
    assert np.array_equal(physics, undisturbed[1]) and np.array_equal(looks, undisturbed[2])
    for again, first in ((play(sim, disruption), frames), (play(sim), undisturbed[0])):
        assert all(np.array_equal(a, b) for a, b in zip(again[0], first, strict=True))


def test_half_the_light_is_about_half_as_bright_and_paint_is_blue(sim: MetaWorldSim, undisturbed: Any) -> None:
    before = undisturbed[0][0].astype(float)
    dark = play(sim, Disruption("light", 0.5))[0][0]
    bright = before > 60
    assert 0.45 < (dark[bright] / before[bright]).mean() < 0.6, "a little more, where it was overexposed"
    blue = play(sim, Disruption("table", 1.0))[0][0].astype(float)
    assert (blue - before)[..., 0].mean() < -30 and np.abs(blue - before)[..., 2].mean() < 30
    objects = np.abs(play(sim, Disruption("object", 1.0))[0][0] - before).sum(axis=2) > 20
    assert 0.01 < objects.mean() < 0.25, "puck and goal, not the table"


def test_the_camera_moves_sideways() -> None:
    turn, shift = camera_moved(Disruption("camera-shift", 5), 90.0)  # looks along y, so x is to its right
    assert turn == 0 and np.allclose(shift, [0.05, 0, 0])
    turn, shift = camera_moved(Disruption("camera-turn", -7), 90.0)
    assert turn == -7 and not shift.any()


def test_starts_lie_so_far_out_of_range_in_one_coordinate(sim: MetaWorldSim) -> None:
    low, high = sim.env._random_reset_space.low, sim.env._random_reset_space.high
    places, disruption = [], Disruption("position", 3)
    for start in range(START, START + 6):
        sim.reset(start, disruption)
        place = sim.env._target_pos.copy()
        off = np.maximum(low[3:] - place, place - high[3:])
        assert off.max() == pytest.approx(0.03) and (off > 1e-9).sum() == 1
        goal = sim.env.model.body("puck_goal").pos
        assert np.allclose(goal, place), "what is seen moves with what counts"
        places.append(tuple(place))
        sim.reset(start)
        assert (sim.env._target_pos >= low[3:]).all() and (sim.env._target_pos <= high[3:]).all()
    assert len(set(places)) == 6
    sim._resets.clear()
    sim.reset(START, disruption)
    assert tuple(sim.env._target_pos) == places[0] and "_get_state_rand_vec" not in vars(sim.env)
    fresh = MetaWorldSim(CONFIG)
    fresh.reset(START + 50)
    sim.reset(START + 50)
    assert np.array_equal(fresh.snapshot().physics, sim.snapshot().physics), "nothing is left of it"


def test_no_free_place_on_the_table_is_said() -> None:
    low, high = np.array([0.0, 0.5, 0.1]), np.array([0.0, 0.5, 0.3])
    with pytest.raises(ValueError, match="leave position out"):
        beyond_range(low, high, low, 0.03, 0)


@pytest.mark.parametrize("centimetres", [2.0, 5.0, 10.0])
def test_a_push_displaces_the_hand_along_the_table(sim: MetaWorldSim, centimetres: float) -> None:
    for start in (START, START + 1):
        sim.reset(start)
        for _ in range(4):  # at rest
            sim.step(np.array([0.0, 0.0, 0.0, -1.0]))
        before, target = sim.env.get_endeff_pos().copy(), sim.env.data.mocap_pos[0].copy()
        sim.push(Push(centimetres, 1).offset(start))
        moved = sim.env.get_endeff_pos() - before
        assert 100 * np.linalg.norm(moved) == pytest.approx(centimetres, rel=0.2) and abs(moved[2]) < 0.005
        assert 100 * np.linalg.norm(sim.env.data.mocap_pos[0] - target) == pytest.approx(centimetres)


def test_at_the_border_the_hand_is_pushed_the_other_way(sim: MetaWorldSim) -> None:
    sim.reset(START)
    sim.env.data.mocap_pos[0, 0] = sim.env.mocap_high[0] - 0.01
    target = sim.env.data.mocap_pos[0].copy()
    sim.push(np.array([0.05, 0.02, 0]))
    assert np.allclose(sim.env.data.mocap_pos[0] - target, [-0.05, 0.02, 0])


def test_directions_differ_between_starts_only() -> None:
    offsets = np.stack([Push(5, 2).offset(start) for start in range(8)])
    assert np.allclose(np.linalg.norm(offsets, axis=1), 0.05) and len({tuple(o) for o in offsets}) == 8
    assert np.array_equal(offsets[3], Push(5, 2).offset(3))


def test_the_environment_is_disturbed_inside_only_and_the_ledger_tells(tmp_path: Path) -> None:
    starts, ledger = simulator_starts([START, START + 1], CONFIG.instructions), Ledger(tmp_path / "ledger.jsonl")
    actions = torch.from_numpy(ACTIONS[None].repeat(2, axis=0)).float()
    with SimulatedEnv(CONFIG, chunk_size=4, max_chunks=2, frame_stride=4, ledger=ledger, num_workers=1) as env:
        env.purpose = Purpose("disruptions", "base")

        def video() -> np.ndarray:
            first = env.reset(starts).frame.unsqueeze(1)
            return torch.cat([first, env.step(actions).frames, env.step(actions).frames], dim=1).numpy()

        before = video()
        with env.disrupted(Disruption("light", 0.5)):
            dark = video()
        with env.disrupted(push=Push(8, 1)):
            pushed = video()
        assert np.array_equal(video(), before)
    assert dark.mean() < 0.6 * before.mean()
    assert np.array_equal(pushed[:, 0], before[:, 0])
    assert all((pushed[row, i] != before[row, i]).any() for row in range(2) for i in (1, 2))
    told = [row.get("disruption") for row in ledger.unique()]
    assert told == [None] * 2 + ["light:0.5"] * 2 + ["push:8 after 1"] * 2
    assert ledger.count() == {"disruptions": 6, "played_again": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ligth:0.5", "did you mean light"),
        ("camera:5", "camera-turn"),
        ("light:9", r"must be in 0.1..3; for instance light:0.5"),
        ("position:0", r"must be in 0.1..10"),
        ("light", "needs a number, its factor of every lamp's brightness; for instance light:0.5"),
        ("table:much", "needs a number"),
        ("table:nan", "must be in"),
    ],
)
def test_wrong_disruptions_are_refused_with_what_is_right(text: str, said: str) -> None:
    experiment = tiny()
    with pytest.raises(ValueError, match=said) as caught:
        replace(experiment, disruptions=replace(experiment.disruptions, played=(text,))).validate()
    assert "--disruptions.played" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"push_centimetres": 0.0}, "0.5..20 centimetres"), ({"push_chunk": 6}, "below max_chunks 6"),
     ({"push_chunk": 0}, "at least 1"), ({"num_starts": 1}, "at least 2")],
)  # fmt: skip
def test_wrong_pushes_are_refused(change: dict[str, Any], said: str) -> None:
    experiment = tiny()
    with pytest.raises(ValueError, match=said):
        replace(experiment, disruptions=replace(experiment.disruptions, **change)).validate()


def test_disruptions_are_read_once_and_in_order() -> None:
    config = DisruptionsConfig(played=("position:3", "none", "light:0.50", "light:0.5"))
    assert [d.label for d in config.disruptions()] == ["position:3", "light:0.5"]
    assert all(Disruption.parse(d.label) == d for d in [NONE, *DRAWN])


def outcomes(success: list[int], num_steps: list[int]) -> Outcomes:
    return Outcomes(success=np.array(success, dtype=bool), num_steps=np.array(num_steps), temperature=0.0)


def test_lengths_are_of_starts_that_both_solve() -> None:
    base, improved = outcomes([1, 1, 0, 1], [20, 30, 48, 9]), outcomes([1, 1, 1, 0], [16, 20, 5, 48])
    found = lengths(base, improved)
    assert (found["n"], found["base"], found["improved"]) == (2, 25.0, 18.0)
    assert found["difference"] == {"steps": -7.0, "interval": [-10.0, -4.0]}
    none = lengths(base, outcomes([0] * 4, [48] * 4))
    assert none == {"n": 0, "base": None, "improved": None, "difference": {"steps": None, "interval": None}}
    assert compared(base, improved)["difference"]["points"] == 0


def test_only_episodes_that_last_so_long_are_pushed() -> None:
    base, improved = outcomes([1, 1, 0, 0], [8, 30, 48, 48]), outcomes([1, 1, 1, 0], [9, 20, 40, 48])
    plain = outcomes([1, 1, 1, 0], [8, 30, 40, 48]), outcomes([1, 1, 1, 1], [9, 20, 40, 40])
    found = recovery(base, improved, undisturbed=plain, step=8)
    assert (found["base"]["n"], found["base"]["success"]) == (3, pytest.approx(1 / 3))
    assert (found["improved"]["n"], found["improved"]["success"]) == (4, 0.75)
    assert found["base"]["without_push"] == pytest.approx(2 / 3) and found["improved"]["without_push"] == 1
    assert found["difference"]["n"] == 3 and found["difference"]["points"] == pytest.approx(100 / 3)
    nobody = recovery(base, improved, undisturbed=plain, step=48)
    assert nobody["base"]["success"] is None and nobody["difference"] == {"points": None, "interval": None, "n": 0}


def evaluated(path: Path, handed_in: str = "improved") -> Job:
    job = finished_run(path)
    job.round = 2
    chosen = {"base": {"best": {"decoding": "greedy"}}, "improved": {"best": {"decoding": "T = 1"}}}
    job.root.complete("evaluate", 1.0, chosen | {"handed_in": handed_in})
    return job


def test_the_stage_measures_tells_and_does_not_play_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, played = evaluated(tmp_path / "runs/tiny"), []
    assert turn(job, "disruptions") == ([("disruptions", 2)], "")
    original = stage.play_starts

    def interrupted(*args: Any, **kwargs: Any) -> Outcomes:
        if len(played) == 3:
            played.append("stopped")
            raise KeyboardInterrupt
        played.append("played")
        return original(*args, **kwargs)

    monkeypatch.setattr(stage, "play_starts", interrupted)
    with job:
        with pytest.raises(KeyboardInterrupt):
            stage.disruptions(job)
        stage.disruptions(job)
    assert played.count("played") == 2 * 4, "undisturbed, two disruptions and the push, by both policies"
    found = json.loads((job.root.path / "stages/disruptions.json").read_text())
    assert [row["kind"] for row in found["disruptions"]] == ["none", "light", "position"]
    assert {row["base"]["decoding"] for row in found["disruptions"]} == {"greedy"}
    assert found["disruptions"][1]["improved"]["decoding"] == "T = 1" and found["push"]["step"] == 4
    ledger = Ledger(job.root.ledger)
    assert ledger.count() == {"disruptions": 2 * (4 * 4 + 1)}
    assert {row["start"] for row in ledger.episodes()} == set(range(40_020_000, 40_020_005))
    assert not list((job.root.path / "unfinished").glob("disruptions*"))
    assert (job.root.path / "videos/push-0.mp4").is_file()
    page = render(job.root.path).read_text()
    assert "Recovery from a push" in page and "light × 0.5" in page and "start 3 cm out of range" in page


def test_a_base_policy_that_was_handed_in_plays_once(tmp_path: Path) -> None:
    job = evaluated(tmp_path / "tiny", "base")
    assert [(who.name, who.temperature) for who in stage.contestants(job)] == [("base", 0.0)]


def test_its_own_settings_may_be_chosen_on_a_finished_run(tmp_path: Path) -> None:
    job = evaluated(tmp_path / "tiny")
    other = replace(job.experiment, disruptions=replace(job.experiment.disruptions, num_starts=9))
    with pytest.raises(ValueError, match=r"disruptions\.num_starts: 4 there, 9 now"):
        open_job(tmp_path / "tiny", "tiny", other, 0)
    assert open_job(tmp_path / "tiny", "tiny", other, 0, free="disruptions.").experiment is other
    with pytest.raises(ValueError, match="max_chunks"):
        open_job(tmp_path / "tiny", "tiny", replace(other, max_chunks=7), 0, free="disruptions.")


def test_an_unfinished_run_names_the_command_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run: wmpo improve"):
        stage.disruptions(open_job(tmp_path / "new", "tiny", tiny(), 0, quiet=True))
    job = finished_run(tmp_path / "tiny")
    with pytest.raises(ValueError, match="run: wmpo evaluate"):
        stage.disruptions(job)
