"""``wmpo compare``: every method on the same tasks, seeds, budgets and test starts; what is there is not run again.

``runs/NAME/TASK/seedS/base`` holds what no budget changes (demonstrations, base policy, its tests),
``runs/NAME/TASK/seedS/P128`` a whole run of WMPO at that budget, with the other methods beside it, and
``runs/NAME/TASK/seedS/P128-rft`` one with filtered cloning before each round's imagination.

``wmpo lifelong`` is the same with budgets P, 2 P, ...: WMPO gets them one after the other, in the rounds of one run
(``lifelong`` or ``lifelong-rft``), and is tested after each; the other methods get each sum at once.
"""

from __future__ import annotations

import difflib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import mean

from wmpo.checkpoint import read_json, write_json
from wmpo.config import Experiment, from_json, to_json
from wmpo.envs.ledger import Ledger
from wmpo.envs.recorded import RecordedConfig
from wmpo.evaluation.compare import BASE
from wmpo.protocols import PolicyNet
from wmpo.report.run import RunFolder
from wmpo.stages import baselines, record
from wmpo.stages.claim import claimed
from wmpo.stages.job import Job, check_folder, differences, open_job
from wmpo.stages.models import load_policy
from wmpo.stages.order import rounds, run_missing
from wmpo.stages.trial import WMPO, trial


@dataclass(frozen=True, slots=True)
class Method:
    """A way to spend P real episodes."""

    train: Callable[[Job], None] | None = None
    "None: the rounds of the run itself."
    needs: tuple[tuple[str, Callable[[Job], None]], ...] = ()
    "Stages of the run that come before."
    reference: bool = False
    "Not a rival: it costs something else than the policy's episodes."


_EPISODES = (("collect", record.collect), ("base-more", baselines.more))
METHODS: dict[str, Method] = {
    **dict.fromkeys(WMPO, Method()),
    "grpo-real": Method(baselines.grpo_real),
    "dpo": Method(baselines.dpo, _EPISODES),
    "rft": Method(baselines.rft, _EPISODES),
    "more-demos": Method(baselines.more_demos, reference=True),
}


