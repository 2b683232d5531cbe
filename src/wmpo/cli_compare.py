"""``wmpo compare RECIPE`` and ``wmpo lifelong RECIPE``: several methods, tasks, seeds and budgets in one table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from wmpo.cli_common import Shared, peek
from wmpo.recipes import recipe
from wmpo.report.comparison import write_comparison
from wmpo.report.comparison_page import write_page
from wmpo.stages import compare, pretrained
from wmpo.stages.tabulate import tabulate


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Several(Shared):
    tasks: tuple[str, ...] = ()
    "Tasks; by default the recipe's."
    seeds: int = 3
    "How many seeds, from 0 on."
    show: bool = False
    "Print the table of what is there, and run nothing."

    def _plan(self, name: str, methods: tuple[str, ...], budgets: tuple[int, ...]) -> compare.Plan:
        return compare.Plan(
            recipe=name,
            experiment=self.experiment,
            tasks=self.tasks or (self.experiment.env.task,),
            methods=methods,
            budgets=budgets or (self.experiment.collect.num_episodes,),
            num_seeds=self.seeds,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(_Several):
    """Settings of a comparison."""

    methods: tuple[str, ...] = tuple(compare.METHODS)
    "Methods beside the base policy."
    budgets: tuple[int, ...] = ()
    "Budgets P of real episodes; by default the recipe's."
    name: str = "compare"
    "Folder of the comparison under --runs."

    def plan(self, name: str) -> compare.Plan:
        return self._plan(name, self.methods, self.budgets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lifelong(_Several):
    """Settings of a lifelong comparison."""

    methods: tuple[str, ...] = ("wmpo-rft", "dpo", "more-demos")
    "Methods beside the base policy. WMPO goes on from round to round, the others get each sum of episodes at once."
    rounds: int = 3
    "How often as many real episodes as --collect.num-episodes says are added."
    name: str = "lifelong"
    "Folder of the comparison under --runs."

    def plan(self, name: str) -> compare.Plan:
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, not {self.rounds}")
        each = self.experiment.collect.num_episodes
        budgets = tuple(each * number for number in range(1, self.rounds + 1))
        return dataclasses.replace(self._plan(name, self.methods, budgets), lifelong=True)


KINDS: dict[str, type[Comparison | Lifelong]] = {"compare": Comparison, "lifelong": Lifelong}


def main(command: str, name: str, rest: list[str]) -> None:
    """Recipe, then what was asked for last in that folder, then the command line."""
    decided = [("--env.task", "--tasks"), ("--env.more-tasks", "--tasks"), ("--clone.", "--methods wmpo-rft")]
    if command == "compare":
        decided.append(("--collect.num-episodes", "--budgets"))
    for flag, instead in decided:
        if any(arg.startswith(flag) for arg in rest):
            raise ValueError(f"{flag} differs between the runs of a comparison; use {instead}")
    kind = KINDS[command]
    default = kind(experiment=recipe(name))
    path = Path(peek(rest, "--runs") or default.runs) / (peek(rest, "--name") or default.name)
    saved = compare.saved_plan(path)
    if saved is not None and saved.lifelong != (kind is Lifelong):
        other = "lifelong" if saved.lifelong else "compare"
        raise ValueError(f"{path} was made by wmpo {other}; give this comparison another --name")
    if saved is not None and saved.recipe == name:
        spent: dict[str, Any] = {"rounds": len(saved.budgets)} if saved.lifelong else {"budgets": saved.budgets}
        default = kind(
            tasks=saved.tasks, methods=saved.methods, seeds=saved.num_seeds, experiment=saved.experiment, **spent
        )
    settings = tyro.cli(kind, args=rest, default=default, prog=f"wmpo {command} {name}")
    plan, path = settings.plan(name), settings.runs / settings.name
    settings.experiment.execution.prepare()
    failed: list[str] = []
    if settings.show:
        if saved is None:
            raise ValueError(f"{path} holds no comparison; run: wmpo {command} {name} --name {settings.name}")
        plan.validate()
        compare.check_comparison(path, plan)
    else:
        pretrained.check_weights(settings.experiment)
        failed = compare.run(plan, path)
    table = tabulate(plan, path)
    print(write_comparison(table))
    print(f"page: {write_page(table)}")
    if failed:
        raise ValueError(f"{len(failed)} could not be trained to the end: {'; '.join(failed)}")
