"""A robot in a process of its own, which waits for nobody: late and lost pictures, a death, and the whole way."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from commands import refused
from finished_run import finished_run

from wmpo.cli import main
from wmpo.data.lerobot import num_episodes, read_episodes
from wmpo.envs.ledger import Ledger
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.simulated import Purpose
from wmpo.robots.env import RobotEnv
from wmpo.robots.play import Played, Session, play_episodes
from wmpo.robots.protocol import RobotError, Setup, Signal
from wmpo.robots.simulated import CAMERA, Faults, SimulatedArm, SimulatedOperator, simulated
from wmpo.stages import models

CONFIG = MetaWorldConfig(task="coffee-button-v3", image_size=32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = finished_run(tmp_path_factory.mktemp("process") / "run", rounds=0)
    return job.root.model("base")


def record(setup: Setup, base: Path, root: Path, wanted: int) -> list[Played]:
    policy, (sentence,) = models.open_policy(base)
    session = Session(purpose=Purpose("collection", "base", 1.0, 0), instruction=sentence, dataset=root)
    assert setup.operator is not None
    setup.robot.connect()
    try:
        env = RobotEnv(setup, setup.operator, chunk_size=4, max_chunks=2, image_size=32)
        return play_episodes(env, setup.operator, policy, session, wanted, fps=setup.rate, have=num_episodes(root))
    finally:
        setup.robot.close()


def test_it_lives_in_its_own_time_and_the_hand_goes_where_it_is_told() -> None:
    arm = SimulatedArm(CONFIG, rate=20, speed=2)
    arm.connect()
    try:
        arm.ask("reset", 5)
        before = arm.get_observation()
        for _ in range(8):
            arm.send_action({"delta_x": 1.0, "delta_y": 0.0, "delta_z": 0.0, "gripper": -1.0})
            time.sleep(0.1)
        time.sleep(0.2)
        after = arm.get_observation()
        assert after["x"] - before["x"] > 0.08, "eight of 4 cm, less what the controller lags and a slow process misses"
        assert abs(after["y"] - before["y"]) < 0.02
        assert not np.array_equal(after[CAMERA], before[CAMERA])
        assert time.perf_counter() - arm.cameras[CAMERA].latest_timestamp < 1.0, "pictures go on without actions"
    finally:
        arm.disconnect()
    with pytest.raises(ConnectionError, match="not connected"):
        arm.get_observation()


def test_a_person_who_judges_an_arm_that_is_gone_hears_so() -> None:
    gone = SimulatedOperator(SimulatedArm(CONFIG, rate=20), 0)
    for ask in (gone.poll, lambda: gone.judge("its time is over"), lambda: gone.reset(1, 1)):
        with pytest.raises(RobotError, match="does not answer"):
            ask()


def test_late_and_lost_pictures_and_a_death_in_mid_episode(base: Path, tmp_path: Path) -> None:
    faults = Faults(latency=0.1, dropped=0.3, die_after=13)
    with pytest.raises(RobotError, match="its process ended"):
        record(simulated(CONFIG, speed=0.5, faults=faults, max_age=10.0), base, tmp_path / "data", 3)
    (episode,) = read_episodes(tmp_path / "data")
    assert len(episode.actions) == 8
    rows = Ledger(tmp_path / "data/ledger.jsonl").episodes()
    assert [row["outcome"] for row in rows] == ["failure", "failed"]
    assert int(str(rows[0]["repeated"])) > 0, "lost pictures are seen"
    record(simulated(CONFIG, speed=2, max_age=10.0), base, tmp_path / "data", 2)
    assert num_episodes(tmp_path / "data") == 2


def test_a_camera_that_freezes_ends_the_episode(base: Path, tmp_path: Path) -> None:
    setup = simulated(CONFIG, speed=0.1, faults=Faults(freeze_after=3), max_age=0.15)
    operator = setup.operator
    assert operator is not None
    scenes = iter([True, False])
    reset = operator.reset
    operator.reset = lambda episode, total: next(scenes) and reset(episode, total)  # type: ignore[method-assign]
    (played,) = record(setup, base, tmp_path / "data", 1)
    assert played.verdict == Signal.DISCARD and "s old, more than the 0.15 s" in played.why
    assert num_episodes(tmp_path / "data") == 0


SETUP = """
from pathlib import Path

from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.robots.simulated import Faults, simulated

def robot():
    new = not Path("played").exists()
    faults = Faults(latency=0.05, dropped=0.05, die_after=40 if new else -1)  # the first one dies in mid-episode
    return simulated(MetaWorldConfig(task="coffee-button-v3", image_size=32), speed=1, faults=faults, max_age=10.0)
"""
STRONGER = ["--demos.num-episodes", "6", "--sft.fit.num-steps", "100"]
"""A base policy that solves about half of its episodes: a classifier needs both kinds."""


@pytest.mark.slow
def test_collect_on_the_robot_improve_in_the_dream_and_deploy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rounds of the tiny recipe; P episodes are played, and judged, by the robot's process, which dies once."""
    monkeypatch.chdir(tmp_path)
    Path("robot.py").write_text(SETUP)
    run = ["run", "tiny", "--collect.recorded", "played", "--improve.audit.max-episodes", "0", *STRONGER]
    assert "--policy runs/tiny/models/base.safetensors --to played --num-episodes 11" in refused(*run, cwd=tmp_path)
    collect = ["robot", "collect", "robot.py", "--to", "played", "--max-chunks", "6", "--temperature", "1"]
    first = [*collect, "--policy", "runs/tiny/models/base.safetensors", "--num-episodes", "11"]
    assert "its process ended" in refused(*first, cwd=tmp_path)
    begun = read_episodes(Path("played"))
    assert 0 < len(begun) < 11 and Ledger(Path("played/ledger.jsonl")).episodes()[-1]["outcome"] == "failed"
    main(first)
    assert "played: 11 episodes" in capsys.readouterr().out
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(begun, read_episodes(Path("played")), strict=False))
    said = refused(*run, cwd=tmp_path)
    assert "--policy runs/tiny/models/improved.safetensors --to played --num-episodes 16" in said
    main([*collect, "--policy", "runs/tiny/models/improved.safetensors", "--num-episodes", "16"])
    main(run)
    played, used = read_episodes(Path("played")), []
    for folder in ("runs/tiny", "runs/tiny/round-2"):
        used += read_episodes(Path(folder) / "data/collected")
    assert [len(e.actions) for e in used] == [len(e.actions) for e in played]
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(used, played, strict=True))
    assert len({e.start for e in used}) == 16 and len({e.policy for e in used}) == 2
    assert Path("runs/tiny/round-2/models/improved.safetensors").exists()
    assert "wmpo robot deploy" in refused("evaluate", "tiny", cwd=tmp_path)
    capsys.readouterr()
    main(["robot", "deploy", "robot.py", "--policy", "runs/tiny", "--to", "deployed", "--num-episodes", "4"])
    assert "of 4 solved" in capsys.readouterr().out
