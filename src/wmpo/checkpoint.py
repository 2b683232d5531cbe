"""Weights and training state on disk: safetensors with a JSON header, written atomically. Nothing here can run code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn


def write_atomic(path: Path, content: bytes) -> None:
    """A reader sees the old file or the whole new one, never a part, also after a crash or on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises ValueError that names the file when it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to run that step again") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """``header`` is any JSON; it travels inside the file, so weights and configuration cannot be separated."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_atomic(path, save(plain, metadata={"wmpo": json.dumps(header)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header. Raises ValueError that names the file when it is missing, damaged or of another program."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; run the stage that makes it")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["wmpo"])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a checkpoint of wmpo, or is damaged ({error})") from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Like load_state_dict, but the error names the file and the first parameters that do not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        shown = "; ".join(f"{n}: expected {expected.get(n)}, found {found.get(n)}" for n in wrong[:3])
        raise ValueError(f"{path} belongs to another configuration: {len(wrong)} parameters differ ({shown})")
    module.load_state_dict(dict(tensors))


class Stateful(Protocol):
    """The part of :class:`torch.nn.Module` that checkpoints need."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...


def pack_training(module: Stateful, optimizer: torch.optim.Optimizer, ema: list[Tensor]) -> dict[str, Tensor]:
    """Model, AdamW moments and averaged weights as one flat dictionary."""
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors | {f"ema.{i}": tensor for i, tensor in enumerate(ema)}


def unpack_training(tensors: Mapping[str, Tensor], module: Stateful, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The inverse of :func:`pack_training`; returns the averaged weights."""
    part = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    module.load_state_dict(part)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            like = parameters[int(index)]
            # fused AdamW pairs numbers by address: moments must be laid out like weights
            if tensor.shape == like.shape:
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    count = sum(name.startswith("ema.") for name in tensors)
    return [tensors[f"ema.{i}"].clone() for i in range(count)]
