"""The command line: ``wmpo STAGE RECIPE [--name NAME] [--seed S] [--leaf value ...]``."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import traceback
from pathlib import Path

import tyro

from wmpo import cli_compare, cli_completion, cli_data, cli_label, cli_log, cli_plan, cli_robot, cli_serve
from wmpo.cli_common import Shared, peek
from wmpo.config import flatten, to_json
from wmpo.execution.backend import serve_if_enlisted
from wmpo.recipes import RECIPES, recipe
from wmpo.report.render import render
from wmpo.stages import pretrained
from wmpo.stages.claim import sole
from wmpo.stages.job import Job, begun_experiment, open_job
from wmpo.stages.order import run_missing, turn, whole
from wmpo.stages.recorded import described

ABOUT = {
    "demos": "record the scripted expert",
    "sft": "clone the demonstrations: the base policy",
    "collect": "play real episodes with the policy as it is, P over all rounds",
    "world-model": "learn to imagine: tokenizer and video model",
    "reward": "learn to recognise success, and calibrate it",
    "clone": "before imagination, clone what the policy's real episodes solved",
    "improve": "GRPO in imagination, watched by audits",
    "evaluate": "base against improved policy on the same real test starts",
    "report": "write report.html from the run's folder",
    "run": "all of the above, those from collect to improve in rounds, resuming where it stopped",
    "fidelity": "how far the dream can be trusted: more measurements of a complete run; no part of run",
    "disruptions": "both policies with light, colours, camera or start changed, and after a push; no part of run",
    "compare": "WMPO and other methods on the same tasks, seeds, budgets and test starts: one table",
    "lifelong": "P more real episodes in every round: success against all that was played, beside other methods",
    "plan": "memory, operations and hours that a run will take, for --gpus of some kind; runs nothing",
    "pretrain": "remake the tokenizer and world model that runs begin with; no part of run",
    "data": "datasets in and out; see wmpo data --help",
    "serve": "a run in the browser: live curves, replays, and its dream to play; see wmpo serve --help",
    "label": "say which episodes of a dataset were solved, in the browser; see wmpo label --help",
    "log": "the curves of a run for TensorBoard or Weights & Biases; see wmpo log --help",
    "robot": "collect episodes and deploy a policy on a robot; see wmpo robot --help",
    "completion": "a script for the shell that completes commands and flags: wmpo completion bash|zsh",
}
"""Commands, in the order in which they are told."""
DISTRIBUTED = ("run", "sft", "world-model", "reward", "clone", "improve", *cli_compare.KINDS)
"""Commands that use more than this process."""
APART = {"data": cli_data, "serve": cli_serve, "label": cli_label, "log": cli_log, "robot": cli_robot}
"""Commands that take no recipe."""
SIMULATORS = ("metaworld", "mujoco", "gymnasium")
"""What the extra sim brings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Shared):
    """Settings of a run."""

    name: str = ""
    "Folder of the run under --runs; by default the recipe's name."
    seed: int = 0
    "Everything random depends on it."


