"""What is built is complete: wheel and source archive, and a policy from nothing but the wheel."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from finished_run import finished_run

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("metaworld", "mujoco", "gymnasium", "h5py", "transformers", "diffusers", "peft", "tokenizers", "tensorboard",
          "wandb", "pytest")  # fmt: skip
ACT = f"""
import sys
sys.modules |= dict.fromkeys({EXTRAS}, None)  # as if they were not installed
import numpy as np
import wmpo
assert "site-packages" in wmpo.__file__, wmpo.__file__
policy = wmpo.load_policy(sys.argv[1])
actions = policy.act(np.zeros((48, 64, 3), dtype=np.uint8))
assert actions.shape == (policy.chunk_size, policy.action_dim) and actions.dtype == np.float32
print(wmpo.__version__)
"""


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1500, cwd=ROOT.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, and the wheel that is made from it."""
    pytest.importorskip("build")
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", target, ROOT)
    return target


@pytest.mark.slow
@pytest.mark.external
@pytest.mark.timeout(1500)
def test_wheel_and_source_archive_hold_all_files(built: Path) -> None:
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (file.read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
    source = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/wmpo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    assert source <= names and "wmpo/py.typed" in names, source - names
    assert all(f"Provides-Extra: {extra}" in metadata for extra in PROJECT["optional-dependencies"])
    assert "License-Expression: Apache-2.0" in metadata and any(name.endswith("LICENSE") for name in names)
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/wmpo/pretrained/meta-world.safetensors"} <= held


@pytest.mark.slow
@pytest.mark.external
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("alone", [False, True], ids=["dependencies of this environment", "nothing else installed"])
def test_a_policy_acts_from_the_wheel_alone(built: Path, tmp_path: Path, alone: bool) -> None:
    finished_run(tmp_path / "run")
    venv.create(tmp_path / "venv", with_pip=True)
    python, (wheel,) = tmp_path / "venv/bin/python", built.glob("*.whl")
    run(python, "-m", "pip", "install", "-q", *([] if alone else ["--no-deps"]), wheel)
    if not alone:
        (place,) = (tmp_path / "venv/lib").glob("python*/site-packages")
        (place / "rest.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    assert run(python, "-c", ACT, tmp_path / "run").strip() == PROJECT["version"]
    assert run(tmp_path / "venv/bin/wmpo", "--version").strip() == PROJECT["version"]
