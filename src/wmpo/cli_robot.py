"""Robots on the command line: ``wmpo robot collect | deploy``."""

from __future__ import annotations

import contextlib
import hashlib
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from wmpo.cli_common import Commands, dispatch, stopped_by_signals
from wmpo.config import CollectConfig
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.policy import decoding
from wmpo.evaluation.statistics import wilson
from wmpo.robots.env import RobotEnv, check_policy
from wmpo.robots.play import Session, play_episodes, stored
from wmpo.robots.protocol import Operator, Setup
from wmpo.robots.terminal import TerminalOperator
from wmpo.stages import models
from wmpo.stages.deploy import only, policy_file

USAGE = """usage: wmpo robot COMMAND SETUP.py --policy RUN --to FOLDER ...

  collect   plays episodes with a policy, sampled, and stores them as a LeRobot v3.0 dataset
  deploy    the same with the best guess of the policy, and says how often it succeeds

SETUP.py is a file of yours with a function robot() that returns a wmpo.robots.protocol.Setup: the robot, its camera,
its limits and its rate (examples/so101_robot.py, examples/simulated_robot.py). A person holds the dead-man key, lays
out the scenes and judges. The same command goes on where it stopped. wmpo robot COMMAND --help shows every setting."""


@dataclass(frozen=True, kw_only=True)
class Playing:
    """What both commands need."""

    setup: tyro.conf.Positional[str]
    "FILE.py or FILE.py:FUNCTION: a function without arguments that returns a Setup. It is run, so it must be yours."
    policy: Path
    "Folder of a run (its improved policy), or a file of its models."
    to: Path
    "The dataset; it is made, or gets more episodes."
    max_chunks: int = 12
    "Time limit of an episode in chunks of the policy."
    instruction: str | None = None
    "A sentence; by default the policy's own."
    seed: int = 0
    "Of the noise in sampled actions."
    num_episodes: int = 32
    "Episodes in the dataset at the end. Discarded ones do not count."
    temperature: float = 0.0
    "Sampling temperature of the policy; 0 is greedy."


@dataclass(frozen=True, kw_only=True)
class Collect(Playing):
    """Plays until the dataset holds so many episodes."""

    temperature: float = CollectConfig.temperature
    "Sampling temperature of the policy; 0 is greedy."


@dataclass(frozen=True, kw_only=True)
class Deploy(Playing):
    """Plays until the dataset holds so many episodes of this policy, and reports its success."""


def main(args: list[str]) -> None:
    """Raises ValueError for wrong input and RobotError for a robot that fails, like every command."""
    dispatch("robot", args, USAGE, _COMMANDS)


def _collect(settings: Collect) -> None:
    wins, count, others = _outcomes(_play(settings, "collection"))
    print(f"{settings.to}: {count} episodes, {wins} solved; {others} more were played, but discarded or broken off")


def _deploy(settings: Deploy) -> None:
    wins, count, others = _outcomes(_play(settings, "deployment"))
    if not count:
        print("no episode counts yet")
        return
    low, high = wilson(wins, count)
    print(
        f"{settings.policy}, {decoding(settings.temperature)}: {wins} of {count} solved, {100 * wins / count:.0f} % "
        f"[{100 * low:.0f}, {100 * high:.0f}] (Wilson, 95 %); {others} more were discarded or broken off"
    )


def _outcomes(session: Session) -> tuple[int, int, int]:
    """Episodes that were solved, that count, and that do not."""
    rows = session.ledger.unique()
    counted = [row for row in rows if row["outcome"] in ("success", "failure")]
    return sum(bool(row["success"]) for row in counted), len(counted), len(rows) - len(counted)