def usage() -> str:
    width = max(map(len, ABOUT))
    lines = [f"  {name:{width}}  {text}" for name, text in ABOUT.items()]
    return "\n".join(
        [
            "usage: wmpo STAGE RECIPE [--name NAME] [--seed S] [--leaf value ...]",
            "",
            "Improves a robot policy in imagination. Stages work on the folder runs/NAME, in this order:",
            *lines,
            "",
            f"recipes: {', '.join(RECIPES)}",
            "wmpo run RECIPE --help shows every setting and its value, e.g. --env.task door-open-v3",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    args = list(sys.argv[1:] if arguments is None else arguments)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if args else 2)
    if serve_if_enlisted(needed=args[0] in DISTRIBUTED):
        return
    try:
        _main(args)
    except KeyboardInterrupt:
        again = "nothing was written" if args[0] == "data" else "the same command goes on from here"
        print(f"\nstopped; {again}: wmpo {' '.join(args)}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, FloatingPointError, RuntimeError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and _root(error) not in SIMULATORS:
            raise
        if "--debug" in args:
            traceback.print_exc()
        print(f"\nerror: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _root(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{_root(error)} is not installed, and simulated tasks need it; install it with: pip install 'wmpo[sim]'"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "Nothing half-written is kept; free space or choose another folder (--runs or --to)."
        return f"{where}{error.strerror}. {remedy}"
    return str(error) or type(error).__name__


def _main(args: list[str]) -> None:
    command, rest = args[0], args[1:]
    if command == "--version":
        from importlib.metadata import version

        print(version("wmpo"))
        return
    if command in APART:
        APART[command].main(rest)
        return
    if command == "completion":
        print(cli_completion.script(rest[0], following()) if rest else cli_completion.HOWTO)
        return
    if command not in ABOUT:
        near = difflib.get_close_matches(command, ABOUT, n=2, cutoff=0.4) or list(ABOUT)
        raise ValueError(f"unknown stage {command!r}; did you mean {' or '.join(near)}? See wmpo --help")
    name, rest = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else ("quickstart", rest)
    if command == "plan":
        cli_plan.main(name, rest)
        return
    if command in cli_compare.KINDS:
        cli_compare.main(command, name, rest)
        return
    settings = _settings(command, name, rest)
    path = settings.runs / (settings.name or ("pretrained" if command == "pretrain" else name))
    if command == "report":
        _report(path)
        return
    settings = dataclasses.replace(settings, experiment=described(settings.experiment))
    settings.experiment.validate()
    if command != "pretrain":
        pretrained.check_weights(settings.experiment)  # at once, not after the episodes are played
    if command in DISTRIBUTED:
        settings.experiment.execution.prepare()
    free = f"{command}." if command in ("fidelity", "disruptions") else ""  # nothing else depends on these
    with sole(path), open_job(path, name, settings.experiment, settings.seed, free=free) as job:
        _stages(job, command)
    if command in ("run", "fidelity", "disruptions"):
        _report(path)


def following() -> dict[str, list[str]]:
    """What may follow each command, for the shell's completion."""
    settings = {leaf: value for name in RECIPES for leaf, value in flatten(to_json(recipe(name))).items()}
    leaves = cli_completion.leaf_flags({k: v for k, v in settings.items() if not k.endswith(".kind")})
    common = ["--runs", "--debug", "--no-debug", *leaves]
    words = {"": [*ABOUT], "completion": [*cli_completion.SCRIPTS]}
    for name, module in APART.items():
        kinds = module.SETTINGS if isinstance(module.SETTINGS, dict) else {"": module.SETTINGS}
        words |= {f"{name} {sub}".strip(): cli_completion.flags(kind) for sub, kind in kinds.items()}
        if "" not in kinds:
            words[name] = [*kinds]
    for name in [*ABOUT.keys() - APART.keys() - {"completion"}]:
        kinds = {**cli_compare.KINDS, "plan": cli_plan.Hardware}
        own = cli_completion.flags(kinds[name]) if name in kinds else ["--name", "--seed"]
        words[name] = [*RECIPES, *dict.fromkeys([*own, *common])]
    return words


def _stages(job: Job, command: str) -> None:
    """Runs what is not complete: of everything, or of one command's stages those of the first round that lacks them."""
    if command == "run":
        run_missing(job, whole(job))
        if job.experiment.collect.recorded:
            deploy = f"wmpo robot deploy SETUP.py --policy {job.root.path} --to FOLDER"
            print(f"real success was not measured, as nobody can play from recorded episodes; on the robot: {deploy}")
        return
    todo, why = turn(job, command)
    if not todo:
        print(why, file=sys.stderr)
    run_missing(job, todo)


def _settings(command: str, name: str, rest: list[str]) -> Settings:
    """Recipe, then what the run's folder says, then the command line."""
    folder = "pretrained" if command == "pretrain" else name
    where = peek(rest, "--runs") or "runs", peek(rest, "--name") or folder
    saved = begun_experiment(Path(where[0]) / where[1])
    if saved is None:
        default = Settings(experiment=recipe(name))
    elif saved[0] == name:  # also a recipe of one's own, which only the folder knows
        default = Settings(experiment=saved[1], seed=saved[2])
    else:
        raise ValueError(f"{Path(*where)} is a run of recipe {saved[0]!r}, not {name!r}; choose another --name")
    return tyro.cli(Settings, args=rest, default=default, prog=f"wmpo {command} {name}", description=usage())


def _report(path: Path) -> None:
    page = render(path)
    results = path / "results.json"
    if results.exists():
        print(_table(results))
    print(f"report: {page}")


def _table(results: Path) -> str:
    from wmpo.checkpoint import read_json

    found = read_json(results)
    lines = [f"{'real success':14}{'base':>18}{'improved':>20}{'difference, points':>26}"]
    for key in ("greedy", "sampled", "best"):
        cells = []
        for policy in ("base", "improved"):
            record = found[policy][key]
            cells.append(f"{100 * record['success']:.1f} % ({record['decoding']})")
        gain = found["difference"][key]
        low, high = gain["interval"]
        lines.append(f"{key:14}{cells[0]:>18}{cells[1]:>20}{gain['points']:>+12.1f} [{low:+.1f}, {high:+.1f}]")
    n, minutes = found["base"]["best"]["n"], sum(found["seconds"].values()) / 60
    lines.append(
        f"n = {n} test starts, paired 95 % intervals; real episodes: {found['real_episodes']}; {minutes:.1f} minutes"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
