"""The stage that says whether it worked: both policies on the same test starts, in the real environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wmpo.checkpoint import read_json, write_json
from wmpo.data.splits import Split, simulator_starts, start_seeds
from wmpo.envs.ledger import Ledger
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.evaluation.audit import loss
from wmpo.evaluation.policy import Outcomes, difference, play_starts
from wmpo.noise import row_normal
from wmpo.protocols import PolicyNet
from wmpo.report.run import StageLog
from wmpo.rng import alternating
from wmpo.rollout.run import run_episodes
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import REPEATED, Job, finish, require
from wmpo.stages.models import load_policy
from wmpo.stages.rounds import imagined_env
from wmpo.stages.show import make_videos
from wmpo.types import Starts

POLICIES = ("base", "improved")


def evaluate(job: Job) -> None:
    """Chooses each policy's best decoding on validation starts, then plays the test starts, paired.

    If the policy from imagination has lost more validation starts than chance explains (one standard error, as in
    audits), the base policy is handed in.
    """
    require(job, "evaluate", "improve")
    if job.experiment.collect.recorded:
        raise ValueError(
            "evaluate plays in the simulator, but this run learned from a robot; run there: "
            f"wmpo robot deploy SETUP.py --policy {job.root.path} --to FOLDER"
        )
    log = job.log("evaluate")
    places = {"base": job.root, "improved": job.folder}
    policies = {name: load_policy(place, name) for name, place in places.items()}
    env = job.real_env(Purpose("test", ""), frame_stride=job.experiment.policy.chunk_size)
    validated = {name: best_decoding(job, log, env, policy, name) for name, policy in policies.items()}
    solved = {name: int(outcomes.success.sum()) for name, outcomes in validated.items()}
    handed_in = "base" if loss(*(validated[name].success.tolist() for name in POLICIES)) > 1 else "improved"
    tested = {
        name: _test(job, env, policies[name], name, log, validated[name].temperature)
        for name in dict.fromkeys(("base", handed_in))
    }
    if handed_in == "base":
        log.note(f"the base policy is handed in: {solved['base']} validation starts against {solved['improved']}")
        policies["improved"] = policies["base"]
    outcomes = {"base": tested["base"], "improved": tested[handed_in]}
    results = _compare(job, outcomes) | {
        "validation": solved | {"n": job.experiment.evaluate.num_validation},
        "handed_in": handed_in,
    }
    learn, held_out = job.collected()
    begun = imagined_starts([*learn, *held_out])
    rounds = {"base": 1, "improved": job.round}
    results["imagined"] = {name: _imagined_success(job, rounds[name], policy) for name, policy in policies.items()}
    dreamt = ", ".join(f"{name} {100 * rate:.0f} %" for name, rate in results["imagined"].items())
    log.note(f"imagined success: {dreamt}")
    results["throughput"] = _throughput(job, policies["base"], env, begun)
    make_videos(job, policies, {name: o["best"].temperature for name, o in outcomes.items()}, env)
    gain = results["difference"]["best"]
    before, after = (100 * results[name]["best"]["success"] for name in POLICIES)
    text = (
        f"real success {before:.1f} -> {after:.1f} %, "
        f"{gain['points']:+.1f} points [{gain['interval'][0]:+.1f}, {gain['interval'][1]:+.1f}]"
    )
    finish(log, results, text)
    _write_results(job)


def _test(job: Job, env: SimulatedEnv, policy: PolicyNet, name: str, log: StageLog, best: float) -> dict[str, Outcomes]:
    config = job.experiment.evaluate
    drawn = job.experiment.improve.temperature
    needed = dict.fromkeys((0.0, drawn, best))
    played = {}
    for i, temperature in enumerate(needed, start=1):
        played[temperature] = play_once(job, log, env, policy, "test", name, config.num_test, temperature)
        rate = f"{100 * played[temperature].success.mean():.1f} %"
        log.progress(i, len(needed), f"{name} policy, {played[temperature].summary()['decoding']}: {rate}")
    return {"greedy": played[0.0], "sampled": played[drawn], "best": played[best]}


def best_decoding(
    job: Job, log: StageLog, env: SimulatedEnv, policy: PolicyNet, name: str, *, enough: float = 1.0
) -> Outcomes:
    """Of the decoding that solves most validation starts; the least random one of equals. No further one is tried once
    one clearly solves more than ``enough``. The base policy does not play again if ``sft`` has found that it does not
    solve too much."""
    known = (job.root.summary("sft") or {}).get("validated")
    if name == "base" and known:
        return Outcomes.of(known)
    config = job.experiment.evaluate
    tried: list[Outcomes] = []
    for temperature in sorted(config.temperatures):
        tried.append(play_once(job, log, env, policy, "validation", name, config.num_validation, temperature))
        if tried[-1].clearly_above(enough):
            break
    return max(tried, key=lambda outcomes: outcomes.success.mean())


def play_once(
    job: Job,
    log: StageLog,
    env: SimulatedEnv,
    policy: PolicyNet,
    split: Split,
    name: str,
    count: int,
    temperature: float,
) -> Outcomes:
    """One episode from each of the first starts of a split."""

    def play_split() -> Outcomes:
        env.purpose = Purpose(split, name, temperature, job.seed)
        starts = simulator_starts(start_seeds(split, job.seed, 0, count), job.experiment.env.instructions)
        return play_starts(env, policy, starts, temperature, seed=job.seed)

    return played_once(log, f"{split} {name} {temperature}", play_split)


def played_once(log: StageLog, key: str, play: Callable[[], Outcomes]) -> Outcomes:
    """Episodes that an interrupted stage played already are not played again."""
    path = log.folder.path / "unfinished" / f"{log.stage}.json"
    played = read_json(path) if path.exists() else {}
    if key not in played:
        played[key] = play().kept()
        write_json(path, played)
        log.keep_time()
    return Outcomes.of(played[key])


def _compare(job: Job, outcomes: dict[str, dict[str, Outcomes]]) -> dict[str, Any]:
    """Summaries, paired differences, and every outcome in a file of its own."""
    starts = start_seeds("test", job.seed, 0, job.experiment.evaluate.num_test)
    raw = {
        name: {key: {"success": o.success.tolist(), "num_steps": o.num_steps.tolist()} for key, o in kinds.items()}
        for name, kinds in outcomes.items()
    }
    write_json(job.root.path / "outcomes.json", {"starts": starts, **raw})
    summaries = {name: {key: o.summary() for key, o in kinds.items()} for name, kinds in outcomes.items()}
    gains = {key: difference(outcomes["base"][key], outcomes["improved"][key]) for key in outcomes["base"]}
    return summaries | {"difference": gains} | _by_task(job, starts, {name: o["best"] for name, o in outcomes.items()})


def _by_task(job: Job, starts: list[int], best: dict[str, Outcomes]) -> dict[str, Any]:
    """Of each of several tasks, at each policy's best decoding."""
    sentences, tasks = job.experiment.env.instructions, {}
    for sentence in sentences if len(sentences) > 1 else ():
        own = np.array([alternating(start, sentences) == sentence for start in starts])
        both = {name: outcomes.part(own) for name, outcomes in best.items()}
        summaries = {name: outcomes.summary() for name, outcomes in both.items()}
        tasks[sentence] = summaries | {"difference": difference(both["base"], both["improved"])}
    return {"tasks": tasks} if tasks else {}


