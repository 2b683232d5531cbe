"""Episodes on a robot, with people and faults, on a toy arm in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import SENTENCE, finished_run
from toy_arm import Script, ToyArm, after, toy_setup

from wmpo.data.lerobot import read_episodes
from wmpo.data.splits import simulator_starts
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulated import Purpose
from wmpo.policy.small import SmallPolicy
from wmpo.protocols import ChunkEnv
from wmpo.robots.env import RobotEnv, check_policy
from wmpo.robots.play import Played, Session, play_episodes, stored
from wmpo.robots.protocol import RobotError, Signal, StaleFrames
from wmpo.stages import models


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("robots") / "run"
    finished_run(path)
    return path


@pytest.fixture(scope="module")
def policy(run: Path) -> SmallPolicy:
    return models.open_policy(run / "models/base.safetensors")[0]


Play = Callable[..., list[Played]]


@pytest.fixture
def play(policy: SmallPolicy, tmp_path: Path) -> Play:
    """Plays until ``wanted`` episodes of two chunks of four are in ``tmp_path/data``."""

    def play(arm: ToyArm, operator: Script, wanted: int, **settings: Any) -> list[Played]:
        setup = toy_setup(arm, **settings)
        setup.robot.connect()
        env = RobotEnv(setup, operator, chunk_size=4, max_chunks=2, image_size=32)
        session = Session(
            purpose=Purpose("collection", "base", 1.0, 0), instruction=SENTENCE, dataset=tmp_path / "data"
        )
        have = stored(session.dataset, fps=250, image_size=32, action_dim=4)
        return play_episodes(env, operator, policy, session, wanted, fps=250, have=have)

    return play


def rows(tmp_path: Path) -> list[dict[str, object]]:
    return Ledger(tmp_path / "data/ledger.jsonl").episodes()


def test_an_episode_is_what_was_really_executed(play: Play, tmp_path: Path) -> None:
    arm = ToyArm()
    (played,) = play(arm, Script(), 1)
    (episode,) = read_episodes(tmp_path / "data")
    assert episode.frames.shape == (9, 32, 32, 3) and episode.actions.shape == (8, 4)
    assert (episode.success, episode.instruction, episode.policy) == (False, SENTENCE, "base")
    assert np.array_equal(episode.actions, np.array([[*a.values()] for a in arm.sent[:8]], np.float32))
    assert len(arm.sent) == 9 and [*arm.sent[8].values()][2] == 0, "and then it was told to stand still"
    places = np.concatenate([np.zeros((1, 2)), episode.actions[:, :2]])
    assert (np.abs(np.diff(places, axis=0)) <= [2 + 1e-6, 1 + 1e-6]).all(), "the policy jumps, the arm does not"
    assert (np.abs(np.cumsum(episode.actions[:, 2])) <= 3 + 1e-6).all() and played.tally.limited > 0
    assert len({frame.tobytes() for frame in episode.frames}) == 9 and played.tally.repeated == 0
    (row,) = rows(tmp_path)
    assert (row["purpose"], row["outcome"], row["steps"], row["why"]) == (
        "collection", "failure", 8, "its time is over"
    )  # fmt: skip


def test_success_ends_the_episode_and_the_chunk_is_spent_standing_still(play: Play, tmp_path: Path) -> None:
    arm, operator = ToyArm(), Script(*after(6, Signal.SUCCESS))
    play(arm, operator, 1)
    (episode,) = read_episodes(tmp_path / "data")
    assert episode.solved_at == 6 and len(episode.actions) == 8 and operator.asked == []
    for still in episode.actions[6:]:
        assert still[2] == 0 and np.array_equal(np.delete(still, 2), np.delete(episode.actions[5], 2))


def test_nothing_moves_when_the_key_is_let_go_while_the_policy_thinks(play: Play, tmp_path: Path) -> None:
    arm = ToyArm()
    script = Script(*[Signal.GO_ON] * 5, Signal.RELEASED, Signal.RELEASED, *after(8, Signal.GO_ON), scenes=3)
    first, second, _ = play(arm, script, 2)
    assert (first.verdict, first.why) == (Signal.FAILURE, "the key was released")
    assert first.episode is not None and len(first.episode.actions) == 4
    assert (second.verdict, second.why) == (Signal.DISCARD, "the key was released before the first action")
    assert len(read_episodes(tmp_path / "data")) == 2


def test_the_arm_goes_home_slowly_while_the_key_is_held(play: Play, tmp_path: Path) -> None:
    arm = ToyArm()
    arm.joints = {"pan.pos": 7.0, "lift.pos": 0.0}
    play(arm, Script(), 1, home=(0.0, 2.0, 0.0, 1.0))
    way = [action["pan.pos"] for action in arm.sent[:4]]
    assert way == [5, 3, 1, 0] and [action["lift.pos"] for action in arm.sent[:3]] == [1, 2, 2]
    (episode,) = read_episodes(tmp_path / "data")
    assert len(episode.actions) == 8, "the way home is in no episode"
    operator = Script(Signal.GO_ON, Signal.RELEASED, scenes=1)
    (played,) = play(arm, operator, 2, home=(-10.0, 2.0, 0.0, 1.0))
    assert played.verdict == Signal.DISCARD and arm.joints["pan.pos"] > -10
    with pytest.raises(ValueError, match="home of delta_z must be 0"):
        play(arm, Script(), 2, home=(0.0, 2.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="home must be 4 numbers"):
        toy_setup(home=(0.0, 1.0))


@pytest.mark.parametrize("answer", [Signal.SUCCESS, Signal.FAILURE, Signal.DISCARD])
def test_without_the_key_it_stops_at_once_and_the_person_is_asked(answer: Signal, play: Play, tmp_path: Path) -> None:
    arm, operator = ToyArm(), Script(*after(3, Signal.RELEASED), answers=(answer,), scenes=1)
    play(arm, operator, 1)
    for still in arm.sent[3:]:  # it is told twice: at once, and at the end of the episode
        assert [*still.values()] == [arm.sent[2][name] for name in ("pan.pos", "lift.pos")] + [
            0,
            arm.sent[2]["gripper"],
        ]
    assert operator.asked == ["the key was released"]
    kept = read_episodes(tmp_path / "data") if answer != Signal.DISCARD else []
    assert [episode.solved_at for episode in kept] == ([3] if answer == Signal.SUCCESS else [-1] * len(kept))
    assert [row["outcome"] for row in rows(tmp_path)] == [answer.value]


def test_discarded_episodes_are_not_stored_but_counted(play: Play, tmp_path: Path) -> None:
    operator = Script(*after(2, Signal.DISCARD), *after(5, Signal.FAILURE), *after(4, Signal.SUCCESS))
    played = play(ToyArm(), operator, 2)
    assert [p.verdict for p in played] == [Signal.DISCARD, Signal.FAILURE, Signal.SUCCESS]
    found = read_episodes(tmp_path / "data")
    assert [len(e.actions) for e in found] == [5, 4] and [e.success for e in found] == [False, True]
    assert [row["steps"] for row in rows(tmp_path)] == [2, 5, 4]
    assert [e.start for e in found] == [row["start"] for row in rows(tmp_path)][1:], "each scene has a name of its own"
    assert play(ToyArm(), Script(scenes=0), 3) == [], "the person wanted to end"


def test_an_old_picture_costs_the_episode_and_not_the_session(play: Play, tmp_path: Path) -> None:
    arm = ToyArm(fails={4: TimeoutError("no frame")})
    played = play(arm, Script(), 1)
    assert [p.verdict for p in played] == [Signal.DISCARD, Signal.FAILURE] and played[0].episode is None
    assert len(read_episodes(tmp_path / "data")) == 1
    assert "gave no picture" in str(rows(tmp_path)[0]["why"])
    assert [*arm.sent[3].values()][2] == 0, "it stood still"

    class Slowing(Script):
        def poll(self) -> Signal:
            arm.lag = 100
            return super().poll()

    arm = ToyArm()
    played = play(arm, Slowing(scenes=1), 2)
    assert played[0].tally.repeated == 1 and "s old, more than the 60 s" in played[0].why
    with pytest.raises(StaleFrames):  # before the first action: nothing would get better
        play(arm, Script(), 2)


@pytest.mark.parametrize("fault", [OSError("unplugged"), KeyboardInterrupt()])
def test_a_stop_in_mid_episode_leaves_a_readable_dataset(fault: BaseException, play: Play, tmp_path: Path) -> None:
    arm = ToyArm(fails={14: fault} if isinstance(fault, OSError) else {})
    signals: Iterator[Signal | BaseException] = after(13, fault) if isinstance(fault, KeyboardInterrupt) else iter(())
    with pytest.raises(RobotError if isinstance(fault, OSError) else KeyboardInterrupt):
        play(arm, Script(*signals), 3)
    assert len(read_episodes(tmp_path / "data")) == 1
    assert [row["outcome"] for row in rows(tmp_path)] == ["failure", "failed"]
    assert [*arm.sent[-1].values()][2] == 0, "it was told to stand still all the same"
    play(ToyArm(), Script(), 3)
    found = read_episodes(tmp_path / "data")
    assert len(found) == 3 and len({e.episode_id for e in found}) == 3 and len(rows(tmp_path)) == 4


def test_a_robot_that_cannot_stop_does_not_hide_why(play: Play) -> None:
    arm = ToyArm(fails={4: OSError("unplugged")})
    send = arm.send_action

    def until_unplugged(action: dict[str, float]) -> dict[str, float]:
        if arm.reads >= 4:
            raise OSError("no such device")
        return send(action)

    arm.send_action = until_unplugged  # type: ignore[method-assign]
    with pytest.raises(RobotError, match="unplugged") as caught:
        play(arm, Script(), 1)
    assert "could not be told to stop" in caught.value.__notes__[0]


def test_it_is_a_chunk_env_that_sends_nothing_of_a_chunk_with_nan(policy: SmallPolicy) -> None:
    arm = ToyArm()
    env = RobotEnv(toy_setup(arm), Script(), chunk_size=4, max_chunks=2, image_size=32)
    assert isinstance(env, ChunkEnv)
    assert env.reset(simulator_starts([1], (SENTENCE,))).frame.shape == (1, 32, 32, 3)
    chunk = torch.zeros(1, 4, 4)
    chunk[0, 3, 1] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinity for lift\.pos"):
        env.step(chunk)
    assert arm.sent == []
    with pytest.raises(RobotError, match="the policy gives 7 numbers, but the robot has 4 axes"):
        check_policy(toy_setup(), 7)
    with pytest.raises(ValueError, match="one episode at a time, not 2"):
        env.reset(simulator_starts([1, 2], (SENTENCE,)))
