"""Robots: limits, rate, the age of pictures, LeRobot's interface and the keys of an operator."""

from __future__ import annotations

import math
import os
import time

import numpy as np
import pytest
from toy_arm import AXES, ToyArm

from wmpo.robots.lerobot import LeRobotRobot
from wmpo.robots.protocol import Axis, Reading, Robot, RobotError, Signal, StaleFrames
from wmpo.robots.safety import RateKeeper, check_action, check_age, check_axes, hold, limit
from wmpo.robots.terminal import TerminalOperator

PLACE = Axis(name="joint", low=-10, high=10, max_step=2)
MOVE = Axis(name="hand", low=-10, high=10, max_step=2, relative=True)
FREE = Axis(name="gripper", low=0, high=1, max_step=math.inf)


@pytest.mark.parametrize(
    ("axis", "position", "action", "allowed"),
    [
        (PLACE, 5, 6.5, 6.5),
        (PLACE, 5, 9, 7),  # too far at once
        (PLACE, 5, -20, 3),
        (PLACE, 9.5, 20, 10),  # the border
        (PLACE, 14, 0, 12),  # somebody put it outside: it comes back slowly
        (PLACE, 14, 14, 12),
        (MOVE, 0, 1.5, 1.5),
        (MOVE, 0, -5, -2),
        (MOVE, 9, 2, 1),
        (MOVE, 10, 1, 0),
        (MOVE, 14, 0, -2),
        (MOVE, math.nan, 5, 2),
        (FREE, math.nan, 0.7, 0.7),
        (FREE, math.nan, 3, 1),
    ],
)
def test_limits_by_hand(axis: Axis, position: float, action: float, allowed: float) -> None:
    found = limit([axis], np.array([float(action)]), np.array([float(position)]))
    assert found.action[0] == allowed and found.changed == (allowed != action)


def test_no_action_leaves_the_workspace_or_hurries_and_a_limited_one_is_not_limited_again() -> None:
    rng = np.random.default_rng(0)
    axes = [PLACE, MOVE]
    for _ in range(500):
        position = rng.uniform(-10, 10, 2)
        found = limit(axes, rng.normal(0, 20, 2), position)
        place = np.where([False, True], position + found.action, found.action)
        assert (np.abs(place) <= 10 + 1e-9).all() and (np.abs(place - position) <= 2 + 1e-9).all()
        assert not limit(axes, found.action, position).changed
    assert hold(axes, np.array([3.0, 1.0])).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_with_its_axis(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity for hand, so nothing was sent"):
        limit([PLACE, MOVE], np.array([0.0, bad]), np.zeros(2))


def test_limits_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\] does not fit the robot's 2 axes \(joint, hand\)"):
        check_action([PLACE, MOVE], np.zeros(3))
    with pytest.raises(ValueError, match="does not measure where joint is"):
        check_axes([PLACE, MOVE, FREE], np.full(3, math.nan))
    for wrong in ({"low": 2.0, "high": 1.0}, {"max_step": 0.0}, {"low": math.nan}, {"unit": -1.0}):
        with pytest.raises(ValueError, match="axis joint: "):
            Axis(**{"name": "joint", "low": -1.0, "high": 1.0, "max_step": 1.0} | wrong)


class FakeClock:
    def __init__(self) -> None:
        self.now, self.slept = 100.0, 0.0

    def sleep(self, seconds: float) -> None:
        self.now, self.slept = self.now + seconds, self.slept + seconds


def test_the_rate_is_kept_and_lateness_is_measured_and_never_caught_up() -> None:
    clock = FakeClock()
    rate = RateKeeper(10, clock=lambda: clock.now, sleep=clock.sleep)
    ticks = []
    for work in (0.03, 0.0, 0.25, 0.03, 0.105):  # the third one is late by 0.15 s, the last one within tolerance
        clock.now += work
        rate.wait()
        ticks.append(clock.now - 100)
    assert ticks == pytest.approx([0.1, 0.2, 0.45, 0.55, 0.655])
    clock.now += 0.01
    rate.wait()
    assert clock.now - 100 == pytest.approx(0.75), "what is within tolerance does not shift the schedule"
    pace = rate.pace()
    assert (pace.ticks, pace.late) == (6, 1) and pace.worst == pytest.approx(0.15)
    assert pace.words() == "1 of 6 actions late, by up to 150 ms"
    rate.start()
    assert rate.pace().words() == "on time"


def test_a_faster_life_has_shorter_periods_and_ages() -> None:
    clock = FakeClock()
    rate = RateKeeper(10, speed=4, clock=lambda: clock.now, sleep=clock.sleep)
    clock.now += 0.05
    assert rate.wait() == pytest.approx(0.1) and clock.slept == 0
    reading = Reading(frame=np.zeros((4, 4, 3), np.uint8), position=np.zeros(1), captured=100.0)
    check_age(reading, 100.04, 0.25, speed=4)
    with pytest.raises(StaleFrames, match=r"0\.32 s old, more than the 0\.25 s allowed"):
        check_age(reading, 100.08, 0.25, speed=4)