def once(job: Job, name: str, stage: Callable[[Job], None]) -> None:
    """Runs a stage that is not complete."""
    if job.place(name).summary(name) is None:
        stage(job)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared."""

    recipe: str
    experiment: Experiment
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    num_seeds: int
    lifelong: bool = False
    "The budgets are sums over the rounds of a run of WMPO."

    def at(self, task: str, budget: int | None = None, method: str = BASE) -> Experiment:
        """The experiment of one run; None: with the recipe's budget, on which nothing of the base policy depends."""
        clone = replace(self.experiment.clone, enabled=method == "wmpo-rft")
        experiment = replace(self.experiment, env=self.experiment.env.with_task(task), clone=clone)
        if budget is None:
            return experiment
        if self.lifelong and method in WMPO:
            return replace(
                experiment,
                collect=replace(experiment.collect, every_round=True, num_episodes=self.budgets[0]),
                improve=replace(experiment.improve, early_iterations=0),  # every round's policy is handed in
                num_rounds=len(self.budgets),
            )
        return replace(experiment, collect=replace(experiment.collect, num_episodes=budget))

    def validate(self) -> None:
        """Raises ValueError, in one sentence, for what cannot be compared."""
        if isinstance(self.experiment.env, RecordedConfig):
            raise ValueError(f"recipe {self.recipe} has no simulator, so there is nothing to compare policies in")
        for name in self.methods:
            if name not in METHODS:
                near = difflib.get_close_matches(name, METHODS, n=2, cutoff=0.4) or list(METHODS)
                raise ValueError(f"--methods: unknown method {name!r}; did you mean {' or '.join(near)}?")
        for flag, values in (("tasks", self.tasks), ("methods", self.methods), ("budgets", self.budgets)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{flag} must name each at least and at most once, not {' '.join(map(str, values))}")
        if not 1 <= self.num_seeds <= 100:
            raise ValueError(f"--seeds is how many seeds to run, 1 to 100, not {self.num_seeds}")
        size = self.experiment.improve.groups.group_size
        for budget in self.budgets:
            if budget < size:
                raise ValueError(
                    f"--budgets {budget} is less than one group of {size} siblings; raise it, or lower "
                    "--improve.groups.group-size"
                )
        for task in self.tasks:
            for paid in (None, *self.budgets):
                self.at(task, paid).validate()

    def save(self, path: Path) -> None:
        """Raises ValueError when the folder holds another comparison: only tasks, methods, budgets and the number of
        seeds may change."""
        check_comparison(path, self)
        chosen = {"tasks": self.tasks, "methods": self.methods, "budgets": self.budgets, "num_seeds": self.num_seeds}
        about = {"recipe": self.recipe, "lifelong": self.lifelong, "config": to_json(self.experiment)}
        write_json(path / "compare.json", about | chosen)


def saved_plan(path: Path) -> Plan | None:
    """The last one asked for in a folder; None for a new one. A ValueError names the file."""
    file = path / "compare.json"
    if not file.exists():
        if (path / "config.json").exists():
            raise ValueError(f"{path} is the folder of a single run; give the comparison another --name")
        return None
    found = read_json(file)
    try:
        return Plan(
            recipe=found["recipe"],
            experiment=from_json(Experiment, found["config"]),
            tasks=tuple(found["tasks"]),
            methods=tuple(found["methods"]),
            budgets=tuple(found["budgets"]),
            num_seeds=int(found["num_seeds"]),
            lifelong=found["lifelong"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a comparison of this version ({error})") from error


def check_comparison(path: Path, plan: Plan) -> None:
    saved = saved_plan(path)
    if saved is None:
        return
    task, budget = plan.tasks[0], plan.budgets[0]
    old, new = ((p.recipe, p.at(task, budget), 0) for p in (saved, plan))
    if differing := differences(old, new):
        raise ValueError(
            f"{path} holds a comparison with other settings ({'; '.join(differing[:4])}); "
            "choose another --name, or delete that folder"
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One method after one training; budget None: the base policy. ``round``: of a lifelong run."""

    task: str
    seed: int
    budget: int | None
    method: str
    round: int = 0

    def folder(self, path: Path) -> Path:
        own = "-rft" if self.method == "wmpo-rft" else ""
        name = BASE if self.budget is None else f"{'lifelong' if self.round else f'P{self.budget}'}{own}"
        return path / self.task / f"seed{self.seed}" / name

    def experiment(self, plan: Plan) -> Experiment:
        return plan.at(self.task, self.budget, self.method)

    def __str__(self) -> str:
        return f"{self.task} seed {self.seed} " + (BASE if self.budget is None else f"P = {self.budget} {self.method}")


def steps_of(plan: Plan) -> Iterator[Step]:
    """Seed after seed, so that a first comparison of all tasks is there early."""
    for seed in range(plan.num_seeds):
        for task in plan.tasks:
            yield Step(task, seed, None, BASE)
            for number, budget in enumerate(plan.budgets, start=1):
                for method in plan.methods:
                    yield Step(task, seed, budget, method, number if plan.lifelong and method in WMPO else 0)


def summary_of(step: Step, path: Path) -> Path:
    folder = step.folder(path)
    return (folder / f"round-{step.round}" if step.round > 1 else folder) / "stages" / f"{step.method}-test.json"


@dataclass
class _Watch:
    """How far a comparison is, and how long it still takes: by what steps of the same method took so far."""

    steps: Sequence[Step]
    path: Path
    took: dict[str, list[float]] = field(default_factory=dict)

    def missing(self) -> list[Step]:
        return [step for step in self.steps if not summary_of(step, self.path).exists()]

    def announce(self, step: Step) -> None:
        missing = self.missing()
        known = [mean(self.took[each.method]) for each in missing if each.method in self.took]
        about = "about" if len(known) == len(missing) else "at least"  # methods take very different times
        time_left = f", {about} {sum(known) / 60:.0f} minutes left" if self.took else ""
        done = len(self.steps) - len(missing)
        print(f"compare       {done}/{len(self.steps)} done{time_left}; now {step}", file=sys.stderr, flush=True)


def run(plan: Plan, path: Path, *, quiet: bool = False) -> list[str]:
    """Runs what is missing, and returns what could not be trained, each with the reason: a base policy that never
    fails, or a dream without mixed groups, ends one training and not the comparison (the base policy is handed in).
    Several processes may share the work: each takes a task and seed that no other has. Raises ValueError for settings
    that do not fit the folder."""
    plan.validate()
    check_comparison(path, plan)
    watch = _Watch(list(steps_of(plan)), path)
    for step in watch.steps:  # before anything is written, and hours are spent
        check_folder(step.folder(path), plan.recipe, step.experiment(plan), step.seed)
    plan.save(path)
    failed: list[str] = []
    for cell, steps in groupby(watch.missing(), key=lambda step: path / step.task / f"seed{step.seed}"):
        with claimed(cell) as mine:
            if mine:
                failed += _cell(watch, [step for step in steps if not summary_of(step, path).exists()], plan, quiet)
            else:
                print(f"compare       {cell} is left to the process that is at work there", file=sys.stderr, flush=True)
    return failed


def _cell(watch: _Watch, missing: Sequence[Step], plan: Plan, quiet: bool) -> list[str]:
    """One task and seed: what trainings share lies beside them, so one process makes them all."""
    failed: list[str] = []
    for place, steps in groupby(missing, key=lambda step: step.folder(watch.path)):
        first, *others = steps
        with open_job(place, plan.recipe, first.experiment(plan), first.seed, quiet=quiet) as job:
            for step in (first, *others):
                begun = time.monotonic()
                watch.announce(step)
                try:
                    why = _take(job, step, watch.path)
                except ValueError as error:
                    why = str(error)
                if why:
                    failed.append(f"{step}: {why}")
                    print(f"compare       {failed[-1]}", file=sys.stderr, flush=True)
                else:
                    watch.took.setdefault(step.method, []).append(time.monotonic() - begun)
    return failed


def _take(job: Job, step: Step, path: Path) -> str:
    """Trains and tests; returns why the base policy had to be handed in instead."""
    if step.budget is None:
        run_missing(job, [("demos", 1), ("sft", 1)])
        once(job, "base-audit", baselines.base_audit)
        trial(job, BASE, policy=load_policy(job.root, BASE), budget=0)
        return ""
    adopt(job, Step(step.task, step.seed, None, BASE).folder(path))
    for twin in WMPO:
        adopt_first_round(job, replace(step, method=twin).folder(path))
    policy, failed = None, ""
    try:
        policy = _trained(job, step)
    except ValueError as error:
        failed = str(error)
    trial(job, step.method, policy=policy, budget=step.budget, number=step.round, failed=failed)
    return failed


def _trained(job: Job, step: Step) -> PolicyNet:
    method, job.round = METHODS[step.method], 1
    for name, stage in method.needs:
        once(job, name, stage)
    if method.train is not None:
        once(job, step.method, method.train)
        return load_policy(job.root, step.method)
    number = step.round or job.experiment.num_rounds
    run_missing(job, rounds(number))  # without the run's own evaluate: every method is tested in the same way
    return load_policy(job.folder_of(number), "improved")


ADOPTED = ("demos", "sft", "base-audit", f"{BASE}-test")
"""Stages that are made once for all budgets."""


def adopt(job: Job, base: Path) -> None:
    """Copies demonstrations and base policy, with their lines of the ledger, into a run at some budget.

    Raises ValueError when the base policy is not there, because its own training failed.
    """
    root = job.root.path
    if all(job.root.summary(stage) for stage in ADOPTED):
        return
    if not all(RunFolder(base).summary(stage) for stage in ADOPTED):
        raise ValueError(f"the base policy in {base} is not complete; what stopped it is said above")
    shutil.copytree(base / "data", root / "data", dirs_exist_ok=True)
    _copy(base, root, ADOPTED, ("models/base.safetensors", "metrics/sft.jsonl"), ("demonstrations", "audit"))


FIRST_ROUND = {
    "collect": (),
    "tokenizer": ("models/tokenizer.safetensors",),
    "world-model": ("models/world_model.safetensors", "metrics/world-model.jsonl"),
    "reward": ("models/reward.safetensors", "metrics/reward.jsonl"),
}
"""Stages of the first round on which it does not depend whether successes are cloned, and their files."""


def adopt_first_round(job: Job, other: Path) -> None:
    """Copies the first round's episodes and dream of another run with the same budget, as far as they are complete."""
    if job.root.path == other or not RunFolder(other).summary("collect"):
        return
    for stage, files in FIRST_ROUND.items():
        if job.root.summary(stage) or not RunFolder(other).summary(stage):
            continue
        if stage == "collect":
            shutil.copytree(other / "data/collected", job.root.path / "data/collected", dirs_exist_ok=True)
        _copy(other, job.root.path, (stage,), files, ("collection",))


def _copy(source: Path, target: Path, stages: Sequence[str], files: Sequence[str], purposes: Sequence[str]) -> None:
    """Files, then the base policy's episodes in the ledger, then what says that stages are complete."""
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    ledger = Ledger(target / "ledger.jsonl")
    have = ledger.unique()
    copied = [row for row in Ledger(source / "ledger.jsonl").unique() if row["purpose"] in purposes]
    ledger.record([row for row in copied if row not in have and row["policy"] in ("expert", BASE)])
    for stage in stages:
        write_json(target / "stages" / f"{stage}.json", read_json(source / "stages" / f"{stage}.json"))
