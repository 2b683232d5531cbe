"""A miniature OpenVLA checkpoint with random weights, under the published names and with the published files."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from wmpo.policy.prismatic import DINO, SIGLIP

SIZE, PATCH, GRID, HEADS = 28, 14, 2, 16  # both published towers have 16 heads, which no weight shows
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 64 + 256 + 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 320,
    "tie_word_embeddings": False,
}  # fmt: skip
STATISTICS = {
    "square": {"action": {"q01": [-0.5, 0.0, -1.0], "q99": [0.5, 2.0, 1.0], "mask": [True, True, False]}},
    "coffee": {"action": {"q01": [0.0, 0.0, 0.0], "q99": [1.0, 1.0, 1.0]}},
}
WORDS = ["<unk>", "<s>", "</s>", "▁", "in", "out", "open", "shut", "the", "drawer", "slowly", "what", "action", "robot"]


def vit(prefix: str, dim: int, depth: int, hidden: int, registers: int) -> dict[str, Tensor]:
    """Random weights under the names of timm, as published checkpoints hold them."""
    shapes = {"patch_embed.proj.weight": (dim, 3, PATCH, PATCH), "patch_embed.proj.bias": (dim,)}
    shapes |= {"pos_embed": (1, GRID * GRID, dim), "norm.weight": (dim,), "norm.bias": (dim,)}
    shapes |= (
        {"cls_token": (1, 1, dim), "reg_token": (1, registers, dim)} if registers else {"attn_pool.q.bias": (dim,)}
    )
    for block in range(depth):
        linear = {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (hidden, dim),
            "mlp.fc2": (dim, hidden),
        }
        for name, shape in (linear | {"norm1": (dim,), "norm2": (dim,)}).items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        if registers:
            shapes |= {f"blocks.{block}.ls{i}.scale_factor": (dim,) for i in (1, 2)}
    return {prefix + name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def published_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = vit(DINO, 32, 3, 128, registers=4) | vit(SIGLIP, 48, 4, 40, registers=0)
    for name, shape in {"fc1": (320, 80), "fc2": (32, 320), "fc3": (32, 32)}.items():
        tensors[f"projector.{name}.weight"] = 0.1 * torch.randn(shape)
        tensors[f"projector.{name}.bias"] = 0.1 * torch.randn(shape[0])
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    state = {name: tensor * (8 if tensor.dim() == 2 else 1) for name, tensor in llama.state_dict().items()}
    return tensors | {f"language_model.{name}": tensor for name, tensor in state.items()}


def write_checkpoint(folder: Path) -> Path:
    """Two shards with an index, and the JSON files that come with openvla-7b."""
    tensors = published_tensors()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:30], "model-00002-of-00002.safetensors": names[30:]}
    for shard, part in shards.items():
        save_file({name: tensors[name].contiguous() for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    config = {
        "model_type": "openvla", "text_config": {"model_type": "llama", **TEXT},
        "pad_to_multiple_of": 64, "n_action_bins": 256,
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "image_resize_strategy": "resize-naive", "norm_stats": {"bridge": STATISTICS["coffee"]},
    }  # fmt: skip
    pictures = {
        "input_sizes": [[3, SIZE, SIZE]] * 2, "image_resize_strategy": "resize-naive",
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]], "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
    }  # fmt: skip
    files = {
        "config.json": config, "preprocessor_config.json": pictures, "dataset_statistics.json": STATISTICS,
        "model.safetensors.index.json": {"weight_map": weight_map},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
