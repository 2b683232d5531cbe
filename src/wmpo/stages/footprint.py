"""What networks cost: parameters, bytes, floating-point operations and what training keeps in memory.

Small networks are built and run once on a blank sample. Published ones are built at their published sizes on torch's
``meta`` device, where tensors have shapes but no numbers: nothing is downloaded and nothing is computed. Operations are
those of matrix products and convolutions, a multiplication and an addition each (``torch.utils.flop_counter``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from wmpo.config import Experiment
from wmpo.hf import libraries
from wmpo.policy.codec import ActionCodec
from wmpo.policy.openvla_oft import DTYPES, OpenVLAOFTConfig, add_lora
from wmpo.policy.prismatic import Prismatic, assemble
from wmpo.policy.small import SmallPolicy, SmallPolicyConfig
from wmpo.reward.detector import frames_seen
from wmpo.reward.small import SmallReward, SmallRewardConfig
from wmpo.reward.videomae import VideoMAERewardConfig
from wmpo.types import Observation
from wmpo.world_model.opensora import OpenSoraWorldModelConfig
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.stdit import PATCH, STDiT
from wmpo.world_model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Of one network; operations and activations are those of one sample."""

    name: str
    parameters: int
    trained: int
    weight_bytes: int
    trained_bytes: int
    forward: int
    backward: int
    saved_bytes: int
    "What a forward pass keeps for the backward pass."

    @property
    def full_bytes(self) -> int:
        """Of the weights while they are trained: float32 ones, whatever the frozen ones are."""
        return self.weight_bytes - self.trained_bytes + 4 * self.trained

    @property
    def training(self) -> int:
        """Operations of a training step for one sample."""
        return self.forward + self.backward


def measure(name: str, net: nn.Module, call: Callable[[nn.Module], Tensor], *, mixed: bool = False) -> Footprint:
    """``call`` runs the network on one sample. ``mixed``: it trains under autocast, so activations have half the bytes
    of its weights; on the meta device, where autocast does not work, all of it is counted in bfloat16."""
    size = [(p.numel(), p.numel() * p.element_size(), p.requires_grad) for p in net.parameters()]
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    net = net.to(torch.bfloat16) if mixed else net
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # alive, so that no other one takes its place
        return tensor

    with FlopCounterMode(display=False) as forward, saved_tensors_hooks(keep, lambda tensor: tensor):
        out = call(net)
    with FlopCounterMode(display=False) as backward:
        out.float().sum().backward()
    saved = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    return Footprint(
        name=name,
        parameters=sum(count for count, _, _ in size),
        trained=sum(count for count, _, trained in size if trained),
        weight_bytes=sum(nbytes for _, nbytes, _ in size) + buffers,
        trained_bytes=sum(nbytes for _, nbytes, trained in size if trained),
        forward=forward.get_total_flops(),
        backward=backward.get_total_flops(),
        saved_bytes=saved,
    )