def _imagined_success(job: Job, number: int, policy: PolicyNet) -> float:
    """In the dream of a round, sampled: as many episodes as are tested, but at least one from where each of those began
    that it has learned from. The base policy's is to be compared with what the first collection measured: a later dream
    has seen little of what that policy does."""
    temperature, (learn, held_out) = job.experiment.improve.temperature, replace(job, round=number).collected()
    starts = imagined_starts([*learn, *held_out])
    begun = starts.cycled(max(len(starts), job.experiment.evaluate.num_test))
    rollouts = run_episodes(imagined_env(job, number), policy, begun, temperature=temperature, seed=job.seed)
    return float(rollouts.success.float().mean())


def _throughput(job: Job, policy: PolicyNet, env: SimulatedEnv, pool: Starts) -> dict[str, Any]:
    """Environment steps per second of simulation and imagination with the same frames, policy and cores; and the world
    model by itself."""
    config, stride = job.experiment.evaluate, job.experiment.world_model.frame_stride
    dream = imagined_env(job, job.round)
    starts = pool.cycled(config.num_throughput)
    seeds = start_seeds("throughput", job.seed, 0, config.num_throughput)
    env.purpose, env.frame_stride = Purpose("throughput", "base", 1.0, job.seed), stride
    before = _speed(dream, policy, starts)  # on both sides of the simulator, as machines change their speed
    steps, seconds = _speed(env, policy, simulator_starts(seeds, job.experiment.env.instructions))
    after = _speed(dream, policy, starts)
    real, imagined = steps / seconds, (before[0] + after[0]) / (before[1] + after[1])
    share = {key: value / (before[1] + after[1]) for key, value in dream.seconds.items()}
    return {
        "real_steps_per_second": real,
        "imagined_steps_per_second": imagined,
        "ratio": imagined / real,
        "world_model_frames_per_second": _frames_per_second(job, dream, starts),
        "share": share | {"policy and bookkeeping": 1 - sum(share.values())},
    }


