"""Pretraining of tokenizer and world model over many other tasks: the paper's Open X-Embodiment at laptop scale.

The arm, the table and contact look alike in all of Meta-World, so a model that has seen them needs only to be aligned
to a new task. No episode of an excluded task is used. The result is shipped with the package; this remakes it.
"""

from __future__ import annotations

from dataclasses import asdict

from wmpo.checkpoint import load_tensors, save_tensors
from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes, num_episodes, read_episodes
from wmpo.data.splits import start_seeds
from wmpo.envs.metaworld import MetaWorldConfig, all_tasks, check_task
from wmpo.envs.simulated import SimulatedEnv
from wmpo.report.run import StageLog
from wmpo.stages import models
from wmpo.stages.begin import small_world_model
from wmpo.stages.job import Job, commit, finish
from wmpo.stages.pretrained import check_pretrained, pretrained_path
from wmpo.train.tokenizer import train_tokenizer
from wmpo.train.world_model import flow_matching, train_and_check
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.tokenizer import Tokenizer


def pretrain(job: Job) -> None:
    """Records play in many tasks, then trains tokenizer and world model on it, or goes on from those that
    ``world_model.pretrained`` names; resumable like any stage. Raises ValueError, before anything is recorded, for
    weights that do not fit and for unknown excluded tasks."""
    log, config, folder = job.log("pretrain"), job.experiment.pretrain, job.root
    if not isinstance(job.experiment.env, MetaWorldConfig):
        raise ValueError("wmpo pretrain plays the tasks of Meta-World; begin with a recipe of it, such as quickstart")
    if not isinstance(job.experiment.world_model, SmallWorldModelConfig):
        raise ValueError("wmpo pretrain makes small world models; an OpenSora one begins with published weights")
    check_pretrained(job.experiment)
    for task in config.excluded:
        check_task(task)
    tasks = sorted(set(all_tasks()) - set(config.excluded))
    for number, task in enumerate(tasks):
        _record(job, task, number)
        log.progress(number + 1, len(tasks), f"recorded {task}")
    learn: list[Episode] = []
    held_out: list[Episode] = []
    for task in tasks:
        workspace = job.experiment.env.with_task(task).workspace()
        episodes = list(map(workspace.executed, read_episodes(job.dataset(task))))
        learn, held_out = learn + episodes[:-1], held_out + episodes[-1:]
    net = _world_model(job, learn, held_out, log)
    header = {
        "kind": "world_model", **net.about(), "env": asdict(job.experiment.env) | {"task": "many"},
        "tasks": tasks, "commit": commit(), "seed": job.seed, "made": _history(job, len(tasks)),
    }  # fmt: skip
    # half precision: half the download, and far below the differences that training noise makes; buffers are exact
    matrices = {name for name, parameter in net.named_parameters() if parameter.dim() > 1}
    half = {k: t.bfloat16() if k in matrices else t for k, t in net.state_dict().items()}
    save_tensors(folder.model("pretrained"), half, header)
    finish(log, {"tasks": tasks, "episodes": len(learn) + len(held_out)}, f"{folder.model('pretrained')}")


def _history(job: Job, num_tasks: int) -> str:
    """How the weights came about: what those that it went on from say, and this training."""
    config, own = job.experiment.pretrain, job.experiment.world_model
    assert isinstance(own, SmallWorldModelConfig), "checked before anything was recorded"
    begun = pretrained_path(own.pretrained)
    before = load_tensors(begun)[1].get("made", f"{begun.name}, which does not say how it was made") if begun else ""
    fit = config.world_model.fit
    this = (
        f"wmpo pretrain at {commit()}, seed {job.seed}: {config.num_episodes} episodes of play of {config.num_steps} "
        f"actions in each of {num_tasks} tasks, {fit.num_steps} steps of {fit.batch_size}, rate {fit.learning_rate:g}"
    )
    return f"{before}. Then {this}" if before else this


def _record(job: Job, task: str, number: int) -> None:
    config, root = job.experiment.pretrain, job.dataset(task)
    if num_episodes(root) >= config.num_episodes:
        return
    env_config = job.simulator.with_task(task)
    seeds = start_seeds("pretraining", job.seed, 1000 * number, config.num_episodes)
    with SimulatedEnv(env_config, chunk_size=1, max_chunks=config.num_steps, frame_stride=1, ledger=None) as env:
        played = env.play_around(seeds, num_steps=config.num_steps)
    episodes = [
        Episode(
            frames=frames, actions=actions, solved_at=solved_at,
            instruction=env_config.instructions[0], start=seed, episode_id=seed, policy="play", views=env_config.views,
        )
        for seed, (frames, actions, solved_at) in zip(seeds, played, strict=True)
    ]  # fmt: skip
    append_episodes(root, episodes, fps=job.fps)


def _world_model(job: Job, learn: list[Episode], held_out: list[Episode], log: StageLog) -> SmallWorldModel:
    experiment, folder = job.experiment, job.root
    config, own = experiment.pretrain, experiment.world_model
    assert isinstance(own, SmallWorldModelConfig), "checked before anything was recorded"
    scratch = pretrained_path(own.pretrained) is None
    tokenizer = _tokenizer(job, learn) if scratch else experiment.tokenizer.build()  # pretrained weights bring theirs
    job.seed_torch(3)
    net = small_world_model(job, own, tokenizer)
    chunk_size = experiment.policy.chunk_size
    training = flow_matching(net, learn, [], config.world_model, chunk_size=chunk_size, seed=job.seed)
    train_and_check(
        training, net, held_out, config.world_model,
        chunk_size=chunk_size, seed=job.seed, checkpoint=folder.checkpoint("pretrain-world-model"), log=log,
    )  # fmt: skip
    return net


def _tokenizer(job: Job, learn: list[Episode]) -> Tokenizer:
    """Trained once; an interrupted stage goes on with the one that is there."""
    if not job.root.model("tokenizer").exists():
        job.seed_torch(2)
        tokenizer, config = job.experiment.tokenizer.build(), job.experiment.pretrain.tokenizer
        checkpoint = job.root.checkpoint("pretrain-tokenizer")
        train_tokenizer(tokenizer, learn, config, seed=job.seed, checkpoint=checkpoint, log=job.log("tokenizer"))
        models.save_tokenizer(job.root, tokenizer)
    return models.load_tokenizer(job.root)
