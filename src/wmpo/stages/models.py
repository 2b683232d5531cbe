"""The run's networks on disk: weights with everything that is needed to build and use them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wmpo.checkpoint import load_into, load_tensors, save_tensors
from wmpo.config import PolicyConfig, RewardConfig, WorldModelConfig, from_json, to_json
from wmpo.protocols import PolicyNet
from wmpo.report.run import RunFolder
from wmpo.reward.vlm_judge import VLMJudge
from wmpo.train.reward import RewardNet
from wmpo.train.world_model import WorldModelNet
from wmpo.world_model.tokenizer import Tokenizer, TokenizerConfig


def save_policy(folder: RunFolder, name: str, policy: PolicyNet, instructions: Sequence[str]) -> None:
    header = {"kind": "policy", "instructions": instructions, **policy.about()}
    save_tensors(folder.model(name), policy.state_dict(), header)


def load_policy(folder: RunFolder, name: str) -> PolicyNet:
    return open_policy(folder.model(name))[0]


def open_policy(path: Path) -> tuple[PolicyNet, tuple[str, ...]]:
    """A policy and the sentences it was trained with. Raises ValueError when the file is missing or holds none."""
    tensors, header = _open(path, "policy")
    policy = _filled(from_json(PolicyConfig, header["config"]).restore(header), tensors, path)
    return policy, tuple(header.get("instructions") or (header["instruction"],))  # older files have one


def save_tokenizer(folder: RunFolder, tokenizer: Tokenizer) -> None:
    header = {"kind": "tokenizer", "config": to_json(tokenizer.config)}
    save_tensors(folder.model("tokenizer"), tokenizer.state_dict(), header)


def load_tokenizer(folder: RunFolder) -> Tokenizer:
    tensors, header = _open(folder.model("tokenizer"), "tokenizer")
    return _filled(TokenizerConfig.of(header["config"]).build(), tensors, folder.model("tokenizer"))


def save_world_model(folder: RunFolder, model: WorldModelNet) -> None:
    save_tensors(folder.model("world_model"), model.state_dict(), {"kind": "world_model", **model.about()})


def load_world_model(folder: RunFolder) -> WorldModelNet:
    tensors, header = _open(folder.model("world_model"), "world_model")
    return _filled(from_json(WorldModelConfig, header["config"]).restore(header), tensors, folder.model("world_model"))


def save_reward(folder: RunFolder, model: RewardNet | VLMJudge) -> None:
    """Of a vision-language model only its threshold is kept: no weight of it is trained."""
    weights = {} if isinstance(model, VLMJudge) else model.state_dict()
    save_tensors(folder.model("reward"), weights, {"kind": "reward", **model.about()})


def load_reward(folder: RunFolder) -> RewardNet | VLMJudge:
    tensors, header = _open(folder.model("reward"), "reward")
    model = from_json(RewardConfig, header["config"]).restore(header)
    return model if isinstance(model, VLMJudge) else _filled(model, tensors, folder.model("reward"))


def _filled(net: Any, tensors: dict[str, torch.Tensor], path: Path) -> Any:
    load_into(net, tensors, path)
    return net.eval()


def _open(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, header = load_tensors(path)
    if header.get("kind") != kind:
        raise ValueError(f"{path} holds a {header.get('kind')}, not a {kind}")
    return tensors, header
