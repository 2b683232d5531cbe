"""The stages of a run in their order, and the rule that what is complete is not run again."""

from __future__ import annotations

from collections.abc import Callable

from wmpo.stages import disruptions, fidelity, learn, measure, pretrain, record
from wmpo.stages.job import REPEATED, Job
from wmpo.stages.memory import check_memory

STAGES: dict[str, Callable[[Job], None]] = {
    "demos": record.demos,
    "sft": learn.sft,
    "collect": record.collect,
    "tokenizer": learn.tokenizer,
    "world-model": learn.world_model,
    "reward": learn.reward,
    "clone": learn.clone_successes,
    "improve": learn.improve,
    "evaluate": measure.evaluate,
    "fidelity": fidelity.fidelity,
    "disruptions": disruptions.disruptions,
    "pretrain": pretrain.pretrain,
}


def rounds(num_rounds: int) -> list[tuple[str, int]]:
    """What a run repeats: stages with their round. The tokenizer stays as the first round makes it."""
    order = [(stage, number) for number in range(1, num_rounds + 1) for stage in REPEATED]
    return [order[0], ("tokenizer", 1), *order[1:]]


def order(num_rounds: int) -> list[tuple[str, int]]:
    """Every stage of a run with its round."""
    return [("demos", 1), ("sft", 1), *rounds(num_rounds), ("evaluate", num_rounds)]


def whole(job: Job) -> list[tuple[str, int]]:
    """What ``run`` runs. A run that learns from a robot's episodes is evaluated on the robot."""
    stages = order(job.experiment.num_rounds)
    return stages[:-1] if job.experiment.collect.recorded else stages


def missing(job: Job, wanted: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those of the stages that are not complete."""
    return [(stage, number) for stage, number in wanted if job.place(stage, number).summary(stage) is None]


def run_missing(job: Job, wanted: list[tuple[str, int]]) -> None:
    """Runs what is not complete, one after the other."""
    todo = missing(job, wanted)
    check_memory(job.experiment, {stage for stage, _ in todo})
    for stage, number in todo:
        job.round = number
        STAGES[stage](job)


def turn(job: Job, command: str) -> tuple[list[tuple[str, int]], str]:
    """What a single stage's command has to run, of the first round that lacks it; or nothing, and why."""
    last = job.experiment.num_rounds
    stages = ("tokenizer", "world-model") if command == "world-model" else (command,)
    apart = [(command, last if command in ("fidelity", "disruptions") else 1)]
    every = [pair for pair in order(last) if pair[0] in stages] or apart
    todo = missing(job, every)
    if not todo:
        done = job.place(command, last).path / "stages" / f"{command}.json"
        return [], f"{command} is complete; to run it again, delete {done}"
    number = todo[0][1]
    if command in REPEATED and number > 1 and missing(job, [("improve", number - 1)]):
        before = job.folder_of(number - 1).path
        return [], f"{command} is complete; its next round begins when improve is complete in {before}"
    return [pair for pair in todo if pair[1] == number], ""
