"""How far the dream can be trusted, measured: pictures, outcomes, success of policies of different strength, and signs
of hallucination. Plays real episodes of its own, which the ledger counts as ``fidelity``; nothing learns from them.
Where nothing can be played, success of policies is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from wmpo.checkpoint import read_json, write_json
from wmpo.data.episode import Episode
from wmpo.data.lerobot import read_episodes
from wmpo.data.splits import simulator_starts, start_seeds
from wmpo.envs.recorded import RecordedConfig
from wmpo.envs.simulated import Purpose
from wmpo.evaluation.fidelity import fidelity as measured_by_chunk
from wmpo.evaluation.fidelity import summary as by_chunk
from wmpo.evaluation.hallucination import Signs, areas, left_reality, signs
from wmpo.evaluation.hand import HandReader, learn_to_read
from wmpo.evaluation.policy import decoding
from wmpo.evaluation.statistics import mean_interval, mean_max_rank_violation, paired_difference, pearson, rates
from wmpo.evaluation.world_model import replay
from wmpo.report.run import StageLog
from wmpo.reward.detector import show_success
from wmpo.rollout.run import run_episodes
from wmpo.stages import models
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import Job, finish, require
from wmpo.stages.rounds import imagined_env, policy_of
from wmpo.stages.show import show_replay

FIRST_START = 10_000
"""Of the validation starts; the ones before choose decodings."""


def fidelity(job: Job) -> None:
    """Writes ``stages/fidelity.json`` and the worst replays as videos."""
    require(job, "fidelity", "improve")
    log, last = job.log("fidelity"), job.experiment.num_rounds
    learn, held_out = map(job.executed, job.collected())
    reader = learn_to_read(learn, held_out, seed=job.seed)
    rounds = []
    for number in range(1, last + 1):
        rounds.append(_checkpoint(job, number, held_out, reader))
        log.progress(number, last, "world models replayed")
    found: dict[str, Any] = {"rounds": rounds, "policies": [], "signs": _signs(job, held_out)}
    hallucination = f"signs of hallucination: AUROC {_text(found['signs']['areas']['combined'])}"
    if isinstance(job.experiment.env, RecordedConfig):
        over = rounds[-1]["over_optimism"]["points"]
        text = f"replays too often solved by {over:+.0f} points; policies cannot be played without a simulator"
    else:
        found["policies"], found["known"] = _policies(job, log), known_policies(job)
        found |= agreement(found["policies"], found["known"])
        text = (
            f"imagined against real success of {len(found['policies'])} policies: r = {_text(found['pearson'])}, too "
            f"high by {found['over_optimism']['points']:+.0f} points, calibrated {found['calibrated']['points']:+.0f}"
        )
    finish(log, found, f"{text}; {hallucination}")


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _checkpoint(job: Job, number: int, held_out: Sequence[Episode], reader: HandReader) -> dict[str, Any]:
    """One round's world model and classifier on the held-out episodes of all rounds."""
    dream, chunk_size = imagined_env(job, number), job.experiment.policy.chunk_size
    model = dream.world_model
    videos = replay(model, held_out, chunk_size, seed=job.seed)
    by_tokenizer = [model.reconstruct(torch.from_numpy(e.frames[:: model.frame_stride])) for e in held_out]
    kinds = {
        name: measured_by_chunk(
            held_out, shown, model.encode, reader, chunk_size=chunk_size, frame_stride=model.frame_stride
        )
        for name, shown in (("imagined", videos), ("tokenizer", by_tokenizer))
    }
    called = show_success(dream.reward_model, videos, [episode.instruction for episode in held_out])
    truth = np.array([episode.success for episode in held_out])
    points, interval = paired_difference(truth, called)
    cells = {
        "both": called & truth,
        "only_real": ~called & truth,
        "only_imagined": called & ~truth,
        "none": ~called & ~truth,
    }
    return {
        **{name: by_chunk(measured) for name, measured in kinds.items()},
        "outcomes": {name: int(cell.sum()) for name, cell in cells.items()},
        "rates": asdict(rates(called, truth)),
        "over_optimism": {"points": points, "interval": list(interval)},
    }


def _policies(job: Job, log: StageLog) -> list[dict[str, Any]]:
    """Each round's policy under each decoding: real success, and that in the last dream from the same frames."""
    config, done = job.experiment.fidelity, 0
    path = job.root.path / "unfinished" / "fidelity.json"
    played = [p for p in read_json(path) if len(p["real"]) == config.num_starts] if path.exists() else []
    there = {(each["policy"], each["decoding"]) for each in played}
    total = (job.experiment.num_rounds + 1) * len(config.temperatures)
    for number in range(1, job.experiment.num_rounds + 2):
        for temperature in config.temperatures:
            done += 1
            if (job.policy_name_of(number), decoding(temperature)) in there:
                continue
            played.append(_play(job, number, temperature))
            write_json(path, played)
            log.keep_time()
            log.progress(done, total, "policies played, really and in the dream")
    return played


