"""Set before anything else: off-screen rendering, one thread, and shape checks at every border of the package."""

from __future__ import annotations

import importlib
import os
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["OMP_NUM_THREADS"] = "1"  # of programs that tests start

import jaxtyping
import pytest
import torch

UNCHECKED = ("report",)  # it reads files that anyone may have written, and refuses wrong shapes in its own words

for large in ("matplotlib.pyplot", "numpy.ma", "torch.distributed.fsdp"):
    importlib.import_module(large)  # imported by a checked module, it would be compiled anew
assert "wmpo" not in sys.modules, "the shape checks must be installed before wmpo is imported"
typing.Protocol._is_runtime_protocol = True  # type: ignore[attr-defined]  # beartype checks protocols by isinstance
package = Path(__file__).parents[1] / "src" / "wmpo"
checked = [
    f"wmpo.{path.stem}" for path in package.iterdir() if path.stem not in ("__init__", "__pycache__", *UNCHECKED)
]
jaxtyping.install_import_hook(checked, "shape_checks.checked")
torch.set_num_threads(1)  # two processes of one thread each do more than one of two


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bfloat16 on processors that are fast at it: for comparisons up to rounding."""
    monkeypatch.setattr("wmpo.nn.has_fast_bf16", lambda device: False)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[typing.Any]:
    """A team of one rank, which goes through the same sharding and collectives as several. Ended with each test: a
    process is in one team at a time."""
    from wmpo.execution.parallel import Team  # after the shape checks are installed, and only where it is needed

    team = Team(0, 1, local_rank=0, local_size=1, meeting=f"file://{tmp_path / 'ranks'}")
    yield team
    team.dismiss()


@pytest.fixture(scope="module")
def pair() -> Iterator[typing.Any]:
    """Two Gloo ranks, this process and another one."""
    from wmpo.execution.parallel import spawned

    with spawned(2) as team:
        yield team
