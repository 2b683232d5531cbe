"""``imagination.py --full``: published sizes with random weights. Speed, memory, share of the product ceiling."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from wmpo.nn import best_device
from wmpo.noise import row_normal
from wmpo.world_model.opensora import OpenSoraWorldModel, OpenSoraWorldModelConfig
from wmpo.world_model.stdit import Sizes

CHUNK, ACTIONS = 8, 7
TINY = Sizes(width=16, depth=2, num_heads=2, mlp_width=24)


def measure_full(rows: int, *, tiny: bool, compiled: bool) -> dict[str, Any]:
    """One chunk of ``rows`` episodes, in groups of eight that begin alike, then the next."""
    torch.manual_seed(0)
    model = _model(tiny, compiled)
    device, size = best_device(), model.image_size
    starts = torch.randint(0, 256, (-(-rows // 8), 1, size, size, 3), dtype=torch.uint8)
    frames = starts.repeat_interleave(8, dim=0)[:rows]
    chunk = 2 * torch.rand(rows, CHUNK, ACTIONS) - 1
    ceiling = matrix_ceiling(device, 256 if tiny else 8192)
    found: dict[str, Any] = {"rows": rows, "compiled": compiled, "matrix_tflops": ceiling, "ways": []}
    ways = [("30 Euler steps", 0, None), *((f"{n} shortcut steps", n, [CHUNK - 1]) for n in (4, 2, 1))]
    for name, steps, shown in ways:
        model.config = replace(model.config, shortcut_steps=steps)

        def imagine(shown: list[int] | None = shown) -> None:
            context = model.begin(frames)
            for number in range(2):
                noise = row_normal(0, "full", range(rows), number, model.noise_shape(CHUNK))
                _, context = model.imagine(context, chunk, noise, shown)

        found["ways"].append(
            {"name": name, "decoded": "last frame" if shown else "all"} | _timed(imagine, device, rows, ceiling)
        )
    return found


def _timed(imagine: Callable[[], None], device: torch.device, rows: int, ceiling: float) -> dict[str, float | None]:
    imagine()  # compiles, and chooses kernels
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        imagine()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    imagine()
    seconds = time.perf_counter() - begun
    tflops = counter.get_total_flops() / 1e12
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "seconds": seconds, "frames_per_second": 2 * rows * CHUNK / seconds, "tflop": tflops,
        "share_of_ceiling": tflops / seconds / ceiling, "peak_gib": memory,
    }  # fmt: skip


def matrix_ceiling(device: torch.device, size: int) -> float:
    """TFLOP/s of large bfloat16 products."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    a @ a
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(20):
        b = a @ a
    b[0, 0].item()
    return 20 * 2 * size**3 / (time.perf_counter() - begun) / 1e12


def _model(tiny: bool, compiled: bool) -> OpenSoraWorldModel:
    """The autoencoder has the levels of SDXL's."""
    from diffusers import AutoencoderKL

    levels = (8, 8, 8, 8) if tiny else (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=levels, norm_num_groups=4 if tiny else 32, layers_per_block=1 if tiny else 2,
        latent_channels=4, scaling_factor=0.13025, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        vae.save_pretrained(Path(folder))
        config = OpenSoraWorldModelConfig(vae=folder, sizes=TINY if tiny else Sizes(), compile=compiled)
        return config.build(-torch.ones(ACTIONS), torch.ones(ACTIONS), 32 if tiny else 256)
