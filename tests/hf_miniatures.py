"""Miniatures of published folders with random weights: the autoencoder of SDXL and VideoMAE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs the extra hf: pip install 'wmpo[hf]'")
transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'wmpo[hf]'")

VIDEOMAE = {
    "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "patch_size": 16, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16, "initializer_range": 0.3,
}  # fmt: skip


def write_autoencoder(folder: Path) -> Path:
    """The layout of stable-diffusion-xl-base-1.0/vae, four levels as there."""
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4,
        scaling_factor=0.13025, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_videomae(folder: Path) -> Path:
    """As MCG-NJU/videomae-base: 16 frames, with the decoder of its pretraining and without a classifier."""
    torch.manual_seed(0)
    settings = transformers.VideoMAEConfig(num_frames=16, **VIDEOMAE)
    transformers.VideoMAEForPreTraining(settings).save_pretrained(folder)
    return folder
