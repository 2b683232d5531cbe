"""The command line in a process of its own, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WMPO = [sys.executable, "-m", "wmpo.cli"]


def wmpo(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WMPO, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=150)


def refused(*args: str | Path, cwd: Path) -> str:
    """What a refused command says; it must end with 2 and without a traceback."""
    done = wmpo(*args, cwd=cwd)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr + done.stdout
