"""An SO-101 arm with one camera through LeRobot: copy this file, and put your port, camera, limits and rate in.
For a policy of several cameras give their names as a tuple, in its order, in place of "front".

    wmpo robot collect my_robot.py --policy runs/mine --to data/real --num-episodes 32

Needs lerobot (pip install 'lerobot[feetech]') and a calibrated arm (lerobot-calibrate). Limits are in the units of the
arm's actions, here degrees and per cent of the gripper: write down what the arm may reach, not what it can reach.
"""

from wmpo.robots.lerobot import LeRobotRobot
from wmpo.robots.protocol import Axis, Setup

LIMITS = {
    # joint: lowest, highest, most in one action
    "shoulder_pan": (-60, 60, 4),
    "shoulder_lift": (-90, 30, 4),
    "elbow_flex": (-30, 90, 4),
    "wrist_flex": (-80, 80, 6),
    "wrist_roll": (-90, 90, 6),
    "gripper": (0, 70, 15),
}


def robot() -> Setup:
    from lerobot.cameras.opencv import OpenCVCameraConfig
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    camera = OpenCVCameraConfig(index_or_path=0, fps=30, width=640, height=480)
    config = SO101FollowerConfig(port="/dev/ttyACM0", id="my_arm", use_degrees=True, cameras={"front": camera})
    axes = tuple(
        Axis(name=f"{joint}.pos", low=low, high=high, max_step=step) for joint, (low, high, step) in LIMITS.items()
    )
    return Setup(robot=LeRobotRobot(SO101Follower(config), "front", axes), rate=20, max_age=0.25)
