"""OpenVLA-OFT with discrete bins, the paper's policy (arXiv 2511.09515, 2502.19645), from a local Hugging Face folder.

One 224 px picture a camera and a sentence to the logits of all K * A action tokens in one forward pass; no
proprioception, no continuous head. :mod:`wmpo.policy.prismatic` maps the published weights, so that neither remote code
nor ``timm`` nor ``torchvision`` is needed.

Differs from the published code in how frames of another size get to 224 px: bicubic with antialiasing, as its image
processor does, and without the JPEG round trip and the Lanczos filter of its simulator scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

from wmpo.hf import Headers, WeightFolder, libraries
from wmpo.nn import best_device, cut_frames, train_in_float32
from wmpo.policy import prismatic
from wmpo.policy.codec import VocabularyCodec
from wmpo.types import Observation
from wmpo.views import ONE_VIEW

PROMPT = "In: What action should the robot take to {}?\nOut:"
CROP = 0.9**0.5
"""Side of the centre crop: policies are fine-tuned on random crops of nine tenths of the area."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class OpenVLAOFTConfig:
    """Where the checkpoint is and how it is trained."""

    folder: str
    "Local folder of a checkpoint (openvla/openvla-7b, or one fine-tuned with OFT and discrete bins)."
    fine_tuned: bool = False
    "The checkpoint is the base policy already: sft leaves it as it is, and its own action statistics apply."
    unnorm_key: str = ""
    "Data set of the checkpoint whose action statistics apply; empty: the only one there is."
    chunk_size: int = 8
    "Actions decoded at once (K)."
    center_crop: bool = True
    "Whether the middle of a frame is enlarged, as for policies fine-tuned with image augmentation."
    lora_rank: int = 0
    "Rank of the trained low-rank updates of all linear layers in cloning (the paper: 32); 0: all weights are trained."
    improve_lora_rank: int = 0
    "The same after sft, when what was cloned is part of the weights (the paper trains all of them)."
    dtype: str = "bfloat16"
    "Type of the weights: bfloat16 or float32. What is trained has float32 ones all the same while it is."
    gradient_checkpointing: bool = False
    "Recompute the language model's activations on the way back: less memory, a third more time."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        if self.dtype not in DTYPES:
            raise ValueError(f"policy.dtype {self.dtype!r} must be one of {', '.join(DTYPES)}")
        if self.chunk_size < 1 or min(self.lora_rank, self.improve_lora_rank) < 0:
            raise ValueError(
                f"policy.chunk_size {self.chunk_size} must be at least 1, policy.lora_rank {self.lora_rank} and "
                f"policy.improve_lora_rank {self.improve_lora_rank} at least 0"
            )

    def settled(self) -> OpenVLAOFTConfig:
        """After sft: what is trained then."""
        return replace(self, lora_rank=self.improve_lora_rank)

    def check_weights(self) -> None:
        """Raises ValueError, naming folder and fix, before anything is played, when weights are missing or foreign."""
        self.validate()
        folder = Headers(self.folder)
        settings = read_settings(folder)
        if self.fine_tuned:
            read_codec(folder, settings, self.unnorm_key, self.chunk_size)
        PictureSettings.read(folder, settings)
        PromptReader(folder)
        prismatic.load(folder, settings, DTYPES[self.dtype])

    def fit(self, actions: Float[Tensor, "S A"], image_size: int, views: tuple[str, ...] = ONE_VIEW) -> OpenVLAOFT:
        """The checkpoint, for actions such as the recorded ones or, if it is fine-tuned, for those of its own."""
        if self.fine_tuned:
            return self.build(views=views)
        bins = read_settings(WeightFolder(self.folder))["n_action_bins"]
        return self.build(VocabularyCodec.fit(actions, self.chunk_size, bins), views)

    def restore(self, about: dict[str, Any]) -> OpenVLAOFT:
        """The checkpoint with the codec of a policy that was trained from it."""
        views = tuple(about.get("views", ONE_VIEW))  # older files have one
        return self.build(VocabularyCodec.restore(about["codec"]), views)

    def build(self, codec: VocabularyCodec | None = None, views: tuple[str, ...] = ONE_VIEW) -> OpenVLAOFT:
        """Reads the folder. Raises ValueError that names the file and the fix if something is missing or foreign."""
        self.validate()
        folder = WeightFolder(self.folder)
        settings = read_settings(folder)
        codec = codec or read_codec(folder, settings, self.unnorm_key, self.chunk_size)
        pictures = PictureSettings.read(folder, settings)
        text = PromptReader(folder)
        net = prismatic.load(folder, settings, DTYPES[self.dtype])
        if self.lora_rank:
            add_lora(net, self.lora_rank)
        if self.gradient_checkpointing:
            net.llama.activation_checkpointing_enable({"use_reentrant": False})
        end = settings["text_config"]["vocab_size"] - settings["pad_to_multiple_of"]
        vocabulary = slice(end - codec.num_bins, end)
        return OpenVLAOFT(self, net, codec, pictures, text, vocabulary, views).to(best_device()).eval()


