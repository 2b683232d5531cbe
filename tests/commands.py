"""The command line as a user runs it: in a process of its own, or here, where only the words of a refusal matter."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from wmpo.cli import main

WMPO = [sys.executable, "-m", "wmpo"]


def wmpo(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WMPO, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=150)


def refused(*args: str | Path, cwd: Path) -> str:
    """What a refused command says; it must end with 2, and an exception that passes ``main`` fails the test.

    In this process: to start one takes seconds, most of which are imports.
    """
    said = io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):  # noqa: SIM117
        with pytest.raises(SystemExit) as ended:
            main([*map(str, args)])
    assert ended.value.code == 2, said.getvalue()
    assert "Traceback" not in said.getvalue()
    return said.getvalue()
