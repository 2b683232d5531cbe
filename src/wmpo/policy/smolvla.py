"""SmolVLA, a flow-matching policy (arXiv 2506.01844), from a local folder in LeRobot's format (lerobot/smolvla_base).

One picture a camera and a sentence to a chunk of continuous actions in ten denoising steps; GRPO and cloning learn it
through :mod:`wmpo.denoising`. Only the vision tower is built by ``transformers``; neither LeRobot nor torchvision is
needed.

Differs from the published code: the robot's state is always its mean (a world model imagines none); cameras come in the
run's order, whatever the checkpoint calls its own; only the chunk's first K actions are denoised, which changes none of
them, as actions are causal; numbers that pad actions to the network's width stay zero on the way, where the published
sampler lets untrained outputs move them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

from wmpo.checkpoint import write_json
from wmpo.denoising import DenoisingConfig, PathLikelihood
from wmpo.hf import Headers, WeightFolder, libraries
from wmpo.nn import best_device, cut_frames
from wmpo.policy import smolvlm_expert
from wmpo.policy.codec import PathCodec
from wmpo.types import Observation
from wmpo.views import ONE_VIEW

STATISTICS = "policy_postprocessor.json"
_OLDER = "unnormalize_outputs.buffer_action."
"""Beginning of the names of statistics among the weights."""


@dataclass(frozen=True, kw_only=True)
class SmolVLAConfig:
    """Where the checkpoint is and how it is trained."""

    folder: str
    "Local folder of a checkpoint of LeRobot: config.json and model.safetensors (lerobot/smolvla_base)."
    backbone: str
    "Local folder of the model that vlm_model_name in config.json names: config.json and tokenizer.json are read."
    chunk_size: int = 8
    "Actions decoded at once (K), at most the checkpoint's own chunk_size."
    train_backbone: bool = False
    "Whether the vision-language model is trained beside the action expert (the published default: not)."
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    "How chunks are drawn."

    fine_tuned: bool = False
    "The checkpoint is the base policy already: sft leaves it as it is, and its own action statistics apply."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        self.denoising.validate()

    def check_weights(self) -> None:
        """Raises ValueError, naming folder and fix, before anything is played, when weights are missing or foreign."""
        folder = WeightFolder(self.folder)
        content = read_settings(folder, self.chunk_size)
        if self.fine_tuned:
            read_codec(folder, content, self.chunk_size)
        backbone = read_backbone(Path(self.backbone).expanduser(), content)
        SentenceReader(Path(self.backbone).expanduser(), content.get("tokenizer_max_length", 48))
        settings = smolvlm_expert.ExpertSettings.read(content, folder.path / "config.json")
        with torch.device("meta"):
            smolvlm_expert.load(Headers(self.folder), settings, backbone)

    def fit(self, actions: Float[Tensor, "S A"], image_size: int, views: tuple[str, ...] = ONE_VIEW) -> SmolVLA:
        """The checkpoint, for actions such as the recorded ones or, if it is fine-tuned, for those of its own."""
        return self.build(None if self.fine_tuned else PathCodec.fit(actions, self.chunk_size), views)

    def restore(self, about: dict[str, Any]) -> SmolVLA:
        """The checkpoint with the codec of a policy that was trained from it."""
        return self.build(PathCodec.restore(about["codec"]), tuple(about.get("views", ONE_VIEW)))  # older files: one

    def build(self, codec: PathCodec | None = None, views: tuple[str, ...] = ONE_VIEW) -> SmolVLA:
        """Reads the folders. ``codec`` is that of other demonstrations; None: the checkpoint's own statistics.

        Raises ValueError that names the file and the fix if something is missing or foreign.
        """
        self.denoising.validate()
        folder = WeightFolder(self.folder)
        content = read_settings(folder, self.chunk_size)
        codec = codec or read_codec(folder, content, self.chunk_size)
        if codec.chunk_size != self.chunk_size or codec.action_dim > content["max_action_dim"]:
            raise ValueError(f"codec {codec} does not fit chunk_size {self.chunk_size} of {folder.path}")
        backbone = read_backbone(Path(self.backbone).expanduser(), content)
        settings = smolvlm_expert.ExpertSettings.read(content, folder.path / "config.json")
        net = smolvlm_expert.load(folder, settings, backbone)
        if not self.train_backbone:
            for part in (net.vision, net.connector, net.embed, net.layers, net.state_proj):
                part.requires_grad_(False)
        text = SentenceReader(Path(self.backbone).expanduser(), content.get("tokenizer_max_length", 48))
        size = content.get("resize_imgs_with_padding")
        picture_size = (size[0], size[1]) if size else None
        return SmolVLA(self, net, codec, text, picture_size, views).to(best_device()).eval()


def read_settings(folder: WeightFolder, chunk_size: int) -> dict[str, Any]:
    """``config.json``, checked for what is not built here."""
    content, path = folder.json("config.json"), folder.path / "config.json"
    if content.get("type") != "smolvla":
        raise ValueError(f"{path} is of a policy of type {content.get('type')!r}, not smolvla")
    content = {"max_action_dim": 32, "chunk_size": 50} | content
    unknown = [name for name in ("adapt_to_pi_aloha", "add_image_special_tokens") if content.get(name)]
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)} is switched on, which is not built here")
    if not 1 <= chunk_size <= content["chunk_size"]:
        raise ValueError(f"policy.chunk_size {chunk_size} must lie in 1..{content['chunk_size']} ({path})")
    return content


def read_backbone(path: Path, content: dict[str, Any]) -> Any:
    """The configuration of the vision-language model; no weight of it is read."""
    name = content.get("vlm_model_name", "the vision-language model")
    if not (path / "config.json").exists():
        raise ValueError(
            f"policy.backbone {path} has no config.json; download config.json and tokenizer.json of {name} there"
        )
    with libraries():
        from transformers import SmolVLMConfig
    try:
        return SmolVLMConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path / 'config.json'} is not that of {name}: {error}") from error


def read_codec(folder: WeightFolder, content: dict[str, Any], chunk_size: int) -> PathCodec:
    """Mean and deviation of the actions: beside the weights (LeRobot 0.4 and later) or among them (before)."""
    kind = content.get("normalization_mapping", {}).get("ACTION", "MEAN_STD")
    if kind != "MEAN_STD":
        raise ValueError(
            f"{folder.path / 'config.json'}: actions are normalised by {kind}, only MEAN_STD is built here"
        )
    found = statistics(folder)
    if not {"action.mean", "action.std"} <= found.keys():
        raise ValueError(
            f"{folder.path} has no mean and deviation of actions ({STATISTICS} and the file it names); give a codec "
            "fitted to demonstrations instead, or fine-tune the checkpoint first"
        )
    mean, std = (found[name].flatten().double() for name in ("action.mean", "action.std"))
    return PathCodec(tuple(mean.tolist()), tuple((std + 1e-8).tolist()), chunk_size)


def statistics(folder: WeightFolder) -> dict[str, Tensor]:
    """By the names of the newer format."""
    named = statistics_file(folder)
    if named:
        return {name: t for _, part in WeightFolder(folder.path, Path(named).stem).shards() for name, t in part.items()}
    if f"{_OLDER}mean" not in folder:
        return {}
    return {
        name.replace(_OLDER, "action."): tensor
        for _, part in folder.shards()
        for name, tensor in part.items()
        if name.startswith(_OLDER)
    }


def statistics_file(folder: WeightFolder) -> str:
    """Name of the file with the statistics of actions; empty if there is none."""
    steps = folder.json(STATISTICS, optional=True).get("steps", [])
    files = [step["state_file"] for step in steps if step.get("state_file")]
    if any(Path(name).name != name for name in files):
        raise ValueError(f"{folder.path / STATISTICS} names a file outside of its folder: {', '.join(files)}")
    return files[0] if files else ""


def postprocessor(named: str, action_dim: int) -> dict[str, Any]:
    """The file that names the statistics of actions, as LeRobot 0.4 writes it."""
    features = {"action": {"type": "ACTION", "shape": [action_dim]}}
    settings = {"eps": 1e-8, "features": features, "norm_map": {"ACTION": "MEAN_STD"}}
    step = {"registry_name": "unnormalizer_processor", "config": settings, "state_file": named}
    return {"name": "policy_postprocessor", "steps": [step]}


class SentenceReader:
    """Instructions to token ids, by the backbone's ``tokenizer.json``."""

    def __init__(self, folder: Path, limit: int) -> None:
        with libraries():
            from tokenizers import Tokenizer
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ValueError(f"{path} does not exist; download it from where the backbone's config.json is from")
        self._tokenizer, self._limit = Tokenizer.from_file(str(path)), limit

    def read(self, instruction: str) -> list[int]:
        """With the newline that training ended instructions with."""
        return self._tokenizer.encode(instruction.removesuffix("\n") + "\n").ids[: self._limit]