def read_settings(folder: WeightFolder) -> dict[str, Any]:
    """``config.json``, checked for what is needed of it."""
    settings = folder.json("config.json")
    needed = ("text_config", "timm_model_ids", "pad_to_multiple_of", "n_action_bins")
    absent = [name for name in needed if name not in settings] or [
        f"text_config.{name}" for name in ("vocab_size",) if name not in settings["text_config"]
    ]
    if absent:
        raise ValueError(
            f"{folder.path / 'config.json'} has no {', '.join(absent)}; it is not that of an OpenVLA policy"
        )
    heads = sorted(path.name for path in folder.path.glob("action_head*"))
    if heads:
        raise ValueError(
            f"{folder.path} has a continuous action head ({heads[0]}); its language model was not trained to give "
            "action tokens: use a checkpoint fine-tuned with discrete bins"
        )
    return settings


def read_codec(folder: WeightFolder, settings: dict[str, Any], key: str, chunk_size: int) -> VocabularyCodec:
    """From ``dataset_statistics.json`` (fine-tuned checkpoints) or ``norm_stats`` in ``config.json``."""
    statistics = folder.json("dataset_statistics.json", optional=True) or settings.get("norm_stats") or {}
    if not statistics:
        raise ValueError(
            f"{folder.path} has no action statistics; put the dataset_statistics.json of its fine-tuning there"
        )
    if not key and len(statistics) > 1:
        raise ValueError(f"policy.unnorm_key must be one of {', '.join(sorted(statistics))}: {folder.path} has several")
    key = key or next(iter(statistics))
    if key not in statistics:
        raise ValueError(f"policy.unnorm_key {key!r} must be one of {', '.join(sorted(statistics))} ({folder.path})")
    action = statistics[key].get("action", {})
    if "q01" not in action or "q99" not in action:
        raise ValueError(
            f"action statistics of {key!r} in {folder.path} have no q01 and q99; they hold {sorted(action)}"
        )
    low, high = tuple(action["q01"]), tuple(action["q99"])
    scaled = tuple(action.get("mask") or [True] * len(low))
    return VocabularyCodec(low, high, scaled, chunk_size, settings["n_action_bins"])


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """Size in pixels, and mean and standard deviation of the channels of each of the two pictures."""

    size: int
    mean: tuple[tuple[float, ...], ...]
    std: tuple[tuple[float, ...], ...]
    stretch: bool

    @classmethod
    def read(cls, folder: WeightFolder, settings: dict[str, Any]) -> PictureSettings:
        name = "preprocessor_config.json"
        content = folder.json(name)
        mean, std = content.get("means", []), content.get("stds", [])
        sizes = {tuple(size[-2:]) for size in content.get("input_sizes", [])}
        if len(mean) != 2 or len(std) != 2 or len(sizes) != 1:
            raise ValueError(f"{folder.path / name} must have two means, two stds and two equal input_sizes")
        (size,) = sizes
        stretch = content.get("image_resize_strategy", settings.get("image_resize_strategy")) == "resize-naive"
        return cls(size[0], tuple(map(tuple, mean)), tuple(map(tuple, std)), stretch)

    def pixels(self, frames: UInt8[Tensor, "B h w 3"], center_crop: bool) -> Float[Tensor, "B 6 s s"]:
        """Both normalised pictures of each frame. Raises ValueError for frames that would have to be padded or cut."""
        height, width = frames.shape[1:3]
        if height != width and not self.stretch:
            raise ValueError(f"frames are {height}x{width}, but this checkpoint wants square ones; crop or pad them")
        images = frames.movedim(-1, 1).float()
        images = crop(images, self.size) if center_crop else resize(images, self.size)
        normal = [
            (images / 255 - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)
            for mean, std in zip(self.mean, self.std, strict=True)
        ]
        return torch.cat(normal, dim=1)


