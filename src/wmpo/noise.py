"""Noise for networks, from the keyed generators of :mod:`wmpo.rng`, which processes without PyTorch use too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wmpo.rng import keyed


def row_normal(seed: int, purpose: str, rows: Sequence[int], chunk: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise [len(rows), *shape], each row from its own generator."""
    out = np.empty((len(rows), *shape), dtype=np.float32)
    for i, row in enumerate(rows):
        keyed(seed, purpose, row, chunk).standard_normal(out=out[i], dtype=np.float32)
    return torch.from_numpy(out)


def row_gumbel(seed: int, purpose: str, rows: Sequence[int], chunk: int, shape: Sequence[int]) -> Tensor:
    """Standard Gumbel noise [len(rows), *shape]: argmax(logits + gumbel) is a sample of softmax(logits)."""
    out = np.empty((len(rows), *shape), dtype=np.float32)
    for i, row in enumerate(rows):
        keyed(seed, purpose, row, chunk).standard_exponential(out=out[i], dtype=np.float32)
    return -torch.log(torch.from_numpy(out).clamp_(min=1e-20))


def torch_generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """A CPU torch generator, for draws inside a training step."""
    draw = int(keyed(seed, purpose, *keys).integers(2**62))
    return torch.Generator().manual_seed(draw)
