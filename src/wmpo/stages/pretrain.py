"""Pretraining of tokenizer and world model over many other tasks: the paper's Open X-Embodiment at laptop scale.

The arm, the table and contact look alike in all of Meta-World, so a model that has seen them needs only to be aligned
to a new task. No episode of an excluded task is used. The result is shipped with the package; this remakes it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from wmpo.checkpoint import load_into, load_tensors, save_tensors
from wmpo.config import Experiment
from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes, num_episodes, read_episodes
from wmpo.data.splits import start_seeds
from wmpo.envs.metaworld import MetaWorldConfig, all_tasks
from wmpo.envs.simulated import SimulatedEnv
from wmpo.policy.small import SmallPolicyConfig
from wmpo.policy.small_flow import SmallFlowPolicyConfig
from wmpo.report.run import StageLog
from wmpo.reward.small import SmallRewardConfig
from wmpo.stages import models
from wmpo.stages.job import Job, commit, finish
from wmpo.train.tokenizer import train_tokenizer
from wmpo.train.world_model import flow_matching, train_and_check
from wmpo.world_model.opensora import OpenSoraWorldModelConfig
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.tokenizer import TokenizerConfig

SHIPPED = Path(__file__).parent.parent / "pretrained"


def pretrain(job: Job) -> None:
    """Records play in many tasks, then trains tokenizer and world model on it, or goes on from those that
    ``world_model.pretrained`` names; resumable like any stage."""
    log, config, folder = job.log("pretrain"), job.experiment.pretrain, job.root
    if not isinstance(job.experiment.env, MetaWorldConfig):
        raise ValueError("wmpo pretrain plays the tasks of Meta-World; begin with a recipe of it, such as quickstart")
    if not isinstance(job.experiment.world_model, SmallWorldModelConfig):
        raise ValueError("wmpo pretrain makes small world models; an OpenSora one begins with published weights")
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
        "tasks": tasks, "commit": commit(), "seed": job.seed,
    }  # fmt: skip
    # half precision: half the download, and far below the differences that training noise makes; buffers are exact
    matrices = {name for name, parameter in net.named_parameters() if parameter.dim() > 1}
    half = {k: t.bfloat16() if k in matrices else t for k, t in net.state_dict().items()}
    save_tensors(folder.model("pretrained"), half, header)
    finish(log, {"tasks": tasks, "episodes": len(learn) + len(held_out)}, f"{folder.model('pretrained')}")


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
    config = experiment.pretrain
    assert isinstance(experiment.world_model, SmallWorldModelConfig), "checked before anything was recorded"
    job.seed_torch(2)
    tokenizer, begun = experiment.tokenizer.build(), pretrained_path(experiment.world_model.pretrained)
    if begun is None and not folder.model("tokenizer").exists():
        checkpoint = folder.checkpoint("pretrain-tokenizer")
        train_tokenizer(
            tokenizer, learn, config.tokenizer, seed=job.seed, checkpoint=checkpoint, log=job.log("tokenizer")
        )
        models.save_tokenizer(folder, tokenizer)
    job.seed_torch(3)
    bounds = -torch.ones(job.action_dim), torch.ones(job.action_dim)
    if begun is None:
        tokenizer = models.load_tokenizer(folder)
    net = experiment.world_model.build(tokenizer, *bounds, experiment.env.image_size // 4, experiment.env.views)
    if begun is not None:
        load_pretrained(begun, net)
    chunk_size = experiment.policy.chunk_size
    training = flow_matching(net, learn, [], config.world_model, chunk_size=chunk_size, seed=job.seed)
    train_and_check(
        training, net, held_out, config.world_model,
        chunk_size=chunk_size, seed=job.seed, checkpoint=folder.checkpoint("pretrain-world-model"), log=log,
    )  # fmt: skip
    return net


def pretrained_path(name: str) -> Path | None:
    """None for "none"; a name of a shipped model, or a path. Raises ValueError when there is no such file."""
    if name == "none":
        return None
    shipped = SHIPPED / f"{name}.safetensors"
    path = shipped if shipped.exists() else Path(name)
    if not path.exists():
        names = [p.stem for p in SHIPPED.glob("*.safetensors")]
        raise ValueError(f"world_model.pretrained: {name!r} is neither a file nor one of {', '.join([*names, 'none'])}")
    return path


def check_weights(experiment: Experiment) -> None:
    """Raises ValueError when weights that the run begins with are missing, or were made for other pictures or sizes."""
    for config in (experiment.policy, experiment.world_model, experiment.reward):
        if isinstance(config, OpenSoraWorldModelConfig):
            config.check_weights(experiment.env.action_dim)
        elif not isinstance(
            config, SmallPolicyConfig | SmallFlowPolicyConfig | SmallWorldModelConfig | SmallRewardConfig
        ):
            config.check_weights()
    check_pretrained(experiment)


def check_pretrained(experiment: Experiment) -> None:
    """Raises ValueError when pretrained small models are missing, or were made for other pictures or sizes."""
    model = experiment.world_model
    path = pretrained_path(model.pretrained) if isinstance(model, SmallWorldModelConfig) else None
    if path is None:
        return
    _, header = load_tensors(path)
    if header.get("kind") != "world_model" or "env" not in header:
        raise ValueError(f"{path} was not made by wmpo pretrain; use such a file, or --world-model.pretrained none")
    if header["action_dim"] != experiment.env.action_dim:
        raise ValueError(
            f"{path} was pretrained with {header['action_dim']}-D actions, but those of {experiment.env.task} are "
            f"{experiment.env.action_dim}-D; use --world-model.pretrained none"
        )
    wanted = {
        "env": {k: v for k, v in asdict(experiment.env).items() if k not in ("task", "more_tasks")},
        "world_model": {k: v for k, v in asdict(experiment.world_model).items() if k not in _FREE},
        "tokenizer": {k: v for k, v in asdict(experiment.tokenizer).items() if k not in _FREE},
    }
    since = asdict(type(experiment.env)()) if isinstance(experiment.env, MetaWorldConfig) else {}  # fields added later
    found = {
        "env": since | header["env"],
        "world_model": header["config"],
        "tokenizer": asdict(TokenizerConfig.of(header["tokenizer"])),
    }
    differing = [
        f"{part}.{key} {found[part].get(key)} there, {value} here"
        for part, settings in wanted.items()
        for key, value in settings.items()
        if _plain(found[part].get(key)) != _plain(value)
    ]
    if differing:
        raise ValueError(
            f"{path} was pretrained with other settings ({'; '.join(differing)}); use --world-model.pretrained none"
        )


_FREE = ("pretrained", "euler_steps", "start_noise", "latent_noise", "frame_actions")
"""Settings that change no weight's shape, and of no chunk of one frame the meaning."""


def load_pretrained(path: Path, net: SmallWorldModel) -> None:
    """Fills in weights, tokenizer included."""
    tensors, _ = load_tensors(path)
    load_into(net, {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, path)


def _plain(value: object) -> object:
    """Camera settings as JSON has them."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
