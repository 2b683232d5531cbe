"""README and docs: every command is one that the command line reads, links lead somewhere, messages exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from wmpo import cli
from wmpo.config import flatten, to_json
from wmpo.envs.recorded import RecordedConfig
from wmpo.recipes import RECIPES
from wmpo.stages.pretrained import check_pretrained

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)]*)?\)")
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))


class Read(BaseException):
    """The command line has been read, and nothing is to be done."""


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        yield from ((page, body) for name, body in BLOCK.findall(page.read_text()) if name == language)


def commands(first: str) -> list[list[str]]:
    """Each once: lines of shell blocks, and code between words that is a whole command."""
    lines = [line for _, body in blocks("sh") for line in body.replace("\\\n", " ").splitlines()]
    lines += [code for page in PAGES for code in re.findall(rf"`({first} [^`\n]+)`", page.read_text())]
    found = {tuple(shlex.split(line, comments=True)) for line in lines if line.startswith(f"{first} ")}
    return sorted(list(words[1:]) for words in found if not {"COMMAND", "STAGE", "RECIPE", "RUN"} & set(words))


WMPO = commands("wmpo")
APART = [words for words in WMPO if words[0] in cli.APART]
STAGES = [words for words in WMPO if words[0] not in (*cli.APART, "completion", "--version", "--help")]
WHOLE = [words for words in STAGES if words[-1] in ("--help", "--show") or not words[-1].startswith("--")]


def test_commands_are_found() -> None:
    assert len(APART) > 15 and len(STAGES) > 20
    assert {words[0] for words in WMPO} >= {"run", "label", "log", "serve", "data", "robot", "compare"}


@pytest.fixture
def only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end with ``Read`` once their settings are there, and could be run."""
    parse = tyro.cli

    def read(*args: Any, **kwargs: Any) -> None:
        experiment = getattr(parse(*args, **kwargs), "experiment", None)
        if experiment is not None and not isinstance(experiment.env, RecordedConfig):  # its datasets are not here
            experiment.validate()
            check_pretrained(experiment)
        raise Read

    monkeypatch.setattr(tyro, "cli", read)


@pytest.mark.parametrize("words", APART, ids=" ".join)
@pytest.mark.usefixtures("only_read")
def test_commands_apart_are_read(words: list[str]) -> None:
    if words[1:] in ([], ["--help"]) or (words[0] in ("data", "robot") and len(words) < 3):
        words = [words[0], "--help"]  # a command is spoken of
        with pytest.raises(SystemExit, match="0"):
            cli.main(words)
        return
    with pytest.raises(Read):
        cli.main(words)


@pytest.mark.slow
@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
@pytest.mark.usefixtures("only_read")
def test_stage_commands_could_be_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "--env.mimicgen-path" in words:
        pytest.skip("asks for a checkout of MimicGen")
    with pytest.raises(SystemExit if "--help" in words else Read):
        cli.main(words)


def test_flags_of_stages_exist() -> None:
    """By name: to read them all as the command line does takes half a minute, see above."""
    known = cli.following()
    for words in STAGES:
        assert words[0] in known, words
        if len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in RECIPES, words
        for flag in (word.split("=")[0] for word in words[1:] if word.startswith("--") and word != "--help"):
            assert flag in known[words[0]], words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        file = (page.parent / target).resolve()
        assert file.exists() and file.is_relative_to(ROOT), target
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
            assert anchor[1:] in slugs, (target, anchor)


def test_python_blocks_import_what_exists() -> None:
    for page, body in blocks("python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("wmpo"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or f"{node.module}.{alias.name}" in SOURCE, (page, alias.name)


def test_python_blocks_name_fields_that_exist() -> None:
    from wmpo.policy.openvla_oft import OpenVLAOFTConfig
    from wmpo.policy.small_flow import SmallFlowPolicyConfig
    from wmpo.policy.smolvla import SmolVLAConfig
    from wmpo.reward.videomae import VideoMAERewardConfig
    from wmpo.reward.vlm_judge import VLMJudgeConfig
    from wmpo.world_model.opensora import OpenSoraWorldModelConfig

    policies = OpenVLAOFTConfig, SmallFlowPolicyConfig, SmolVLAConfig
    known = *policies, VideoMAERewardConfig, VLMJudgeConfig, OpenSoraWorldModelConfig
    kinds: dict[str, Any] = {kind.__name__: kind for kind in known}
    seen = set()
    for page, body in blocks("python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
                seen.add(node.func.id)
                assert {k.arg for k in node.keywords} <= set(kinds[node.func.id].__dataclass_fields__), page
    assert seen == set(kinds)


@pytest.mark.parametrize(
    ("page", "name", "pages"),
    [
        ("own_recipe.md", "quickstart-flow", ("own_recipe.md", "small_flow.md")),
        ("smolvla.md", "smolvla", ("smolvla.md",)),
    ],
)
def test_recipes_of_the_docs_can_be_made(
    page: str, name: str, pages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, name, RECIPES["tiny"])  # so that it is gone afterwards
    (body,) = [body for at, body in blocks("python") if at.name == page and "RECIPES[" in body]
    exec(compile(body, page, "exec"), {"__name__": "my_recipes"})
    made = RECIPES[name]()
    made.policy.validate()
    text = "".join((ROOT / "docs/howto" / each).read_text() for each in pages)
    flags = set(re.findall(r"(--(?:policy|sft|improve|world-model)\.[\w.-]+)[ `]", text))
    known = {f"--{leaf.replace('_', '-')}" for leaf in flatten(to_json(made))}
    assert len(flags) > 2 and flags <= known, flags - known


def test_messages_of_troubleshooting_are_in_the_source() -> None:
    text = re.sub(r'"\s*\n\s*f?"', "", SOURCE)  # literals that follow each other are one
    page = (ROOT / "docs/troubleshooting.md").read_text()
    said = [code for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for code in re.findall(r"`([^`]+)`", row)]
    assert len(said) > 35
    for message in said:
        for part in filter(None, (piece.strip() for piece in message.split("…"))):
            assert part in text, part


def test_the_site_shows_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in config, page
    for name in re.findall(r"^::: (\S+)", "\n".join(page.read_text() for page in PAGES), re.MULTILINE):
        parent, _, last = name.rpartition(".")
        known = re.compile(rf"^(class|def) {last}\b", re.MULTILINE)
        assert module_file(name) or known.search(module_file(parent)), name


def module_file(name: str) -> str:
    """Its text; empty where there is no such module."""
    place = ROOT / "src" / name.replace(".", "/")
    found = [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()]
    return found[0].read_text() or "empty" if found else ""