def _play(job: Job, number: int, temperature: float) -> dict[str, Any]:
    name = job.policy_name_of(number)
    policy, dream = policy_of(job, number), imagined_env(job, job.experiment.num_rounds)
    env = job.real_env(Purpose("fidelity", name, temperature, job.seed), frame_stride=dream.chunk_size)
    seeds = start_seeds("validation", job.seed, FIRST_START, job.experiment.fidelity.num_starts)
    starts = simulator_starts(seeds, job.experiment.env.instructions)
    real = run_episodes(env, policy, starts, temperature=temperature, seed=job.seed)
    begun = replace(starts, frames=real.frame[:, :1])
    imagined = run_episodes(dream, policy, begun, temperature=temperature, seed=job.seed)
    outcomes = {"real": real.success.tolist(), "imagined": imagined.success.tolist()}
    return {"policy": name, "decoding": decoding(temperature), **outcomes}


def known_policies(job: Job) -> list[dict[str, Any]]:
    """What the P episodes tell of the last dream: real success of each round's policy, and that in this dream from the
    same starts. No further real episode is played."""
    dream, temperature = imagined_env(job, job.experiment.num_rounds), job.experiment.collect.temperature
    rows = []
    for number in range(1, job.experiment.num_rounds + 1):
        episodes = read_episodes(job.collected_in(number))
        starts = imagined_starts(episodes)
        imagined = run_episodes(dream, policy_of(job, number), starts, temperature=temperature, seed=job.seed)
        real = [episode.success for episode in episodes]
        rows.append({"policy": job.policy_name_of(number), "real": real, "imagined": imagined.success.tolist()})
    return rows


def agreement(policies: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over policies; intervals are over starts, which all policies share. Calibrated: less what the dream was too
    optimistic for the policies whose real success is known anyway, which is known from few starts too."""
    sides = [np.array([p[side] for p in policies], dtype=float) for side in ("real", "imagined")]
    real, imagined = (side.mean(axis=1).tolist() for side in sides)
    apart, r = 100 * (sides[1] - sides[0]).mean(axis=0), pearson(imagined, real)
    biases = [100 * (np.array(row["imagined"], float) - np.array(row["real"], float)) for row in known]
    over = {"over_optimism": mean_interval(apart), "calibrated": mean_interval(apart, less=biases)}
    return {
        "pearson": None if np.isnan(r) else r,
        "mmrv": mean_max_rank_violation(imagined, real),
        **{name: {"points": points, "interval": list(interval)} for name, (points, interval) in over.items()},
    }


def _signs(job: Job, held_out: Sequence[Episode]) -> dict[str, Any]:
    """Signs of hallucination in replays by the last world model, with its worst replays as videos."""
    model, chunk_size = models.load_world_model(job.folder), job.experiment.policy.chunk_size
    videos = replay(model, held_out, chunk_size, seed=job.seed)
    found = signs(model, model.refined(), held_out, videos, chunk_size, seed=job.seed)
    truth = left_reality(model, held_out, videos, found, chunk_size)
    known = {name: None if np.isnan(area) else area for name, area in areas(found, truth).items()}
    shown = _worst(job, held_out, videos, found, truth, model.frame_stride)
    score = found.combined().round(3).tolist()
    chunks = {"episode": found.episode, "chunk": found.chunk, "combined": score, "left_reality": truth.tolist()}
    return {
        "areas": known, "num_chunks": len(truth), "left_reality": float(truth.mean()), "chunks": chunks,
        "videos": shown,
    }  # fmt: skip


def _worst(
    job: Job, held_out: Sequence[Episode], videos: Sequence[torch.Tensor], found: Signs, truth: np.ndarray, stride: int
) -> list[dict[str, str]]:
    """Replays that left reality for most of their chunks, worst first, with what the signs made of them."""
    rows = [np.array([e == i for e in found.episode]) for i in range(len(held_out))]
    score = found.combined()
    order = sorted(range(len(held_out)), key=lambda i: -truth[rows[i]].mean())
    shown = []
    for place, i in enumerate(order[: job.experiment.fidelity.num_videos]):
        name = f"fidelity-{place}.mp4"
        show_replay(job, name, held_out[i], videos[i], stride)
        outcome = "solved" if held_out[i].success else "failed"
        caption = (
            f"{outcome} in reality; left it in {int(truth[rows[i]].sum())} of {int(rows[i].sum())} chunks; signs "
            f"{score[rows[i]].mean():+.1f} on average (0: usual)"
        )
        shown.append({"file": name, "section": "fidelity", "caption": caption})
    return shown
