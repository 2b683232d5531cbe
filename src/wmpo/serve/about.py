"""What the page must know of a run before it asks for pictures."""

from __future__ import annotations

from dataclasses import dataclass

from wmpo.data.episode import Episode
from wmpo.data.lerobot import list_episodes, open_lerobot
from wmpo.data.source import Keys
from wmpo.serve.messages import Refused
from wmpo.stages import models
from wmpo.stages.job import Job
from wmpo.stages.rounds import last_round


@dataclass(frozen=True, slots=True)
class Choice:
    """A collected episode to begin from or to replay."""

    round: int
    policy: str
    solved: bool
    steps: int
    held_out: bool
    instruction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """``round`` is the last complete one, whose dream is shown; 0: there is none yet, and nothing to begin from."""

    name: str
    task: str
    instruction: str
    round: int
    temperature: float
    "Of imagination while the policy was trained."
    group_size: int
    chunk_size: int
    max_chunks: int
    frame_stride: int
    fps: int
    threshold: float
    "Logit of the success classifier above which it calls a frame solved."
    window: int
    "How many frames it looks at: that one and those before."
    tokenizer_distance: float | None
    "Mean difference of held-out frames to their reconstructions, in [-1, 1]: what the dream cannot show anyway."
    report: bool
    episodes: list[Choice]


def about(job: Job) -> About:
    number, experiment = last_round(job), job.experiment
    judge = models.load_reward(job.folder_of(number)) if number else None
    measured = (job.folder_of(number).summary("world-model") or {}) if number else {}
    return About(
        name=job.root.path.resolve().name, task=", ".join(experiment.env.tasks),
        instruction=", ".join(experiment.env.instructions),
        round=number, temperature=experiment.improve.temperature, group_size=experiment.improve.groups.group_size,
        chunk_size=experiment.policy.chunk_size, max_chunks=experiment.max_chunks,
        frame_stride=experiment.world_model.frame_stride, fps=job.fps,
        threshold=judge.threshold if judge else 0.0, window=judge.window if judge else 0,
        tokenizer_distance=measured.get("tokenizer_distance"),
        report=(job.root.path / "report.html").is_file(),
        episodes=[choice for done in range(1, number + 1) for choice in _choices(job, done)],
    )  # fmt: skip


def episode(job: Job, place: int) -> Episode:
    """The collected episode at a place in ``About.episodes``. Raises :class:`Refused` when there is none."""
    rest = place
    for number in range(1, last_round(job) + 1):
        root = job.collected_in(number)
        count = len(list_episodes(root))
        if rest < count:
            return next(iter(open_lerobot(root, Keys(), first=rest).episodes))
        rest -= count
    raise Refused(f"there is no collected episode {place}", 404)


def _choices(job: Job, number: int) -> list[Choice]:
    listed = list_episodes(job.collected_in(number))
    _, held = job.experiment.collect.shares(job.experiment.num_rounds)[number - 1]
    apart = job.held_out(listed, held)
    return [
        Choice(number, e.policy, e.success, e.solved_at if e.success else e.num_actions, i in apart, e.instruction)
        for i, e in enumerate(listed)
    ]