def operations(call: Callable[[], Any]) -> int:
    """Of what is run without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def policy_footprint(experiment: Experiment, action_dim: int) -> Footprint:
    config: Any = experiment.policy
    size, views = experiment.env.image_size, experiment.env.views
    if isinstance(config, OpenVLAOFTConfig):
        return _openvla(config, action_dim, len(views))
    if not isinstance(config, SmallPolicyConfig):
        raise ValueError(f"wmpo plan does not count policies of kind {type(config).__name__} yet")
    codec = ActionCodec((-1.0,) * action_dim, (1.0,) * action_dim, config.chunk_size, config.num_bins)
    net = SmallPolicy(config, codec, size, views)
    frame = torch.zeros(1, size, size * len(views), 3, dtype=torch.uint8)
    seen = net.prepare(Observation(frame=frame, instruction=("do it",)))
    return measure("policy", net, lambda policy: policy(**seen))


OPENVLA_TEXT = {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                "num_attention_heads": 32, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
OPENVLA_DINO = {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "mlp_ratio": 4,
                "patch_size": 14, "image_size": 224, "num_register_tokens": 4}  # fmt: skip
OPENVLA_SIGLIP = {"hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 16, "intermediate_size": 4304,
                  "patch_size": 14, "image_size": 224}  # fmt: skip
"""Sizes of openvla-7b without the last block of each tower, which is not used (see wmpo.policy.prismatic)."""
PROMPT_TOKENS = 30


def openvla_net(
    config: OpenVLAOFTConfig, text: dict[str, Any], dino: dict[str, Any], siglip: dict[str, Any]
) -> Prismatic:
    """The network of these sizes with random weights on the default device, as ``config`` says it is trained."""
    with libraries():
        from transformers import LlamaConfig
    net = assemble(dino, siglip, LlamaConfig(**text)).to(DTYPES[config.dtype])
    if config.lora_rank:
        add_lora(net, config.lora_rank)
    return net


def _openvla(config: OpenVLAOFTConfig, action_dim: int, num_views: int) -> Footprint:
    with torch.device("meta"):
        net = openvla_net(config, OPENVLA_TEXT, OPENVLA_DINO, OPENVLA_SIGLIP)
        pixels, ids = torch.zeros(1, 6 * num_views, 224, 224), torch.zeros(1, PROMPT_TOKENS, dtype=torch.long)
        mask = torch.ones(1, PROMPT_TOKENS, dtype=torch.bool)
        tokens, bins = config.chunk_size * action_dim, slice(31744, 32000)
        found = measure("policy", net, lambda policy: policy(pixels, ids, mask, tokens, bins))
        if not config.gradient_checkpointing:
            return found
        seen = measure("towers", net, lambda policy: policy.features(pixels.to(DTYPES[config.dtype])))  # type: ignore[operator]
    between_layers = DTYPES[config.dtype].itemsize if config.lora_rank else 4  # sums with float32 embeddings
    return _checkpointed(found, seen, 2 + 256 * num_views + PROMPT_TOKENS + tokens, between_layers)


def _checkpointed(found: Footprint, seen: Footprint, length: int, itemsize: int) -> Footprint:
    """The language model keeps the inputs of its layers, and all activations of the one that is recomputed."""
    layers = OPENVLA_TEXT["num_hidden_layers"]
    inputs = layers * length * OPENVLA_TEXT["hidden_size"] * itemsize
    return replace(found, saved_bytes=seen.saved_bytes + inputs + (found.saved_bytes - seen.saved_bytes) // layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamFootprint:
    """Of a world model: its network, and one imagined chunk of one episode."""

    net: Footprint
    imagine: int
    frame: int
    "Operations that imagine one frame of a training clip's context; 0 where contexts are never imagined."
    extra_bytes: int
    "Weights of a frozen autoencoder beside the network."


def dream_footprint(experiment: Experiment, action_dim: int) -> DreamFootprint:
    config: Any = experiment.world_model
    if isinstance(config, OpenSoraWorldModelConfig):
        return _opensora(config, experiment, action_dim)
    assert isinstance(config, SmallWorldModelConfig)
    size, views = experiment.env.image_size, experiment.env.views
    bounds = -torch.ones(action_dim), torch.ones(action_dim)
    net = SmallWorldModel(config, Tokenizer(experiment.tokenizer).eval(), *bounds, size // 4, views)
    context = net.begin(torch.zeros(1, 1, size, size * len(views), 3, dtype=torch.uint8))
    actions = torch.zeros(1, config.frame_stride, action_dim)
    noise, picture = torch.zeros(1, *net.latent_shape), torch.zeros(1, 3, size, size * len(views))
    training = measure(
        "world model", net, lambda model: model(context, actions, noise, picture, noise, torch.full((1,), 0.5))
    )
    frame = operations(lambda: net.imagine_frame(context, actions, noise))
    frames = experiment.policy.chunk_size // config.frame_stride
    return DreamFootprint(net=training, imagine=frames * frame, frame=frame, extra_bytes=0)


SDXL_VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
            "block_out_channels": (128, 256, 512, 512), "sample_size": 1024,
            "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}  # fmt: skip


def _opensora(config: OpenSoraWorldModelConfig, experiment: Experiment, action_dim: int) -> DreamFootprint:
    """Frames of the context and of a chunk in one training clip; 30 Euler steps reuse the context's keys and values."""
    with libraries():
        from diffusers import AutoencoderKL
    size, frames = experiment.env.image_size, experiment.policy.chunk_size // config.frame_stride
    channels, cells, num_views = config.sizes.channels, size // 8, len(experiment.env.views)
    scale = size * num_views**0.5
    if size % (8 * PATCH):
        raise ValueError(f"env.image_size {size} must be a multiple of {8 * PATCH} for an OpenSora-class world model")
    with torch.device("meta"):
        net = STDiT(config.sizes, action_dim * config.frame_stride)
        vae = AutoencoderKL(**SDXL_VAE)
        context = torch.zeros(1, config.num_context, channels, cells, num_views * cells, dtype=torch.bfloat16)
        fresh = torch.zeros(1, frames, channels, cells, num_views * cells, dtype=torch.bfloat16)
        actions = torch.zeros(1, frames, action_dim * config.frame_stride, dtype=torch.bfloat16)
        time = torch.full((1,), 500.0)

        def step(model: nn.Module) -> Tensor:
            memory = model.remember(context, config.context_noise, scale)  # type: ignore[operator]
            return model(fresh, time, actions, memory, scale)

        training = measure("world model", net, step, mixed=True)  # it is in bfloat16 now
        remember = operations(lambda: net.remember(context, config.context_noise, scale))
        whole = operations(lambda: step(net))
        seen = len(frames_seen(experiment.reward.window, experiment.improve.score_every, frames))
        decode = seen * operations(lambda: vae.decode(torch.zeros(1, channels, cells, num_views * cells)).sample)
    num_steps = experiment.distillation.shortcut_steps if experiment.distillation.enabled else config.euler_steps
    imagine = remember + num_steps * (whole - remember) + decode
    weights = sum(p.numel() * p.element_size() for p in vae.parameters())
    return DreamFootprint(net=training, imagine=imagine, frame=0, extra_bytes=weights)