def resize(images: Float[Tensor, "B 3 h w"], size: int) -> Float[Tensor, "B 3 s s"]:
    """Bicubic with antialiasing, in grey levels, as Pillow does it."""
    if images.shape[-2:] == (size, size):
        return images
    made = F.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return made.round().clamp(0, 255)


def crop(images: Float[Tensor, "B 3 h w"], size: int) -> Float[Tensor, "B 3 s s"]:
    """The middle, enlarged bilinearly between the corner pixels, in grey levels."""
    line = torch.linspace(-CROP, CROP, size, device=images.device)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).expand(len(images), -1, -1, -1)
    made = F.grid_sample(resize(images, size) / 255, grid, mode="bilinear", align_corners=True)
    return (made * 255.5).floor().clamp(0, 255)


class PromptReader:
    """Instructions to token ids by the checkpoint's ``tokenizer.json``, which needs no code of it."""

    def __init__(self, folder: WeightFolder) -> None:
        with libraries():
            from tokenizers import Tokenizer
        path = folder.path / "tokenizer.json"
        if not path.exists():
            raise ValueError(f"{path} does not exist; the folder is not a complete checkpoint")
        self._tokenizer = Tokenizer.from_file(str(path))
        self.last = self._tokenizer.token_to_id("▁")
        if self.last is None:
            raise ValueError(f"{path} has no token for a lone space; it is not the tokenizer of Llama 2")

    def read(self, instruction: str) -> list[int]:
        """Without the leading BOS; the lone space at the end is where training began to predict."""
        ids = self._tokenizer.encode(PROMPT.format(instruction.lower()), add_special_tokens=False).ids
        return ids if ids[-1] == self.last else [*ids, self.last]


def add_lora(net: nn.Module, rank: int) -> None:
    """Freezes the network and adds trained low-rank updates to every linear layer but the last (peft, in place)."""
    with libraries():
        from peft import LoraConfig, inject_adapter_in_model
    linear = [
        name for name, part in net.named_modules() if isinstance(part, nn.Linear) and not name.endswith("lm_head")
    ]
    settings = LoraConfig(r=rank, lora_alpha=min(rank, 16), init_lora_weights="gaussian", target_modules=linear)
    inject_adapter_in_model(settings, net)
    train_in_float32(net.parameters())


def without_lora(net: prismatic.Prismatic) -> prismatic.Prismatic:
    """Adds the low-rank updates to the weights they belong to, in place; afterwards all weights are trained."""
    for name, part in list(net.named_modules()):
        if hasattr(part, "get_delta_weight"):
            part.merge()
            net.set_submodule(name, part.get_base_layer())
    if hasattr(net, "peft_config"):
        del net.peft_config  # or the next updates would be a second set beside these
    net.requires_grad_(True)
    return net


