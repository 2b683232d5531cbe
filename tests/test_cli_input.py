"""Wrong input on the command line is explained in one sentence, with exit code 2 and without a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WMPO = [sys.executable, "-m", "wmpo.cli"]


def wmpo(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WMPO, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=150)


def refused(*args: str | Path, cwd: Path) -> str:
    """What a refused command says; it must end with 2 and without a traceback."""
    done = wmpo(*args, cwd=cwd)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr + done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["imprve", "tiny"], "improve"),
        (["run", "quikstart"], "quickstart"),
        (["run", "tiny", "--env.task", "drawer-opn-v3"], "drawer-open-v3"),
        (["run", "tiny", "--env.image-size", "33"], "33"),
        (["run", "tiny", "--no-such-flag", "1"], "no-such-flag"),
        (["run", "tiny", "--collect.num-episodes", "none"], "none"),
        (["sft", "tiny", "--name", "empty"], "wmpo demos"),
        (["report", "tiny", "--name", "nowhere"], "nowhere"),
        (["run", "tiny", "--world-model.pretrained", "nothing.safetensors"], "nothing.safetensors"),
    ],
)
def test_wrong_input_is_explained(args: list[str], says: str, tmp_path: Path) -> None:
    assert says in refused(*args, cwd=tmp_path)


def test_runs_that_cannot_be_written_are_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused("demos", "tiny", "--runs", tmp_path / "file", cwd=tmp_path)
