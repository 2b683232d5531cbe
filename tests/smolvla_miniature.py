"""A miniature SmolVLA checkpoint with random weights, under the published names and with the published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor

WIDE, EXPERT, INNER, HEADS, KV, HEAD_DIM, LAYERS = 32, 24, 40, 4, 2, 8, 4
PICTURE, PATCH, SHUFFLE, VISION = 32, 8, 2, 24
ACTIONS, MAX_ACTIONS, STATES, CHUNK = 3, 6, 5, 6
WORDS = ["<unk>", "push", "the", "block", "slowly", "\n"]
BACKBONE: dict[str, Any] = {
    "model_type": "smolvlm", "scale_factor": SHUFFLE, "image_token_id": 5,
    "text_config": {
        "model_type": "llama", "hidden_size": WIDE, "intermediate_size": 48, "num_hidden_layers": LAYERS + 2,
        "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HEAD_DIM, "vocab_size": len(WORDS),
        "rope_theta": 100000.0, "pad_token_id": 0,
    },
    "vision_config": {
        "model_type": "smolvlm_vision", "hidden_size": VISION, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": PICTURE, "patch_size": PATCH,
    },
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "type": "smolvla", "chunk_size": CHUNK, "n_action_steps": CHUNK, "max_state_dim": STATES,
    "max_action_dim": MAX_ACTIONS, "resize_imgs_with_padding": [PICTURE, PICTURE], "tokenizer_max_length": 8,
    "num_steps": 10, "attention_mode": "cross_attn", "num_expert_layers": -1, "num_vlm_layers": LAYERS,
    "self_attn_every_n_layers": 2, "expert_width_multiplier": 0.75, "min_period": 0.004, "max_period": 4.0,
    "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
}  # fmt: skip
VLM, LM_EXPERT = "model.vlm_with_expert.vlm.", "model.vlm_with_expert.lm_expert."


def llama_layer(start: str, dim: int, inner: int, source: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{start}input_layernorm.weight": (dim,),
        f"{start}post_attention_layernorm.weight": (dim,),
        f"{start}self_attn.q_proj.weight": (HEADS * HEAD_DIM, dim),
        f"{start}self_attn.k_proj.weight": (KV * HEAD_DIM, source),
        f"{start}self_attn.v_proj.weight": (KV * HEAD_DIM, source),
        f"{start}self_attn.o_proj.weight": (dim, HEADS * HEAD_DIM),
        f"{start}mlp.gate_proj.weight": (inner, dim),
        f"{start}mlp.up_proj.weight": (inner, dim),
        f"{start}mlp.down_proj.weight": (dim, inner),
    }


def vision_layer(start: str) -> dict[str, tuple[int, ...]]:
    linear = {f"self_attn.{n}_proj": (VISION, VISION) for n in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (32, VISION), "mlp.fc2": (VISION, 32), "layer_norm1": (VISION,), "layer_norm2": (VISION,)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linear.items():
        shapes |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
    return shapes


def published_shapes() -> dict[str, tuple[int, ...]]:
    vision = f"{VLM}model.vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}embeddings.patch_embedding.weight": (VISION, 3, PATCH, PATCH),
        f"{vision}embeddings.patch_embedding.bias": (VISION,),
        f"{vision}embeddings.position_embedding.weight": ((PICTURE // PATCH) ** 2, VISION),
        f"{vision}post_layernorm.weight": (VISION,),
        f"{vision}post_layernorm.bias": (VISION,),
        f"{VLM}model.connector.modality_projection.proj.weight": (WIDE, VISION * SHUFFLE**2),
        f"{VLM}model.text_model.embed_tokens.weight": (len(WORDS), WIDE),
        f"{VLM}model.text_model.norm.weight": (WIDE,),
        f"{VLM}lm_head.weight": (len(WORDS), WIDE),
        f"{LM_EXPERT}norm.weight": (EXPERT,),
    }
    for i in range(2):
        shapes |= vision_layer(f"{vision}encoder.layers.{i}.")
    for i in range(LAYERS):
        shapes |= llama_layer(f"{VLM}model.text_model.layers.{i}.", WIDE, 48, WIDE)
        shapes |= llama_layer(f"{LM_EXPERT}layers.{i}.", EXPERT, INNER, EXPERT if i % 2 == 0 else KV * HEAD_DIM)
    heads = {
        "state_proj": (WIDE, STATES), "action_in_proj": (EXPERT, MAX_ACTIONS), "action_out_proj": (MAX_ACTIONS, EXPERT),
        "action_time_mlp_in": (EXPERT, 2 * EXPERT), "action_time_mlp_out": (EXPERT, EXPERT),
    }  # fmt: skip
    for name, shape in heads.items():
        shapes |= {f"model.{name}.weight": shape, f"model.{name}.bias": shape[:1]}
    return shapes


def published_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        name: 0.25 * torch.randn(shape) + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, shape in published_shapes().items()
    }


def write_backbone(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BACKBONE))
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_checkpoint(folder: Path) -> Path:
    """As LeRobot 0.4 writes it, with a backbone beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(published_tensors(), folder / "model.safetensors")
    state = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    step = {"registry_name": "unnormalizer_processor", "config": {"eps": 1e-08}, "state_file": state}
    files = {
        "config.json": CONFIG,
        "policy_postprocessor.json": {"name": "policy_postprocessor", "steps": [step, {"registry_name": "device"}]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    mean, std = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 2.0, 1.0])
    save_file({"action.mean": mean, "action.std": std, "observation.state.mean": torch.zeros(2)}, folder / state)
    write_backbone(folder / "backbone")
    return folder
