"""A simulated robot that lives in its own time: try collection and deployment without a robot.

    wmpo robot collect examples/simulated_robot.py --policy runs/quickstart --to runs/played --num-episodes 8

Its pictures are 80 ms late and one in twenty is lost. A program stands in for the person beside it.
"""

from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.robots.protocol import Setup
from wmpo.robots.simulated import Faults, simulated


def robot() -> Setup:
    return simulated(MetaWorldConfig(task="drawer-open-v3"), faults=Faults(latency=0.08, dropped=0.05))
