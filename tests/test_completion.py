"""``wmpo completion``: what bash offers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import refused

from wmpo import cli


def offered(tmp_path: Path, *words: str) -> set[str]:
    """What bash completes the last word to."""
    (tmp_path / "episodes").mkdir(exist_ok=True)
    typed = " ".join(f"'{word}'" for word in ("wmpo", *words))
    asked = f'COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _wmpo; printf "%s\\n" "${{COMPREPLY[@]}}"'
    program = f"{cli.cli_completion.script('bash', cli.following())}\n{asked}"
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_commands_recipes_flags_and_files(tmp_path: Path) -> None:
    assert offered(tmp_path, "la") == {"label"} and offered(tmp_path, "") >= {"run", "data", "completion"}
    assert offered(tmp_path, "run", "qu") == {"quickstart"}
    assert offered(tmp_path, "run", "quickstart", "--env.ta") == {"--env.task"}
    assert offered(tmp_path, "run", "quickstart", "--clone.no-en") == {"--clone.no-enabled"}
    assert offered(tmp_path, "compare", "--bud") == {"--budgets"}
    assert offered(tmp_path, "data", "imp") == {"import"}
    assert offered(tmp_path, "data", "import", "--lab") == {"--labels"}
    assert offered(tmp_path, "label", "ep") == {"episodes"}


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_offers_the_same(tmp_path: Path) -> None:
    """Its own builtins stand aside: they work only while somebody types."""
    stand_in = 'compdef() { :; }; compadd() { shift; print -rl -- "$@"; }; _files() { print FILES; }'
    script = cli.cli_completion.script("zsh", cli.following())
    typed = "words=(wmpo data import x); CURRENT=4; PREFIX=x; _wmpo"
    done = subprocess.run(["zsh", "-f", "-c", f"{stand_in}\n{script}\n{typed}"], capture_output=True, text=True)
    assert {"--labels", "--fps", "FILES"} <= set(done.stdout.split()) and not done.stderr


def test_other_shells_are_refused(tmp_path: Path) -> None:
    assert "bash and zsh" in refused("completion", "fish", cwd=tmp_path)


@pytest.mark.slow
def test_its_flags_are_those_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "quickstart", "--help"])
    read = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)))
    offered = set(cli.following()["run"]) - {"quickstart", "tiny"}
    assert offered == read - {"--help", "--leaf"}, offered ^ read