class OpenVLAOFT(nn.Module):
    """A :class:`wmpo.protocols.Policy`."""

    def __init__(
        self,
        config: OpenVLAOFTConfig,
        net: prismatic.Prismatic,
        codec: VocabularyCodec,
        pictures: PictureSettings,
        text: PromptReader,
        vocabulary: slice,
        views: tuple[str, ...] = ONE_VIEW,
    ) -> None:
        super().__init__()
        self.views = views
        self.config, self.net, self.codec, self.vocabulary = config, net, codec, vocabulary
        self._pictures, self._text, self.image_size = pictures, text, pictures.size

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {"config": asdict(self.config), "codec": asdict(self.codec), "views": self.views}

    def settle(self) -> OpenVLAOFT:
        """Makes low-rank updates part of the weights, and begins those of improvement; in place."""
        self.config, self.net = self.config.settled(), without_lora(self.net)
        if self.config.lora_rank:
            add_lora(self.net, self.config.lora_rank)
        return self

    def train(self, mode: bool = True) -> OpenVLAOFT:
        super().train(mode)
        if self.config.gradient_checkpointing:
            self.net.llama.train()  # transformers recomputes in this mode only; there is no dropout it could switch on
        return self

    def prepare(self, observation: Observation) -> Mapping[str, Tensor]:
        """Tensors for ``__call__``: pixels [B, 6V, s, s], those of each of V cameras in turn as the published code has
        them, prompt ids and their mask [B, L], padded at the front. Raises ValueError for frames that do not divide."""
        device = self.net.projector.fc1.bias.device
        read = {text: self._text.read(text) for text in set(observation.instruction)}
        length = max(len(ids) for ids in read.values())
        rows = [[0] * (length - len(ids)) + ids for ids in (read[text] for text in observation.instruction)]
        count = torch.tensor([len(read[text]) for text in observation.instruction])
        views = cut_frames(observation.frame.to(device), self.views)
        pixels = torch.cat([self._pictures.pixels(view, self.config.center_crop) for view in views], dim=1)
        mask = torch.arange(length) >= length - count.unsqueeze(1)
        return {"pixels": pixels, "ids": torch.tensor(rows, device=device), "mask": mask.to(device)}

    def forward(
        self, pixels: Float[Tensor, "B c s s"], ids: Int[Tensor, "B L"], mask: Tensor
    ) -> Float[Tensor, "B N V"]:
        """Logits of the bins in the order of the vocabulary (:class:`VocabularyCodec`)."""
        return self.net(pixels, ids, mask, self.codec.num_tokens, self.vocabulary).float()

    @torch.no_grad()
    def export(self, target: str | Path) -> None:
        """Writes a folder in the published format: low-rank updates are merged, tensors without a part are copied."""
        source = WeightFolder(self.config.folder)
        target = source.begin_copy(target)
        depths = prismatic.depth_of(source, prismatic.DINO), prismatic.depth_of(source, prismatic.SIGLIP)
        own = merged(self.net)
        for shard, tensors in source.shards():
            for name, tensor in tensors.items():
                if owners := prismatic.homes(name, depths):
                    made = prismatic.pack(name, [own[owner] for owner in owners])
                    tensors[name] = made.to(tensor.dtype).contiguous().cpu()
            save_file(tensors, target / shard, metadata={"format": "pt"})


def merged(net: nn.Module) -> dict[str, Tensor]:
    """Weights with low-rank updates added, under the names of a network without them."""
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in net.state_dict().items() if ".lora_" not in name
    }
    for name, part in net.named_modules():
        if hasattr(part, "get_delta_weight"):
            state[f"{name}.weight"] = state[f"{name}.weight"] + part.get_delta_weight("default")
    # The class token's own position, which training may have moved, has no place in published checkpoints.
    token, position = "dino.embeddings.cls_token", state["dino.embeddings.position_embeddings"]
    return state | {token: state[token] + position[:, :1]}
