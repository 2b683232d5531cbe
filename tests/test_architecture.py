"""The direction of imports, and sizes that keep files readable; by reading the syntax tree, not by importing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {str(path.relative_to(SOURCE / "wmpo")): ast.parse(path.read_text()) for path in FILES}
SIBLINGS = ("policy", "world_model", "reward", "rl")
CONCRETE = ("wmpo.policy.small", "wmpo.world_model.small", "wmpo.reward.small", "wmpo.rl")
HEAVY = {
    "metaworld",
    "robosuite",
    "mujoco",
    "gymnasium",
    "h5py",
    "transformers",
    "diffusers",
    "peft",
    "tokenizers",
    "skimage",
    "ray",
    "lerobot",
    "tensorboard",
    "wandb",
}


CLASSES_OF = {"envs/gym.py": "gymnasium", "envs/robosuite_tasks.py": "robosuite"}


def imports(tree: ast.AST, *, inside_functions: bool = True) -> Iterator[str]:
    """Dotted names: ``from a import b`` counts as ``a.b``, which covers both modules and what they hold."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, inside_functions=inside_functions)


def uses(name: str, *packages: str) -> list[str]:
    return [i for i in imports(TREES[name]) if any(i == p or i.startswith(p + ".") for p in packages)]


def in_package(*packages: str) -> list[str]:
    return [name for name in TREES if name.split("/")[0].removesuffix(".py") in packages]


def test_the_tree_is_found() -> None:
    assert len(TREES) > 40 and in_package("rl") and uses("rollout/run.py", "wmpo.protocols")


@pytest.mark.parametrize("package", SIBLINGS)
def test_siblings_do_not_know_each_other_nor_what_drives_them(package: str) -> None:
    forbidden = {*SIBLINGS, "envs", "rollout", "execution", "train", "evaluation", "stages", "cli", "config"} - {
        package
    }
    for name in in_package(package):
        assert not uses(name, *(f"wmpo.{p}" for p in forbidden)), name


def test_rollouts_and_imagination_know_no_concrete_model() -> None:
    for name in [*in_package("rollout"), "envs/imagined.py"]:
        assert not uses(name, *CONCRETE), name


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (
            ("types", "rng", "likelihood", "nn", "checkpoint", "hf", "protocols", "denoising", "division"),
            ("policy", "envs", "rollout", "train"),
        ),
        (("views", "noise"), ("policy", "envs", "rollout", "train")),
        (("data",), ("policy", "world_model", "reward", "rl", "envs", "rollout", "train", "evaluation")),
        (("envs",), ("rollout", "execution", "train", "evaluation", "policy", "world_model", "rl")),
        (("rollout", "execution"), ("train", "evaluation", "report", "config", "recipes")),
        (("evaluation",), ("train", "execution", "config", "recipes", "robots")),
        (("envs", "rollout", "execution", "train", "data"), ("robots",)),
        (
            ("robots",),
            ("policy", "world_model", "reward", "rl", "train", "execution", "evaluation", "config", "recipes"),
        ),
        (("train",), ("config", "recipes")),
    ],
)
def test_lower_layers_do_not_know_upper_ones(lower: tuple[str, ...], upper: tuple[str, ...]) -> None:
    for name in in_package(*lower):
        assert not uses(name, *(f"wmpo.{p}" for p in (*upper, "stages", "cli"))), name


COMMANDS = (
    "cli.py",
    "cli_compare.py",
    "cli_data.py",
    "cli_label.py",
    "cli_log.py",
    "cli_plan.py",
    "cli_robot.py",
    "cli_serve.py",
)
ENTRANCES = ("__init__.py", *COMMANDS)


def test_only_the_command_line_knows_the_stages_and_its_parser() -> None:
    assert [name for name in TREES if uses(name, "tyro")] == sorted([*COMMANDS, "cli_common.py"])
    known = {*ENTRANCES, "stages", "serve"} - {"cli_label.py", "cli_log.py", "cli_serve.py"}
    assert {name.split("/")[0] for name in TREES if uses(name, "wmpo.stages")} == known
    assert [name for name in TREES if uses(name, *(f"wmpo.{command[:-3]}" for command in COMMANDS))] == [
        "__main__.py",
        "cli.py",
    ]


def test_pages_are_served_from_one_place_that_only_the_command_line_knows() -> None:
    outside = [name for name in TREES if not name.startswith("serve/")]
    assert [name for name in outside if uses(name, "wmpo.serve")] == ["cli_label.py", "cli_serve.py"]
    assert [name for name in TREES if uses(name, "http.server", "socketserver")] == ["serve/server.py"]
    for name in in_package("serve"):
        assert not uses(name, "wmpo.train", "wmpo.execution", "wmpo.cli", "wmpo.recipes"), name
    for path in (SOURCE / "wmpo" / "serve").iterdir():
        assert path.is_dir() or len(path.read_text().splitlines()) <= 200, path


def test_simulator_processes_need_no_pytorch() -> None:
    """Nor does the file that was started, which they import too. It would take each of them seconds and 200 MB."""
    modules = ("__main__", "envs.processes", "envs.metaworld", "envs.robosuite", "robots.simulated")
    code = f"import sys, {', '.join(f'wmpo.{m}' for m in modules)}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_distribution_stays_in_execution() -> None:
    divided = {"execution/parallel.py", "execution/sharded.py"}
    assert {name for name in TREES if uses(name, "torch.distributed")} == divided
    actors = {"execution/ray_backend.py", "execution/ray_cluster.py"}
    assert {name for name in TREES if uses(name, "ray")} == actors
    ranks = ("wmpo.execution.parallel", "wmpo.execution.sharded", "wmpo.execution.supervised")
    at_once = {
        name for name, tree in TREES.items() for i in imports(tree, inside_functions=False) if i.startswith(ranks)
    }
    allowed = {*divided, "execution/supervised.py"}
    assert at_once == allowed, "one process does not load what several need"


def test_heavy_libraries_are_imported_only_inside_functions() -> None:
    for name, tree in TREES.items():
        allowed = CLASSES_OF.get(name)  # imported by nobody, or inside functions only
        assert (HEAVY - {allowed}).isdisjoint(i.split(".")[0] for i in imports(tree, inside_functions=False)), name


def test_the_report_reads_files_only() -> None:
    for name in in_package("report"):
        own = [i for i in uses(name, "wmpo") if not i.startswith("wmpo.report.") and i != "wmpo.report"]
        allowed = ("wmpo.checkpoint.",) if name == "report/run.py" else ()
        assert all(i.startswith(allowed) for i in own) if allowed else not own, (name, own)


@pytest.mark.parametrize("name", TREES)
def test_files_and_functions_are_short(name: str) -> None:
    assert len((SOURCE / "wmpo" / name).read_text().splitlines()) <= 400
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 60, node.name
