"""What both policies can stand: light, colours, camera and start changed, and a push in mid-episode. Real episodes of
its own, which the ledger counts as ``disruptions``; nothing learns from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wmpo.config import DisruptionsConfig
from wmpo.data.episode import Episode
from wmpo.data.splits import simulator_starts, start_seeds
from wmpo.envs.disrupt import NONE, Disruption, Push
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.disruptions import compared, lengths, recovery
from wmpo.evaluation.policy import Outcomes, decoding, play_starts
from wmpo.protocols import PolicyNet
from wmpo.report.run import StageLog
from wmpo.report.video import side_by_side, write_video
from wmpo.stages.job import Job, finish, require
from wmpo.stages.measure import played_once
from wmpo.stages.models import load_policy
from wmpo.stages.record import play
from wmpo.stages.rounds import handed_in

FIRST_START = 20_000
"""Of the validation starts: those before choose decodings, audit and measure fidelity."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A policy at the decoding that ``evaluate`` chose for it."""

    name: str
    policy: PolicyNet
    temperature: float


Pair = tuple[Outcomes, Outcomes]
"""Of base and improved policy, from the same starts."""


def disruptions(job: Job) -> None:
    """Writes ``stages/disruptions.json`` and videos of pushed episodes."""
    require(job, "disruptions", "improve", "evaluate")
    log, config, both = job.log("disruptions"), job.experiment.disruptions, contestants(job)
    outcomes: list[Pair] = []
    todo = conditions(config)
    for done, (disruption, push) in enumerate(todo, start=1):
        base, *other = (played(job, log, each, disruption, push) for each in both)
        outcomes.append((base, other[0] if other else base))
        log.progress(done, len(todo), push.label if push else disruption.words)
    undisturbed, *_, pushed = outcomes
    step = config.push_chunk * job.experiment.policy.chunk_size
    found: dict[str, Any] = {
        "handed_in": both[-1].name,
        "settings": asdict(config),
        "first_start": FIRST_START,
        "disruptions": [_row(d, pair) for (d, push), pair in zip(todo, outcomes, strict=True) if push is None],
        "lengths": lengths(*undisturbed),
        "push": {"centimetres": config.push_centimetres, "step": step}
        | recovery(*pushed, undisturbed=undisturbed, step=step)
        | {"episodes": _episodes(pushed)},
        "videos": _videos(job, both, config.push(), step),
    }
    finish(log, found, _text(found))


def conditions(config: DisruptionsConfig) -> list[tuple[Disruption, Push | None]]:
    """Undisturbed first, the push last."""
    return [*((disruption, None) for disruption in (NONE, *config.disruptions())), (NONE, config.push())]


def contestants(job: Job) -> list[Contestant]:
    """The base policy and the one that ``evaluate`` handed in; one only, where that is the base policy too."""
    evaluated, (folder, chosen) = job.root.summary("evaluate") or {}, handed_in(job)
    return [
        Contestant(name, load_policy(place, name), _temperature(job, evaluated[name]["best"]["decoding"]))
        for name, place in ({"base": job.root} | {chosen: folder}).items()
    ]


def _temperature(job: Job, chosen: str) -> float:
    return next(t for t in job.experiment.evaluate.temperatures if decoding(t) == chosen)


def played(job: Job, log: StageLog, who: Contestant, disruption: Disruption, push: Push | None) -> Outcomes:
    """The run's starts under one condition; played once, whatever interrupts it."""
    count, label = job.experiment.disruptions.num_starts, push.label if push else disruption.label

    def play_disrupted() -> Outcomes:
        purpose = Purpose("disruptions", who.name, who.temperature, job.seed)
        env = job.real_env(purpose, frame_stride=job.experiment.policy.chunk_size)
        seeds = start_seeds("validation", job.seed, FIRST_START, count)
        starts = simulator_starts(seeds, job.experiment.env.instructions)
        with env.disrupted(disruption, push):
            return play_starts(env, who.policy, starts, who.temperature, seed=job.seed)

    return played_once(log, f"{who.name} {label} {count}", play_disrupted)


def _row(disruption: Disruption, pair: Pair) -> dict[str, Any]:
    return asdict(disruption) | {"words": disruption.words} | compared(*pair) | {"episodes": _episodes(pair)}


def _episodes(pair: Pair) -> dict[str, Any]:
    """Every outcome, in the order of the starts."""
    return {
        name: {"success": outcomes.success.tolist(), "num_steps": outcomes.num_steps.tolist()}
        for name, outcomes in zip(("base", "improved"), pair, strict=True)
    }


def _videos(job: Job, both: list[Contestant], push: Push, step: int) -> list[dict[str, str]]:
    """Pushed starts after the measured ones, so that no measured episode is played twice; base policy on the left."""
    config = job.experiment.disruptions
    seeds = start_seeds("validation", job.seed, FIRST_START + config.num_starts, config.num_videos)
    if not seeds:
        return []
    played: list[list[Episode]] = []
    for who in both:
        env = job.real_env(Purpose("disruptions", who.name, who.temperature, job.seed), frame_stride=1)
        with env.disrupted(push=push):
            played.append(play(env, who.policy, seeds, job, temperature=who.temperature, policy_name=who.name))
    shown = []
    for place, (before, after) in enumerate(zip(played[0], played[-1], strict=True)):
        name = f"push-{place}.mp4"
        write_video(job.root.path / "videos" / name, side_by_side(before.frames, after.frames), fps=job.fps // 2)
        words = [f"{who} {_ending(e, step)}" for who, e in (("base", before), ("improved", after))]
        shown.append({"file": name, "section": "push", "caption": f"{words[0]}; {words[1]}"})
    return shown


def _ending(episode: Episode, step: int) -> str:
    if 0 <= episode.solved_at <= step:
        return "solved it before the push"
    return "recovers and solves it" if episode.success else "fails"


def _text(found: dict[str, Any]) -> str:
    undisturbed, *disturbed = found["disruptions"]
    parts = [f"undisturbed {_rates([undisturbed])}"]
    if disturbed:
        parts.append(f"disturbed {_rates(disturbed)} (mean of {len(disturbed)})")
    push = found["push"]
    if push["base"]["n"] and push["improved"]["n"]:
        parts.append(f"pushed {_rates([push])}")
    return "real success: " + ", ".join(parts)


def _rates(rows: list[dict[str, Any]]) -> str:
    base, improved = (np.mean([row[name]["success"] for row in rows]) for name in ("base", "improved"))
    return f"{100 * base:.1f} -> {100 * improved:.1f} %"