def fit_pictures(frames: UInt8[Tensor, "B h w 3"], size: tuple[int, int] | None) -> Float[Tensor, "B 3 y x"]:
    """In [-1, 1]; shrunk or enlarged to ``size`` (width, height), and padded with black on the left and at the top."""
    images = frames.movedim(-1, 1).float() / 255
    if size:
        (width, height), (y, x) = size, images.shape[2:]
        ratio = max(x / width, y / height)
        shape = int(y / ratio), int(x / ratio)
        images = F.interpolate(images, shape, mode="bilinear", align_corners=False)
        images = F.pad(images, (width - shape[1], 0, height - shape[0], 0))
    return images * 2 - 1


class SmolVLA(nn.Module):
    """A :class:`wmpo.denoising.FlowPolicy`."""

    def __init__(
        self,
        config: SmolVLAConfig,
        net: smolvlm_expert.SmolVLANet,
        codec: PathCodec,
        text: SentenceReader,
        picture_size: tuple[int, int] | None,
        views: tuple[str, ...] = ONE_VIEW,
    ) -> None:
        super().__init__()
        self.views = views
        self.config, self.net, self.codec = config, net, codec
        self._text, self._picture_size = text, picture_size
        self.image_size = picture_size[0] if picture_size else net.vision.config.image_size

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {"config": asdict(self.config), "codec": asdict(self.codec), "views": self.views}

    @property
    def likelihood(self) -> PathLikelihood:
        return PathLikelihood(self, self.config.denoising)

    def prepare(self, observation: Observation) -> Mapping[str, Tensor]:
        """Tensors for ``__call__``: pixels [B, 3V, y, x] of V cameras, ids and their mask [B, L], padded at the end.
        Raises ValueError for frames that do not divide."""
        device = self.net.action_in_proj.weight.device
        read = {text: self._text.read(text) for text in set(observation.instruction)}
        rows = [read[text] for text in observation.instruction]
        length = max(len(ids) for ids in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
        mask = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
        views = cut_frames(observation.frame.to(device), self.views)
        pixels = torch.cat([fit_pictures(view, self._picture_size) for view in views], dim=1)
        return {"pixels": pixels, "ids": ids, "mask": mask.to(device)}

    def forward(self, pixels: Float[Tensor, "B c y x"], ids: Int[Tensor, "B L"], mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the expert needs of an observation. The state is zero, its mean."""
        return self.net.read(pixels, ids, mask, pixels.new_zeros(len(pixels), self.net.state_dim))

    def velocity(
        self, context: tuple[Tensor, Tensor], states: Float[Tensor, "B J K A"], time: Float[Tensor, "B J"]
    ) -> Float[Tensor, "B J K A"]:
        width = states.shape[-1]
        padded = F.pad(states.flatten(0, 1), (0, self.net.action_dim - width))
        found = self.net.velocity(*context, padded, time.flatten())
        return found[..., :width].unflatten(0, states.shape[:2])

    @torch.no_grad()
    def export(self, target: str | Path) -> None:
        """Writes a folder in the published format; tensors without a part here are copied. Of the codec mean and
        deviation are kept, the format knows no limits of actions."""
        source = WeightFolder(self.config.folder)
        target = source.begin_copy(target)
        own, scale = self.net.state_dict(), torch.tensor(self.codec.scale)
        actions = {"action.mean": torch.tensor(self.codec.center), "action.std": scale}
        named = statistics_file(source)
        if not named and f"{_OLDER}mean" not in source:
            named = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
            write_json(target / STATISTICS, postprocessor(named, self.codec.action_dim))
        if named:
            save_file(statistics(source) | actions, target / named)
        for shard, tensors in source.shards():
            for name, tensor in tensors.items():
                if here := smolvlm_expert.home(name):
                    tensors[name] = own[here].to(tensor.dtype).contiguous().cpu()
                elif name.startswith(_OLDER):
                    tensors[name] = actions.get(name.replace(_OLDER, "action."), tensor)
            save_file(tensors, target / shard, metadata={"format": "pt"})
