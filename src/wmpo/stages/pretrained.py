"""Weights that a run begins with: those of a pretrained small world model, and whether they fit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from wmpo.checkpoint import load_into, load_tensors
from wmpo.config import Experiment
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.policy.small import SmallPolicyConfig
from wmpo.policy.small_flow import SmallFlowPolicyConfig
from wmpo.reward.small import SmallRewardConfig
from wmpo.world_model.opensora import OpenSoraWorldModelConfig
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.tokenizer import TokenizerConfig

SHIPPED = Path(__file__).parent.parent / "pretrained"


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
