"""The network of OpenVLA (Prismatic, arXiv 2402.07865, 2406.09246) out of ``transformers`` towers.

Published checkpoints name the vision weights as ``timm`` does; :func:`homes` says where each one lives here. Features
are those of the second-to-last block, so last blocks, norms and pooling heads are not built.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wmpo.hf import WeightFolder, compare, libraries

NUM_HEADS = {"vit_large_patch14_reg4_dinov2.lvd142m": 16, "vit_so400m_patch14_siglip_224": 16}
"""Attention heads of the vision towers: the one size that cannot be read off their weights."""
DINO, SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."

_DINO = [
    (r"cls_token", "embeddings.cls_token"),
    (r"reg_token", "embeddings.register_tokens"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"blocks\.(\d+)\.attn\.qkv", r"encoder.layer.\1.attention.{qkv}_proj"),
    (r"blocks\.(\d+)\.attn\.proj", r"encoder.layer.\1.attention.o_proj"),
    (r"blocks\.(\d+)\.ls([12])\.scale_factor", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.(norm[12]|mlp\.fc[12])", r"encoder.layer.\1.\2"),
]
_SIGLIP = [
    (r"pos_embed", "embeddings.position_embedding.weight"),
    (r"patch_embed\.proj", "embeddings.patch_embedding"),
    (r"blocks\.(\d+)\.attn\.qkv", r"encoder.layers.\1.self_attn.{qkv}_proj"),
    (r"blocks\.(\d+)\.attn\.proj", r"encoder.layers.\1.self_attn.out_proj"),
    (r"blocks\.(\d+)\.norm([12])", r"encoder.layers.\1.layer_norm\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])", r"encoder.layers.\1.mlp.\2"),
]
_UNUSED = re.compile(r"norm\.(weight|bias)|attn_pool\..*|fc_norm\..*")


def homes(name: str, depths: tuple[int, int]) -> tuple[str, ...] | None:
    """Parameters of :class:`Prismatic` that a published tensor holds, stacked along its first dimension.

    Three for a fused qkv, none for a tensor without a part, None for an unknown name. ``depths``: blocks of both towers
    in the checkpoint.
    """
    for prefix, tower, rules, depth in ((DINO, "dino", _DINO, depths[0]), (SIGLIP, "siglip", _SIGLIP, depths[1])):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            if _UNUSED.fullmatch(rest) or rest.startswith(f"blocks.{depth - 1}."):
                return ()
            for pattern, home in rules:
                if match := re.fullmatch(rf"({pattern})(\.weight|\.bias)?", rest):
                    inner = re.sub(pattern, home, match[1]) + (match[match.re.groups] or "")
                    return tuple(
                        f"{tower}.{inner.replace('{qkv}', part)}" for part in "qkv"[: 3 if "{" in inner else 1]
                    )
            return None
    if name.startswith("projector."):
        return (name,)
    return (name.replace("language_model.", "llama.", 1),) if name.startswith("language_model.") else None


def pack(name: str, parts: list[Tensor]) -> Tensor:
    """The published tensor out of the parameters in its homes: the inverse of :func:`unpack`."""
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if name == DINO + "pos_embed":
        return whole[:, 1:]
    return whole.unsqueeze(0) if name == SIGLIP + "pos_embed" else whole


def unpack(name: str, tensor: Tensor, count: int) -> list[Tensor]:
    """One tensor per home."""
    if name == DINO + "pos_embed":  # the class token has no position there, one of zeros in transformers
        return [torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)]
    return [tensor.squeeze(0)] if name == SIGLIP + "pos_embed" else list(tensor.chunk(count))


class Projector(nn.Module):
    """From the joint width of both towers to the language model's."""

    def __init__(self, vision_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, dim)
        self.fc3 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, P, vision_dim) -> (B, P, dim)
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class Prismatic(nn.Module):
    """Two pictures of one frame, differently normalised, and a prompt to the logits of N tokens at once (OFT, arXiv
    2502.19645): N empty placeholders end the sequence, and every position attends to every other one."""

    dino: Any
    siglip: Any
    llama: Any

    def __init__(self, dino: Any, siglip: Any, llama: Any) -> None:
        super().__init__()
        self.dino, self.siglip, self.llama = dino, siglip, llama
        widths = dino.config.hidden_size, siglip.config.hidden_size
        self.projector = Projector(sum(widths), llama.config.hidden_size)

    def features(self, pixels: Float[Tensor, "B c h w"]) -> Float[Tensor, "B P D"]:
        """Patch features of both towers, side by side; those of several cameras follow each other."""
        first, second = pixels.unflatten(1, (-1, 6)).flatten(0, 1).chunk(2, dim=1)
        dino, siglip = self.dino, self.siglip
        seen = dino.encoder(dino.embeddings(first)).last_hidden_state[:, 1 + dino.config.num_register_tokens :]
        both = torch.cat([seen, siglip.encoder(inputs_embeds=siglip.embeddings(second)).last_hidden_state], dim=2)
        return both.unflatten(0, (len(pixels), -1)).flatten(1, 2)

    def forward(
        self, pixels: Tensor, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], num_tokens: int, vocabulary: slice
    ) -> Float[Tensor, "B N V"]:
        """``ids`` come without BOS, padded at the front where ``mask`` is False; ``vocabulary``: the wanted tokens.

        Token n is read off the position before its placeholder, as in causal language models.
        """
        embed, config = self.llama.model.embed_tokens, self.llama.config
        pictures = self.projector(self.features(pixels.to(self.projector.fc1.weight.dtype)))
        text, batch = embed(ids), len(ids)
        special = embed(torch.tensor([config.bos_token_id, config.eos_token_id], device=ids.device))
        first, last = special.unsqueeze(1).expand(-1, batch, -1).unsqueeze(2)
        empty = text.new_zeros(batch, num_tokens, text.shape[2])
        x = torch.cat([first, pictures.to(text.dtype), text, empty, last], dim=1)
        before, after = 1 + pictures.shape[1], num_tokens + 1
        valid = F.pad(F.pad(mask, (before, 0), value=True), (0, after), value=True)
        blocked = torch.zeros(valid.shape, dtype=x.dtype, device=x.device)
        blocked = blocked.masked_fill(~valid, torch.finfo(x.dtype).min)[:, None, None].expand(-1, 1, x.shape[1], -1)
        position = (valid.cumsum(dim=1) - 1).clamp(min=0)
        seen = self.llama.model(inputs_embeds=x, attention_mask=blocked, position_ids=position, use_cache=False)
        hidden = seen.last_hidden_state[:, -num_tokens - 2 : -2]
        return F.linear(hidden, self.llama.lm_head.weight[vocabulary])


