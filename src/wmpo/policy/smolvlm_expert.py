"""The network of SmolVLA (arXiv 2506.01844) and where published weights live in it.

A vision-language model (SmolVLM2, its first layers only) reads picture, sentence and robot state once and keeps keys
and values of every layer. A narrower action expert then reads the noisy actions, each with the flow's time, beside
them: its layers in turn attend to kept and own tokens, or to the kept ones only through projections of its own. Actions
are causal: one does not depend on later ones, so that a shorter chunk is the beginning of a longer one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wmpo.hf import WeightFolder, compare, libraries

_VLM, _EXPERT = "model.vlm_with_expert.vlm.", "model.vlm_with_expert.lm_expert."
HOMES = {
    f"{_VLM}model.vision_model.": "vision.",
    f"{_VLM}model.connector.": "connector.",
    f"{_VLM}model.text_model.embed_tokens.": "embed.",
    f"{_VLM}model.text_model.layers.": "layers.",
    f"{_EXPERT}layers.": "expert.",
    f"{_EXPERT}norm.": "norm.",
    **{f"model.{name}.": f"{name}." for name in ("state_proj", "action_in_proj", "action_out_proj")},
    **{f"model.{name}.": f"{name}." for name in ("action_time_mlp_in", "action_time_mlp_out")},
}
"""Beginnings of published names, and of names here. The language model's own head and last norm have no home."""
UNUSED = (f"{_VLM}lm_head.", f"{_VLM}model.text_model.norm.", "normalize_", "unnormalize_")
MAX_WAVELENGTH = 10_000.0
"""Of the rotary positions, also where the language model was pretrained with another one: as in the published code."""


def home(published: str) -> str:
    """The name here of a published tensor; empty if it has none."""
    for there, here in HOMES.items():
        if published.startswith(there):
            return here + published.removeprefix(there)
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSettings:
    """What ``config.json`` says of the architecture."""

    num_layers: int
    self_attn_every: int
    min_period: float
    max_period: float

    @classmethod
    def read(cls, content: dict[str, Any], where: object) -> ExpertSettings:
        """Raises ValueError for an architecture that is not built here."""
        if "cross" not in content.get("attention_mode", "cross_attn"):
            raise ValueError(f"{where}: attention_mode {content['attention_mode']!r} is not built here, cross_attn is")
        layers, experts = content.get("num_vlm_layers", 16), content.get("num_expert_layers", -1)
        if layers < 1 or experts not in (-1, 0, layers):
            raise ValueError(
                f"{where}: num_vlm_layers {layers} and num_expert_layers {experts} must be equal (the latter may be -1)"
            )
        return cls(
            num_layers=layers,
            self_attn_every=content.get("self_attn_every_n_layers", 2),
            min_period=content.get("min_period", 4e-3),
            max_period=content.get("max_period", 4.0),
        )

    def sees_itself(self, layer: int) -> bool:
        """Whether this layer of the expert attends to its own tokens beside the kept ones."""
        return self.self_attn_every > 0 and layer % self.self_attn_every == 0


