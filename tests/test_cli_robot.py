"""wmpo robot collect and deploy as a user types them, with a toy arm."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import toy_arm
from finished_run import SENTENCE, finished_run, recorded

from wmpo.cli import main
from wmpo.data.lerobot import append_episodes
from wmpo.envs.ledger import Ledger


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("robots") / "run"
    finished_run(path)
    return path


SETUP = """
import os
import signal

import toy_arm
from toy_arm import Script, ToyArm, after, toy_setup
from wmpo.robots.protocol import Signal

def robot():
    return toy_setup(ToyArm(), Script(*after(2, Signal.SUCCESS), *after(3, Signal.DISCARD)))

def alone():
    return toy_setup(ToyArm())

def away():
    arm = ToyArm()
    arm.unreachable = True
    return toy_setup(arm, Script())

def driver():
    import no_such_servo

def asked_to_end():  # by a signal, when the fifth picture is wanted
    arm = toy_arm.last = ToyArm()
    look = arm.get_observation

    def signalled():
        if arm.reads == 4:
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        return look()

    arm.get_observation = signalled
    return toy_setup(arm, Script(*after(9, Signal.SUCCESS)))

wrong = 3
def other():
    return wrong
"""


def test_collect_and_deploy_as_a_user_types_them(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("arm.py").write_text(SETUP)
    common = ["--policy", str(run / "models/base.safetensors"), "--max-chunks", "2"]
    main(["robot", "collect", "arm.py", *common, "--to", "data", "--num-episodes", "3"])
    assert "data: 3 episodes, 1 solved; 1 more were played, but discarded" in capsys.readouterr().out
    main(["data", "inspect", "data"])
    said = capsys.readouterr().out
    assert "1 of 3 (33 %)" in said and "rate        250 fps" in said and repr(SENTENCE) in said
    main(["robot", "collect", "arm.py", *common, "--to", "data", "--num-episodes", "3"])
    assert "holds 3 episodes already" in capsys.readouterr().out
    main(["robot", "deploy", "arm.py", "--policy", str(run), "--max-chunks", "1", "--to", "deployed",
          "--num-episodes", "4"])  # fmt: skip
    assert "greedy: 1 of 4 solved, 25 % [5, 70] (Wilson, 95 %); 1 more were discarded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["collekt"], "did you mean collect?"),
        (["collect", "nothing.py"], "nothing.py is no Python file"),
        (["collect", "arm.py:nobody"], "arm.py has no function nobody()"),
        (["collect", "arm.py:wrong"], "arm.py has no function wrong()"),
        (["collect", "arm.py:other"], "returned int, not a wmpo.robots.protocol.Setup"),
        (["collect", "arm.py:driver"], "arm.py needs the module no_such_servo, which is not installed"),
        (["collect", "arm.py:away"], "cannot connect to toy arm (no device on /dev/ttyACM0)"),
        (["collect", "arm.py:alone"], "the dead-man key needs a terminal"),
        (["collect", "arm.py", "--num-episodes", "0"], "--num-episodes must be at least 1, not 0"),
        (["deploy", "arm.py", "--temperature", "nan"], "--temperature must be at least 0, not nan"),
        (["deploy", "arm.py", "--to", "seen"], "must not be mixed"),
        (["deploy", "arm.py", "--to", "other"], "other/ledger.jsonl has a line that is no episode of a robot"),
        (["collect", "arm.py", "--to", "arm.py"], "arm.py: File exists. Nothing half-written is kept"),
        (["deploy", "arm.py", "--to", "arm.py/deep"], "arm.py/deep: Not a directory. Nothing half-written is kept"),
        (
            ["collect", "arm.py", "--to", "small"],
            "pictures of 16 pixels, 4 action dimensions and the cameras main, not 250, 32, 4 and main",
        ),
    ],
)
def test_wrong_input_is_explained_in_one_sentence(
    args: list[str], message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    Path("arm.py").write_text(SETUP)
    row = {"purpose": "collection", "policy": "base", "temperature": 0.5}
    Ledger(Path("seen/ledger.jsonl")).record([{**row, "outcome": "failure", "success": False}])
    Ledger(Path("other/ledger.jsonl")).record([row])
    append_episodes(Path("small"), [recorded(1, 4, size=16)], fps=20)
    given = [] if args[0] not in ("collect", "deploy") else ["--policy", str(run / "models/base.safetensors")]
    where = [] if "--to" in args or not given else ["--to", "data"]
    with pytest.raises(SystemExit) as ended:
        main(["robot", *args, *given, *where])
    said = capsys.readouterr()
    assert ended.value.code == 2 and message in said.err and "Traceback" not in said.err + said.out
    assert not Path("data/meta").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_request_to_end_stops_the_arm(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNAL", name)
    Path("arm.py").write_text(SETUP)
    before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGHUP)]
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background is deaf to it
    with pytest.raises(SystemExit) as ended:
        main(["robot", "collect", "arm.py:asked_to_end", "--policy", str(run), "--to", "data"])
    signal.signal(signal.SIGINT, ours)
    arm = toy_arm.last
    assert ended.value.code == 130 and "the same command goes on from here" in capsys.readouterr().err
    assert not arm.connected and arm.sent and arm.sent[-1]["delta_z"] == 0, "told to stand still"
    assert [row["outcome"] for row in Ledger(Path("data/ledger.jsonl")).episodes()] == ["failed"]
    assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGHUP)] == before
