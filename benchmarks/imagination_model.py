"""The miniature of ``imagination.py``: autoencoder and transformer of the published kinds, trained in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pushing_scene import SIZE, Windows, play
from torch import Tensor, nn

import wmpo.nn
from wmpo.checkpoint import load_tensors, save_tensors
from wmpo.nn import to_unit
from wmpo.noise import torch_generator
from wmpo.report.run import RunFolder, StageLog
from wmpo.rng import keyed
from wmpo.train.distill import DistillConfig, distill_world_model
from wmpo.train.fit import Batches, FitConfig, Part, Training, fit
from wmpo.world_model import flow
from wmpo.world_model.opensora import OpenSoraWorldModel, OpenSoraWorldModelConfig
from wmpo.world_model.stdit import Sizes

CHUNK, CONTEXT = 4, 2
"""Frames of a chunk and of the context; the paper has 8 and 4."""
SIZES = Sizes(width=64, depth=2, num_heads=4, mlp_width=256)
VAE_LEVELS = (8, 16, 16)


def trained(folder: Path, steps: tuple[int, int, int], num_episodes: int) -> tuple[OpenSoraWorldModel, dict[str, Any]]:
    """The model, and what its training took. Goes on where it was interrupted."""
    wmpo.nn.has_fast_bf16 = lambda device: device.type == "cuda"  # such small products are slower in bfloat16
    run, about = RunFolder(folder), {"steps": list(steps), "episodes": num_episodes}
    episodes = play(num_episodes, 1, 24, seed=0)
    vae = folder / "vae"
    if not (vae / "config.json").exists():
        _timed(about, "autoencoder", lambda: _autoencoder(run, vae, episodes.frames, steps[0]))
    torch.manual_seed(1)
    config = OpenSoraWorldModelConfig(vae=str(vae), sizes=SIZES, num_context=CONTEXT)
    model = config.build(-torch.ones(2), torch.ones(2), SIZE)
    windows = Windows(model.encode(episodes.frames), episodes.actions, CONTEXT, CHUNK)

    def flow_batch(step: int) -> Part:
        generator = torch_generator(0, "flow/noise", step)
        latents, actions = windows.sample(keyed(0, "flow/batch", step), recipe.batch_size)
        time = flow.logit_normal_time(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator)
        return lambda rows: model(latents[rows], actions[rows], noise[rows], time[rows]).mean()

    recipe = FitConfig(num_steps=steps[1], batch_size=8, learning_rate=2e-3, ema=0.99)
    _stage(run, model, about, "flow", lambda log, path: _fit(model, flow_batch, recipe, path, log))
    distil = DistillConfig(fit=FitConfig(num_steps=steps[2], batch_size=8, learning_rate=1e-3, ema=0.99))
    _stage(run, model, about, "distil",
           lambda log, path: distill_world_model(model, windows, distil, seed=0, checkpoint=path, log=log))  # fmt: skip
    return model.eval(), about


def _stage(
    run: RunFolder, model: nn.Module, about: dict[str, Any], name: str, train: Callable[[StageLog, Path], object]
) -> None:
    """Runs one training unless its weights are there."""
    path = run.model(name)
    if not path.exists():
        _timed(about, name, lambda: train(StageLog(run, name), run.checkpoint(name)))
        save_tensors(path, model.state_dict(), about)
    tensors, header = load_tensors(path)
    model.load_state_dict(tensors)
    about |= header


def _fit(model: nn.Module, batches: Batches, recipe: FitConfig, path: Path, log: StageLog) -> None:
    fit(Training(model, batches, recipe), recipe, checkpoint=path, log=log)


def _timed(about: dict[str, Any], name: str, train: Callable[[], object]) -> None:
    begun = time.process_time()
    train()
    about[f"{name}_processor_seconds"] = round(time.process_time() - begun, 1)


def _autoencoder(run: RunFolder, folder: Path, frames: Tensor, num_steps: int) -> None:
    """Levels of SDXL's kind; frames and latents of unit variance."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=VAE_LEVELS, norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    flat = frames.flatten(0, 1)

    def batch(step: int) -> Part:
        rng, generator = keyed(0, "vae/batch", step), torch_generator(0, "vae/noise", step)
        images = to_unit(flat[torch.from_numpy(rng.integers(len(flat), size=16))])
        mean = vae.encode(images).latent_dist.mean
        apart = vae.decode(mean + 0.05 * torch.randn(mean.shape, generator=generator)).sample - images
        return lambda rows: apart.abs().mean() + 4 * apart.square().mean() + 1e-3 * mean.square().mean()

    recipe = FitConfig(num_steps=num_steps, learning_rate=4e-3, ema=0.98)
    _fit(vae, batch, recipe, run.checkpoint("vae"), StageLog(run, "vae"))
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_unit(part)).latent_dist.mean for part in flat[::8].split(64)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(folder)
