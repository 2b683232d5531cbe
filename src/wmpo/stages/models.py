"""The run's networks on disk: weights with everything that is needed to build and use them again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wmpo.checkpoint import load_into, load_tensors, save_tensors
from wmpo.config import from_json
from wmpo.policy.codec import ActionCodec
from wmpo.policy.small import SmallPolicy, SmallPolicyConfig
from wmpo.report.run import RunFolder
from wmpo.reward.small import SmallReward, SmallRewardConfig
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.tokenizer import Tokenizer, TokenizerConfig


def save_policy(folder: RunFolder, name: str, policy: SmallPolicy, instruction: str) -> None:
    header = {
        "kind": "policy",
        "config": asdict(policy.config),
        "codec": asdict(policy.codec),
        "image_size": policy.image_size,
        "instruction": instruction,
    }
    save_tensors(folder.model(name), policy.state_dict(), header)


def load_policy(folder: RunFolder, name: str) -> SmallPolicy:
    return open_policy(folder.model(name))[0]


def open_policy(path: Path) -> tuple[SmallPolicy, str]:
    """A policy and the sentence it was trained with. Raises ValueError when the file is missing or holds none."""
    tensors, header = _open(path, "policy")
    codec = header["codec"] | {"low": tuple(header["codec"]["low"]), "high": tuple(header["codec"]["high"])}
    policy = from_json(SmallPolicyConfig, header["config"]).build(ActionCodec(**codec), header["image_size"])
    load_into(policy, tensors, path)
    return policy.eval(), header["instruction"]


def save_tokenizer(folder: RunFolder, tokenizer: Tokenizer) -> None:
    save_tensors(
        folder.model("tokenizer"), tokenizer.state_dict(), {"kind": "tokenizer", "config": asdict(tokenizer.config)}
    )


def load_tokenizer(folder: RunFolder) -> Tokenizer:
    tensors, header = _open(folder.model("tokenizer"), "tokenizer")
    tokenizer = from_json(TokenizerConfig, header["config"]).build()
    load_into(tokenizer, tensors, folder.model("tokenizer"))
    return tokenizer.eval()


def save_world_model(folder: RunFolder, model: SmallWorldModel) -> None:
    header = {
        "kind": "world_model",
        "config": asdict(model.config),
        "tokenizer": asdict(model.tokenizer.config),
        "action_dim": len(model.action_low),
        "grid": model.grid,
    }
    save_tensors(folder.model("world_model"), model.state_dict(), header)


def load_world_model(folder: RunFolder) -> SmallWorldModel:
    tensors, header = _open(folder.model("world_model"), "world_model")
    bounds = torch.zeros(header["action_dim"]), torch.ones(header["action_dim"])  # the real ones are among the weights
    tokenizer = from_json(TokenizerConfig, header["tokenizer"]).build()
    model = from_json(SmallWorldModelConfig, header["config"]).build(tokenizer, *bounds, header["grid"])
    load_into(model, tensors, folder.model("world_model"))
    return model.eval()


def save_reward(folder: RunFolder, model: SmallReward) -> None:
    header = {
        "kind": "reward",
        "config": asdict(model.config),
        "image_size": model.image_size,
        "threshold": model.threshold,
    }
    save_tensors(folder.model("reward"), model.state_dict(), header)


def load_reward(folder: RunFolder) -> SmallReward:
    tensors, header = _open(folder.model("reward"), "reward")
    model = from_json(SmallRewardConfig, header["config"]).build(header["image_size"])
    load_into(model, tensors, folder.model("reward"))
    model.threshold = header["threshold"]
    return model.eval()


def _open(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, header = load_tensors(path)
    if header.get("kind") != kind:
        raise ValueError(f"{path} holds a {header.get('kind')}, not a {kind}")
    return tensors, header