def load(folder: WeightFolder, config: dict[str, Any], dtype: torch.dtype) -> Prismatic:
    """The network with the folder's weights. Raises ValueError for other architectures, listing what does not fit."""
    with libraries():
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    text = LlamaConfig(**config["text_config"])
    depths = depth_of(folder, DINO), depth_of(folder, SIGLIP)
    with torch.device("meta"):  # no memory before the weights come
        net = _skeleton(folder, config["timm_model_ids"], depths, text)
    state: dict[str, Tensor] = {}
    for _, tensors in folder.shards():
        for name, tensor in tensors.items():
            owners = homes(name, depths)
            owners = (name,) if owners is None else owners
            if owners:
                state |= zip(owners, (part.to(dtype) for part in unpack(name, tensor, len(owners))), strict=True)
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    compare(expected, {name: tuple(tensor.shape) for name, tensor in state.items()}, folder.path)
    net.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    net.requires_grad_(True)
    net.llama.model.rotary_emb = LlamaRotaryEmbedding(config=text)  # these two buffers are in no checkpoint
    positions = net.siglip.config.image_size // net.siglip.config.patch_size
    net.siglip.embeddings.position_ids = torch.arange(positions**2).unsqueeze(0)
    return net


def depth_of(folder: WeightFolder, prefix: str) -> int:
    """Blocks of a vision tower in the checkpoint."""
    found = [re.match(rf"{re.escape(prefix)}blocks\.(\d+)\.", name) for name in folder.names()]
    depth = 1 + max((int(match[1]) for match in found if match), default=-1)
    if depth < 2:
        raise ValueError(
            f"{folder.path} has {depth} blocks named {prefix}blocks.N; this is no fused OpenVLA checkpoint"
        )
    return depth


def assemble(dino: dict[str, Any], siglip: dict[str, Any], text: Any) -> Prismatic:
    """The network of these sizes with random weights, on the default device; ``text`` is a LlamaConfig."""
    with libraries():
        from transformers import (
            Dinov2WithRegistersConfig,
            Dinov2WithRegistersModel,
            LlamaForCausalLM,
            SiglipVisionConfig,
            SiglipVisionModel,
        )
    first = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**dino))
    second = SiglipVisionModel(SiglipVisionConfig(**siglip, vision_use_head=False))
    del first.embeddings.mask_token  # it is for masked pretraining only
    first.layernorm, second.post_layernorm = nn.Identity(), nn.Identity()
    return Prismatic(first, second, LlamaForCausalLM(text))


def _skeleton(folder: WeightFolder, timm_ids: list[str], depths: tuple[int, int], text: Any) -> Prismatic:
    unknown = [name for name in timm_ids if name not in NUM_HEADS]
    if unknown or len(timm_ids) != 2:
        raise ValueError(
            f"{folder.path / 'config.json'}: timm_model_ids {timm_ids} are not supported; known: {list(NUM_HEADS)}"
        )
    sizes = []
    for prefix, name, depth in zip((DINO, SIGLIP), timm_ids, depths, strict=True):
        width, _, patch, _ = folder.shape(prefix + "patch_embed.proj.weight")
        grid = round(folder.shape(prefix + "pos_embed")[1] ** 0.5)
        sizes.append({
            "hidden_size": width, "patch_size": patch, "image_size": patch * grid, "num_hidden_layers": depth - 1,
            "num_attention_heads": NUM_HEADS[name], "hidden_act": "gelu", "layer_norm_eps": 1e-6,
        })  # fmt: skip
    hidden = [folder.shape(prefix + "blocks.0.mlp.fc1.weight")[0] for prefix in (DINO, SIGLIP)]
    registers = folder.shape(DINO + "reg_token")[1]
    ratio = hidden[0] // sizes[0]["hidden_size"]
    dino = {**sizes[0], "mlp_ratio": ratio, "num_register_tokens": registers}
    return assemble(dino, {**sizes[1], "intermediate_size": hidden[1]}, text)