def rotate(x: Float[Tensor, "B T H d"], position: Int[Tensor, "B T"]) -> Float[Tensor, "B T H d"]:
    """Rotary positions (arXiv 2104.09864), first half of the channels paired with the second, in float32."""
    half = x.shape[-1] // 2
    wave = MAX_WAVELENGTH ** (torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = (position.unsqueeze(-1).float() / wave).unsqueeze(2)
    a, b = x.float().split(half, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "B Q T"]) -> Tensor:
    """(B, T, heads, d) with fewer heads of keys than of queries -> (B, Q, heads * d)."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (k, v))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask.unsqueeze(1))
    return out.transpose(1, 2).flatten(2)


class HeadProjections(nn.Module):
    def __init__(self, dim: int, source: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(source, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(source, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)


class GatedMLP(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(dim, inner, bias=False), nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Of Llama, under its names. ``source`` is the width of what keys and values are made of."""

    def __init__(self, dim: int, inner: int, source: int, text: Any) -> None:
        super().__init__()
        self.head_dim = text.head_dim
        self.input_layernorm = nn.RMSNorm(dim, eps=text.rms_norm_eps)
        self.self_attn = HeadProjections(dim, source, text.num_attention_heads, text.num_key_value_heads, text.head_dim)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps=text.rms_norm_eps)
        self.mlp = GatedMLP(dim, inner)

    def heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.head_dim))

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward(self, x: Tensor, position: Tensor, mask: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, D) that see ``kept`` keys and values (B, P, 2, kv_heads, d), and themselves; -> tokens, and
        their own keys and values."""
        own, seen = self.self_attn, self.input_layernorm(x)
        q = rotate(self.heads(own.q_proj(seen)), position)
        k, v = rotate(self.heads(own.k_proj(seen)), position), self.heads(own.v_proj(seen))
        mine = torch.stack([k, v.to(k.dtype)], dim=2)
        both = mine if kept is None else torch.cat([kept.to(mine.dtype), mine], dim=1)
        return self.after(x, attend(q, both[:, :, 0], both[:, :, 1], mask)), mine


class CrossLayer(Layer):
    """Sees only what is kept, through its own projections of it."""

    def forward(self, x: Tensor, position: Tensor, mask: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        assert kept is not None
        own, copies = self.self_attn, len(x) // len(kept)
        k, v = own.k_proj(kept[:, :, 0].flatten(2)), own.v_proj(kept[:, :, 1].flatten(2))
        k, v = (self.heads(part).repeat_interleave(copies, dim=0) for part in (k, v))
        q = rotate(self.heads(own.q_proj(self.input_layernorm(x))), position)
        return self.after(x, attend(q, k, v, mask)), kept


class SmolVLANet(nn.Module):
    """Sizes are read from the weights, heads from the backbone's configuration."""

    def __init__(self, folder: WeightFolder, settings: ExpertSettings, backbone: Any) -> None:
        super().__init__()
        with libraries():
            from transformers.models.smolvlm import modeling_smolvlm
        text, self.settings = backbone.text_config, settings
        expert, self.action_dim = folder.shape("model.action_in_proj.weight")
        wide = text.hidden_size
        self.state_dim = folder.shape("model.state_proj.weight")[1]
        inner = folder.shape(f"{_EXPERT}layers.0.mlp.gate_proj.weight")[0]
        self.vision: Any = modeling_smolvlm.SmolVLMVisionTransformer(backbone.vision_config)
        self.connector: Any = modeling_smolvlm.SmolVLMConnector(backbone)
        self.embed = nn.Embedding(text.vocab_size, wide)
        self.layers = nn.ModuleList(Layer(wide, text.intermediate_size, wide, text) for _ in range(settings.num_layers))
        kept = text.num_key_value_heads * text.head_dim
        self.expert = nn.ModuleList(
            Layer(expert, inner, expert, text) if settings.sees_itself(i) else CrossLayer(expert, inner, kept, text)
            for i in range(settings.num_layers)
        )
        self.norm = nn.RMSNorm(expert, eps=text.rms_norm_eps)
        self.state_proj = nn.Linear(self.state_dim, wide)
        self.action_in_proj = nn.Linear(self.action_dim, expert)
        self.action_out_proj = nn.Linear(expert, self.action_dim)
        self.action_time_mlp_in = nn.Linear(2 * expert, expert)
        self.action_time_mlp_out = nn.Linear(expert, expert)

    def read(
        self,
        pixels: Float[Tensor, "B c y x"],
        ids: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"],
        state: Float[Tensor, "B E"],
    ) -> tuple[Float[Tensor, "B X P 2 H d"], Bool[Tensor, "B P"]]:
        """Keys and values of all P tokens in the X layers, and which tokens there are. The pictures of V cameras come
        one after the other, before the sentence."""
        single = pixels.unflatten(1, (-1, 3)).flatten(0, 1)
        picture = self.connector(self.vision(pixel_values=single).last_hidden_state)
        picture = picture.unflatten(0, (len(pixels), -1)).flatten(1, 2)
        words = self.embed(ids)
        x = torch.cat([picture * picture.shape[-1] ** 0.5, words * words.shape[-1] ** 0.5], dim=1)
        x = torch.cat([x, self.state_proj(state).unsqueeze(1).to(x.dtype)], dim=1)
        real = F.pad(mask, (picture.shape[1], 1), value=True)
        position = real.cumsum(dim=1) - 1
        allowed = real.unsqueeze(1).repeat(1, real.shape[1], 1)
        allowed[:, :-1, -1] = False  # picture and sentence do not see the state
        kept = []
        for layer in self.layers:
            x, mine = layer(x, position, allowed, None)
            kept.append(mine)
        return torch.stack(kept, dim=1), real

    def velocity(
        self, kept: Tensor, real: Bool[Tensor, "B P"], actions: Float[Tensor, "M K D"], time: Float[Tensor, " M"]
    ) -> Float[Tensor, "M K D"]:
        """At M = B * J noisy chunks, those of a row after each other."""
        copies, length = len(actions) // len(real), actions.shape[1]
        x = self.action_in_proj(actions)
        clock = time_embedding(time, x.shape[-1], self.settings).to(x.dtype).unsqueeze(1).expand_as(x)
        x = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat([x, clock], dim=-1))))
        there = real.repeat_interleave(copies, dim=0)
        index = torch.arange(length, device=x.device).expand(len(x), -1)
        after = there.sum(dim=1, keepdim=True) + index
        cross = there.unsqueeze(1).expand(-1, length, -1)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril().expand(len(x), -1, -1)
        for i, layer in enumerate(self.expert):
            if isinstance(layer, CrossLayer):
                x, _ = layer(x, index, cross, kept[:, i])
            else:
                memory = kept[:, i].repeat_interleave(copies, dim=0)
                x, _ = layer(x, after, torch.cat([cross, causal], dim=2), memory)
        return self.action_out_proj(self.norm(x).float())


def time_embedding(time: Float[Tensor, " M"], dim: int, settings: ExpertSettings) -> Float[Tensor, "M D"]:
    """Sines and cosines of periods that rise geometrically, in float64."""
    fraction = torch.linspace(0, 1, dim // 2, dtype=torch.float64, device=time.device)
    period = settings.min_period * (settings.max_period / settings.min_period) ** fraction
    angle = 2 * math.pi * time.double().unsqueeze(1) / period
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def load(folder: WeightFolder, settings: ExpertSettings, backbone: Any) -> SmolVLANet:
    """The network with the folder's weights, in float32. Raises ValueError that names what does not fit."""
    net = SmolVLANet(folder, settings, backbone)
    state: dict[str, Tensor] = {}
    for _, tensors in folder.shards():
        strange = [name for name in tensors if not home(name) and not name.startswith(UNUSED)]
        if strange:
            raise ValueError(f"{folder.path} has tensors that SmolVLA has not: {', '.join(strange[:3])}")
        state |= {home(name): tensor.float() for name, tensor in tensors.items() if home(name)}
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    compare(shapes, {name: tuple(tensor.shape) for name, tensor in state.items()}, folder.path)
    net.load_state_dict(state)
    return net