def reward_footprint(experiment: Experiment) -> Footprint:
    config: Any = experiment.reward
    if isinstance(config, VideoMAERewardConfig):
        return _videomae(config)
    if not isinstance(config, SmallRewardConfig):
        raise ValueError(f"wmpo plan does not count classifiers of kind {type(config).__name__} yet")
    size, views = experiment.env.image_size, experiment.env.views
    clips = torch.zeros(1, config.window, size, size * len(views), 3, dtype=torch.uint8)
    return measure("reward model", SmallReward(config, size, views).eval(), lambda model: model(clips, ("",)))


def _videomae(config: VideoMAERewardConfig) -> Footprint:
    """The sizes of videomae-base, which are the defaults of transformers."""
    with libraries():
        from transformers import VideoMAEConfig, VideoMAEForVideoClassification
    with torch.device("meta"):
        net = VideoMAEForVideoClassification(VideoMAEConfig(num_frames=config.window, num_labels=2))
        clips = torch.zeros(1, config.window, 3, 224, 224, dtype=torch.bfloat16)
        return measure("reward model", net, lambda model: model(pixel_values=clips).logits, mixed=True)


def tokenizer_footprint(experiment: Experiment) -> Footprint:
    net = Tokenizer(experiment.tokenizer)
    size = experiment.env.image_size
    images = torch.zeros(1, 3, size, size * len(experiment.env.views))
    return measure("tokenizer", net, lambda model: model.images(model.latents(images)))  # type: ignore[operator]


def imagined_chunk(experiment: Experiment, policy: Footprint, dream: DreamFootprint, reward: Footprint) -> int:
    """Operations of one chunk of one imagined episode: decide, imagine, judge every ``improve.score_every`` frames."""
    frames = experiment.policy.chunk_size // experiment.world_model.frame_stride
    return policy.forward + dream.imagine + frames // experiment.improve.score_every * reward.forward


def learned_decision(experiment: Experiment, policy: Footprint) -> int:
    """Operations of one decision's gradient; recomputed activations cost another forward pass."""
    config = experiment.policy
    again = isinstance(config, OpenVLAOFTConfig) and config.gradient_checkpointing
    return policy.training + again * policy.forward
