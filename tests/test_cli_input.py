"""Wrong input on the command line is explained in one sentence, with exit code 2 and without a traceback."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path

import pytest
from commands import refused

from wmpo import cli
from wmpo.cli import main
from wmpo.recipes import tiny
from wmpo.stages.job import open_job


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


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(args: list[str]) -> None:
        importlib.import_module(args[0])

    monkeypatch.setattr(cli, "_main", needs)
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    assert "pip install 'wmpo[sim]'" in refused("metaworld.env_dict", cwd=tmp_path)
    with pytest.raises(ModuleNotFoundError, match="wmpo_nothing"):
        cli.main(["wmpo_nothing"])


def test_a_run_of_an_own_recipe_goes_on_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_job(tmp_path / "runs/mine", "mine", tiny(), seed=3, quiet=True).root.complete("demos", 1.0, {})
    with contextlib.chdir(tmp_path):
        main(["report", "mine"])
    assert "report.html" in capsys.readouterr().out
    assert "unknown recipe 'other'" in refused("report", "other", cwd=tmp_path)
    assert "run of recipe 'mine'" in refused("report", "tiny", "--name", "mine", cwd=tmp_path)
