"""``kill -9`` at any stage: the same command goes on and ends with the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from commands import WMPO, wmpo


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Everything that does not depend on the clock."""
    kept = {k: v for k, v in results.items() if k not in ("seconds", "throughput", "commit")}
    kept["real_episodes"] = {k: v for k, v in kept["real_episodes"].items() if k != "played_again"}
    return kept


@pytest.mark.timeout(240)
def test_killed_at_any_stage_it_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    once, folder = tmp_path / "runs/once", tmp_path / "runs/tiny"
    whole = wmpo("run", "tiny", "--name", "once", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    signs = (
        "data/collected/meta/info.json", "unfinished/world-model.safetensors", "round-2/unfinished/improve.safetensors",
    )  # fmt: skip
    for sign in signs:
        process = subprocess.Popen(
            [*WMPO, "run", "tiny"],
            cwd=tmp_path,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (folder / sign).exists():
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before {sign} appeared"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = wmpo("run", "tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, again = (json.loads((path / "results.json").read_text()) for path in (once, folder))
    assert comparable(first) == comparable(again)