def test_the_adapter_speaks_lerobot() -> None:
    arm = ToyArm()
    robot = LeRobotRobot(arm, "front", AXES)
    assert isinstance(robot, Robot)
    robot.stop()
    robot.close()
    assert arm.sent == [], "there is nothing to stop yet"
    robot.connect()
    arm.joints = {"pan.pos": 1.0, "lift.pos": -2.0}
    reading = robot.observe()
    assert reading.frame.shape == (48, 64, 3) and reading.captured == arm.cameras["front"].latest_timestamp
    assert reading.position[:2].tolist() == [1.0, -2.0] and np.isnan(reading.position[2:]).all()
    assert robot.send(np.array([2.0, -1.0, 0.5, 4.0])).tolist() == [2.0, -1.0, 0.5, 4.0]
    robot.stop()  # where it was seen last, without a movement, the gripper as it is
    assert list(arm.sent[-1].values()) == [1.0, -2.0, 0.0, 4.0]
    with pytest.raises(ValueError, match="4 axes"):
        robot.send(np.zeros(3))
    with pytest.raises(ValueError, match="NaN or infinity for gripper"):
        robot.send(np.array([0, 0, 0, math.nan]))
    assert len(arm.sent) == 2
    robot.close()
    robot.close()
    assert not arm.connected


def test_positions_are_in_units_of_actions_and_a_driver_may_change_an_action(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = ToyArm()
    axes = (*AXES[:2], Axis(name="delta_z", low=-1, high=1, max_step=1, relative=True, measured="lift.pos", unit=0.5))
    monkeypatch.setattr(ToyArm, "action_features", {axis.name: float for axis in axes})
    robot = LeRobotRobot(arm, "front", axes)
    arm.joints["lift.pos"] = 2.0
    assert robot.observe().position.tolist() == [0.0, 2.0, 4.0]
    monkeypatch.setattr(arm, "send_action", lambda action: {"pan.pos": 0.25})
    assert robot.send(np.ones(3)).tolist() == [0.25, 1.0, 1.0]


@pytest.mark.parametrize(
    ("camera", "axes", "message"),
    [
        ("top", AXES, r"no camera 'top', but \['front', 'wrist'\]"),
        ("pan.pos", AXES, "no camera 'pan.pos'"),
        ("front", AXES[:3], "give one Axis for each"),
        ("front", (*AXES[:3], Axis(name="grip", low=0, high=1, max_step=1)), "the axes are .*'grip'"),
        ("front", (*AXES[:3], Axis(name="gripper", low=0, high=1, max_step=1, measured="jaw")), "does not observe jaw"),
    ],
)
def test_names_that_the_robot_does_not_have(camera: str, axes: tuple[Axis, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotRobot(ToyArm(), camera, axes)


def test_a_robot_that_cannot_be_used_says_why_in_one_sentence() -> None:
    arm = ToyArm(fails={1: OSError("bus timeout"), 2: TimeoutError("no frame within 200 ms")})
    robot = LeRobotRobot(arm, "front", AXES)
    arm.unreachable = True
    with pytest.raises(RobotError, match=r"cannot connect to toy arm \(no device on /dev/ttyACM0\); check power"):
        robot.connect()
    arm.unreachable, arm.is_calibrated = False, False
    with pytest.raises(RobotError, match="not calibrated; run lerobot-calibrate first"):
        robot.connect()
    assert not arm.connected
    with pytest.raises(RobotError, match=r"cannot read toy arm \(bus timeout\)"):
        robot.observe()
    with pytest.raises(StaleFrames, match="camera 'front' gave no picture"):
        robot.observe()
    arm.shown = {"front": np.zeros((48, 64, 3), np.float32)}
    with pytest.raises(RobotError, match=r"gives float32 \[48, 64, 3\], not uint8"):
        robot.observe()


@pytest.mark.parametrize("stamped", [True, False])
def test_the_age_of_a_picture_is_known_with_and_without_the_cameras_clock(stamped: bool) -> None:
    arm = ToyArm(stamped=stamped)
    robot = LeRobotRobot(arm, "front", AXES)
    arm.frozen = True
    first = robot.observe()
    time.sleep(0.02)
    again = robot.observe()
    assert again.captured == first.captured
    arm.frozen = False
    assert robot.observe().captured > first.captured + 0.015


def test_keys_at_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = os.openpty()
    clock = FakeClock()
    with TerminalOperator(keys=theirs, clock=lambda: clock.now, grace=0.5) as operator:

        def press(keys: str) -> None:
            os.write(ours, keys.encode())

        press(" ")
        assert operator.poll() == Signal.GO_ON
        clock.now += 0.4
        assert operator.poll() == Signal.GO_ON
        clock.now += 0.2
        assert operator.poll() == Signal.RELEASED, "the key was let go"
        for key, signal in (
            ("s", Signal.SUCCESS),
            ("f", Signal.FAILURE),
            ("d", Signal.DISCARD),
            ("q", Signal.RELEASED),
        ):
            press(" " + key)
            assert operator.poll() == signal
        press("x f")
        assert operator.judge("its time is over") == Signal.FAILURE
        assert "stands still: its time is over" in capsys.readouterr().err
        press("q")
        assert operator.poll() == Signal.RELEASED
    os.close(ours)
    os.close(theirs)
    with open(os.devnull) as nothing, pytest.raises(RobotError, match="needs a terminal"):
        TerminalOperator(keys=nothing.fileno())