def _play(settings: Playing, purpose: str) -> Session:
    """Everything that can be wrong is found before the robot is connected."""
    wanted, temperature = settings.num_episodes, settings.temperature
    for name, value, least in (("--num-episodes", wanted, 1), ("--max-chunks", settings.max_chunks, 1),
                               ("--temperature", temperature, 0)):  # fmt: skip
        if not least <= value < 100_000:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    file = policy_file(settings.policy)
    policy, sentences = models.open_policy(file)
    instruction = settings.instruction or only(sentences, "--instruction")
    setup = open_setup(settings.setup)
    check_policy(setup, policy.codec.action_dim, policy.views)
    who = f"{file.stem} {hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
    session = Session(
        purpose=Purpose(purpose, who, temperature, settings.seed),
        instruction=instruction,
        dataset=settings.to,
    )
    _check_alone(session)
    _check_writable(session)
    have = stored(
        settings.to, fps=setup.rate, image_size=policy.image_size, action_dim=policy.codec.action_dim,
        views=setup.robot.views,
    )  # fmt: skip
    if have >= wanted:
        print(f"{settings.to} holds {have} episodes already; raise --num-episodes for more")
        return session
    with stopped_by_signals(), _operator(setup) as operator, contextlib.closing(setup.robot) as robot:
        robot.connect()
        env = RobotEnv(
            setup, operator,
            chunk_size=policy.codec.chunk_size, max_chunks=settings.max_chunks, image_size=policy.image_size,
        )  # fmt: skip
        play_episodes(env, operator, policy, session, wanted, fps=setup.rate, have=have)
    return session


def _check_alone(session: Session) -> None:
    """A success rate is that of one policy, so a folder of deployments has one."""
    wanted = session.purpose
    for row in session.ledger.episodes():
        if not isinstance(row, dict) or not {"purpose", "policy", "temperature", "outcome", "success"} <= row.keys():
            raise ValueError(f"{session.ledger.path} has a line that is no episode of a robot; choose another --to")
        found = Purpose(str(row["purpose"]), str(row["policy"]), float(str(row["temperature"])), wanted.seed)
        both_collect = wanted.purpose == found.purpose == "collection"
        if found != wanted and not both_collect:
            raise ValueError(
                f"{session.dataset} has episodes of {found.policy} at temperature {found.temperature:g} for "
                f"{found.purpose}; {wanted.policy} at {wanted.temperature:g} for {wanted.purpose} must not be "
                "mixed with them; choose another --to"
            )


def _check_writable(session: Session) -> None:
    """An episode that was played must be counted. Raises OSError where the ledger cannot be written."""
    session.dataset.mkdir(parents=True, exist_ok=True)
    with open(session.ledger.path, "a"):
        pass


@contextlib.contextmanager
def _operator(setup: Setup) -> Iterator[Operator]:
    if setup.operator is not None:
        yield setup.operator
        return
    with TerminalOperator() as operator:
        yield operator


def open_setup(text: str) -> Setup:
    """From ``FILE.py`` or ``FILE.py:FUNCTION``. Raises ValueError where there is no such function, or it returns
    something else, or a module is missing; what else the function raises passes."""
    name, _, function = text.partition(":")
    function = function or "robot"
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(
            f"{name} is no Python file; give a file with a function robot(), such as examples/so101_robot.py"
        )
    try:
        found = runpy.run_path(str(path), run_name="wmpo_robot_setup").get(function)
        if not callable(found):
            raise ValueError(f"{name} has no function {function}(); define it, or name another one: {name}:FUNCTION")
        setup = found()
    except ModuleNotFoundError as error:
        missing = f"{name} needs the module {error.name}, which is not installed"
        raise ValueError(f"{missing}; drivers come with pip install 'wmpo[lerobot]' 'lerobot[feetech]'") from error
    if not isinstance(setup, Setup):
        raise ValueError(f"{function}() of {name} returned {type(setup).__name__}, not a wmpo.robots.protocol.Setup")
    return setup


_COMMANDS: Commands = {"collect": (Collect, _collect), "deploy": (Deploy, _deploy)}
SETTINGS = {name: kind for name, (kind, _) in _COMMANDS.items()}