def _speed(env: Any, policy: PolicyNet, starts: Starts) -> tuple[float, float]:
    """Environment steps and seconds."""
    begun = time.perf_counter()
    rollouts = run_episodes(env, policy, starts, temperature=1.0, seed=0)
    return float(rollouts.num_steps.sum()), time.perf_counter() - begun


def _frames_per_second(job: Job, dream: Any, starts: Starts) -> float:
    """The world model alone, decoding included."""
    model, chunk_size = dream.world_model, dream.chunk_size
    chunk = torch.zeros(len(starts), chunk_size, len(model.action_low))
    noise = row_normal(0, "throughput", range(len(starts)), 0, model.noise_shape(chunk_size))
    context = model.begin(starts.frames)
    begun = time.perf_counter()
    for _ in range(5):
        frames, context = model.imagine(context, chunk, noise)
    return 5 * frames.shape[0] * frames.shape[1] / (time.perf_counter() - begun)


def _write_results(job: Job) -> None:
    """``results.json``: the machine-readable end of a run; its fields are described in docs/results.md."""
    root = job.root
    rounds = [
        {stage: job.folder_of(number).summary(stage) or {} for stage in REPEATED}
        for number in range(1, job.experiment.num_rounds + 1)
    ]
    stages = {stage: root.summary(stage) or {} for stage in ("demos", "sft", "tokenizer", "evaluate")} | rounds[-1]
    seconds = {name: summary["seconds"] for name, summary in stages.items()}
    for stage in REPEATED:
        seconds[stage] = round(sum(summaries[stage]["seconds"] for summaries in rounds), 2)
    about = read_json(root.path / "config.json")
    results = _untimed(stages["evaluate"]) | {
        "world_model": _untimed(stages["world-model"]),
        "reward": _untimed(stages["reward"]),
        "rounds": [_round(summaries) for summaries in rounds],
        "audits": [audit for summaries in rounds for audit in summaries["improve"]["audits"]],
        "stopped": stages["improve"]["stopped"],
        "kept_iteration": stages["improve"]["kept_iteration"],
        "real_episodes": Ledger(root.ledger).count(),
        "seconds": seconds,
        "seed": about["seed"],
        "commit": about["commit"],
        "machine": about["machine"],
        "config": about["config"],
    }
    write_json(root.path / "results.json", results)


def _untimed(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "seconds"}


def _round(summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a round had and how good its dream was."""
    collected, reward = summaries["collect"], summaries["reward"]
    return {
        "episodes": collected["episodes"],
        "success": collected["success"],
        "ratio_last": summaries["world-model"]["ratio_last"],
        "real_f1": reward["real"]["f1"],
        "imagined_j": reward["imagined"]["j"],
        "stopped": summaries["improve"]["stopped"],
    }
