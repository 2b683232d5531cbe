"""Local Hugging Face folders: their JSON files and safetensors shards. Nothing is downloaded, nothing can run code."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_INDEX, _SINGLE = "{stem}.safetensors.index.json", "{stem}.safetensors"


@contextmanager
def libraries() -> Iterator[None]:
    """Around the imports of an adapter: ValueError with the fix where transformers, diffusers or peft is missing."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{error.name or error} is needed here; install it with: pip install 'wmpo[hf]'") from error


class WeightFolder:
    """A folder with ``config.json`` and ``STEM.safetensors``, or shards named by ``STEM.safetensors.index.json``.

    Raises ValueError that names the missing or damaged file.
    """

    def __init__(self, path: str | Path, stem: str = "model") -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise ValueError(
                f"{self.path} is not a folder; download the checkpoint and name its folder (--policy.folder, "
                "--world-model.folder, --world-model.vae, --reward.folder)"
            )
        index, single = (self.path / name.format(stem=stem) for name in (_INDEX, _SINGLE))
        if index.exists():
            self._shard_of = dict(_read(index)["weight_map"])
        elif single.exists():
            with _opened(single) as file:
                self._shard_of = dict.fromkeys(file.keys(), single.name)
        else:
            raise ValueError(
                f"{self.path} has neither {index.name} nor {single.name}; weights as .bin or .pt are refused because "
                "they can run code: convert them with safetensors"
            )
        missing = sorted({name for name in self._shard_of.values() if not (self.path / name).exists()})
        if missing:
            raise ValueError(f"{self.path} lacks {', '.join(missing)}, named by {index.name}; download it again")

    def json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        """The content of a JSON file; {} for an optional one that is not there."""
        path = self.path / name
        if optional and not path.exists():
            return {}
        return _read(path)

    def begin_copy(self, target: str | Path) -> Path:
        """A folder with all files but the weights, which the caller writes. Raises ValueError if it is this one."""
        target = Path(target)
        if target.resolve() == self.path.resolve():
            raise ValueError(f"{target} is the folder that the policy was read from; name another one")
        target.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if path.is_file() and path.name not in self._shard_of.values():
                shutil.copyfile(path, target / path.name)
        return target

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def names(self) -> list[str]:
        return sorted(self._shard_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, without reading it."""
        if name not in self._shard_of:
            raise ValueError(f"{self.path} has no tensor {name}; it belongs to another architecture")
        with _opened(self.path / self._shard_of[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def shards(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """File name and tensors of one shard after the other, so that only one is in memory twice."""
        for shard, names in self._by_shard():
            with _opened(self.path / shard) as file:
                yield shard, {name: file.get_tensor(name) for name in names}

    def _by_shard(self) -> list[tuple[str, list[str]]]:
        names = defaultdict(list)
        for tensor, shard in self._shard_of.items():
            names[shard].append(tensor)
        for shard, own in names.items():
            with _opened(self.path / shard) as file:
                absent = sorted(set(own) - set(file.keys()))
            if absent:
                raise ValueError(f"{self.path / shard} lacks {', '.join(absent[:3])}; download it again")
        return sorted(names.items())


class Headers(WeightFolder):
    """The same, but of the weights only names and shapes are read (tensors of torch's ``meta`` device): a loader finds
    what does not fit, in seconds and without memory."""

    def shards(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for shard, names in self._by_shard():
            with _opened(self.path / shard) as file:
                yield shard, {n: torch.empty(file.get_slice(n).get_shape(), device="meta") for n in names}


def compare(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], where: object) -> None:
    """Raises ValueError that names the first tensors that are missing, unknown or of another shape."""
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        shown = "; ".join(f"{n}: expected {expected.get(n)}, found {found.get(n)}" for n in wrong[:3])
        raise ValueError(f"{where} belongs to another architecture: {len(wrong)} tensors differ ({shown})")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path} does not exist; the folder is not a complete checkpoint")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    return content
