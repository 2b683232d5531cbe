"""A vision-language model as the judge of success: is the task done in these pictures, yes or no?

For those who have no labelled episodes: nothing is trained. The score is the log-odds of "yes" against "no" as the
first word of the answer, so that 0 means that both are equally likely; with labelled videos
:func:`wmpo.train.reward.calibrate` chooses a better threshold, as for every reward model. For models that
``transformers`` knows as image-text-to-text and that have a chat template, such as Qwen2.5-VL (tried on a miniature of
it); a folder is read without running code of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from wmpo.hf import WeightFolder, libraries
from wmpo.nn import best_device

QUESTION = (
    "The pictures show a robot at work, in order of time. Its task: {instruction}. "
    "Is the task done in the last picture? Answer with yes or no."
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class VLMJudgeConfig:
    """Which model is asked, and what."""

    folder: str
    "Local folder of a vision-language model with a chat template (Qwen/Qwen2.5-VL-3B-Instruct)."
    window: int = 4
    "Consecutive frames that it is shown at once (W)."
    question: str = QUESTION
    "What it is asked after the pictures; {instruction} stands for the task."
    threshold: float = 0.0
    "Log-odds above which a clip shows success: 0 without labels, else what calibration chose."
    batch_size: int = 8
    "Clips that are judged at once; changes memory, not results."
    dtype: str = "bfloat16"
    "Type of the weights: bfloat16 or float32."

    def validate(self) -> None:
        """Raises ValueError, naming flag and value."""
        if self.window < 1 or self.batch_size < 1:
            raise ValueError(f"reward.window {self.window} and batch_size {self.batch_size} must be at least 1")
        if "{instruction}" not in self.question:
            raise ValueError(f"reward.question {self.question!r} must hold {{instruction}}, or every task is the same")
        if self.dtype not in DTYPES:
            raise ValueError(f"reward.dtype {self.dtype!r} must be one of {', '.join(DTYPES)}")

    def check_weights(self) -> None:
        """Raises ValueError, naming value and fix, before anything is played, when it cannot be built so. Of the
        weights names and shapes count, and none stay in memory."""
        self.validate()
        folder = WeightFolder(self.folder)
        Speech.read(folder.path)
        read_net(folder.path, DTYPES[self.dtype], shapes_only=True)

    def restore(self, about: dict[str, Any]) -> VLMJudge:
        """The judge of the same task with the same threshold."""
        model = self.build(about.get("instruction", ""))
        model.threshold = about["threshold"]
        return model

    def build(self, instruction: str = "") -> VLMJudge:
        """The judge of one task, whatever clips are called; without it each is judged by its own sentence. Raises
        ValueError that names what is missing or foreign."""
        self.validate()
        folder = WeightFolder(self.folder)
        speech = Speech.read(folder.path)
        net = read_net(folder.path, DTYPES[self.dtype])
        content = [{"type": "image"}] * self.window

        def prompt(told: str) -> str:
            text = {"type": "text", "text": self.question.format(instruction=instruction or told)}
            asked = [{"role": "user", "content": [*content, text]}]
            return speech.prompt(asked)

        return VLMJudge(self, net, speech, prompt, instruction).to(best_device()).eval()


@dataclass(frozen=True, slots=True)
class Speech:
    """How a model is asked, and where its answer stands."""

    processor: Any
    template: str
    answers: tuple[list[int], list[int]]
    "Tokens with which a yes and a no may begin."

    @classmethod
    def read(cls, path: Path) -> Speech:
        """Of the folder. Raises ValueError that names what is missing or foreign."""
        processor = read_processor(path)
        template = processor.chat_template or processor.tokenizer.chat_template
        if not template:
            raise ValueError(f"{path} has no chat template; name a model that was tuned to follow instructions")
        yes, no = (answer_ids(processor.tokenizer, word, path) for word in ("yes", "no"))
        if not set(yes).isdisjoint(no):
            raise ValueError(f"the tokenizer in {path} cannot tell yes from no")
        return cls(processor, template, (yes, no))

    def prompt(self, asked: list[dict[str, Any]]) -> str:
        """The text that the model reads."""
        return str(self.processor.apply_chat_template(asked, chat_template=self.template, add_generation_prompt=True))


def read_net(path: Path, dtype: torch.dtype, *, shapes_only: bool = False) -> Any:
    """The network with the folder's weights, or their shapes. ``transformers`` itself would begin tensors that a file
    lacks at random: here a ValueError names the first of them."""
    with libraries(), readable(path):
        from transformers import AutoModelForImageTextToText

        net, found = AutoModelForImageTextToText.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype,
            device_map="meta" if shapes_only else None, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    wrong = [f"{name}: missing" for name in sorted(found["missing_keys"])]  # tied ones are not among them
    wrong += [f"{n}: expected {tuple(own)}, found {tuple(seen)}" for n, seen, own in sorted(found["mismatched_keys"])]
    if wrong:
        raise ValueError(
            f"{path} is incomplete or belongs to another architecture: {len(wrong)} tensors differ "
            f"({'; '.join(wrong[:3])}); download it again, config.json too"
        )
    return net


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """One sentence for whatever ``transformers`` says of a folder that it cannot read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"{path} is not a vision-language model that transformers can read; are all its files there, those of the "
            f"tokenizer and the preprocessor too? {said}"
        ) from error


def read_processor(path: Path) -> Any:
    """Of the folder. Many are for videos too, a part that needs torchvision: then the same without that part."""
    with libraries(), readable(path):
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(f"a {config.model_type} does not answer questions about pictures")
        kind = PROCESSOR_MAPPING.get(type(config), None)
        if kind is None:
            raise ValueError(f"no processor is known for a model of type {config.model_type}")
        wanted = kind if "video_processor" not in kind.get_attributes() else without_videos(kind)
        chosen = AutoProcessor if wanted is kind else wanted
        return chosen.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def without_videos(kind: Any) -> Any:
    """A processor of the same kind for pictures only; ``transformers`` reads its parts from the signature."""

    class PicturesOnly(kind):
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **settings: Any
        ) -> None:
            super().__init__(image_processor, tokenizer, chat_template=chat_template, **settings)

    return PicturesOnly


def answer_ids(tokenizer: Any, word: str, path: Path) -> list[int]:
    """Tokens with which an answer may begin: the word in small and capital letters, with and without a space."""
    spelled = [text for plain in (word, word.capitalize()) for text in (plain, f" {plain}")]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in spelled]
    single = sorted({found[0] for found in ids if len(found) == 1 and found[0] != tokenizer.unk_token_id})
    if not single:
        raise ValueError(f"the tokenizer in {path} has no token for {word!r}, so that answers cannot be judged")
    return single


class VLMJudge(nn.Module):
    """A :class:`wmpo.protocols.RewardModel`."""

    def __init__(
        self,
        config: VLMJudgeConfig,
        net: Any,
        speech: Speech,
        prompt: Callable[[str], str],
        instruction: str,
    ) -> None:
        super().__init__()
        self.config, self.window, self.threshold = config, config.window, config.threshold
        self.net, self.prompt, self.instruction = net, prompt, instruction
        self._speech = speech

    def about(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON."""
        return {"config": asdict(self.config), "instruction": self.instruction, "threshold": self.threshold}

    @torch.no_grad()
    def forward(self, clips: UInt8[Tensor, "M W h w 3"], instructions: Sequence[str]) -> Float[Tensor, " M"]:
        """Log-odds, on the CPU. Raises ValueError for clips of another length."""
        if clips.shape[1] != self.window:
            raise ValueError(f"clips have {clips.shape[1]} frames, but this judge was built for {self.window}")
        logits = torch.empty(len(clips))
        for told in dict.fromkeys(instructions):
            rows = torch.tensor([i for i, sentence in enumerate(instructions) if sentence == told])
            for part in rows.split(self.config.batch_size):
                logits[part] = self._judge(clips[part], self.prompt(told))
        return logits

    def _judge(self, clips: UInt8[Tensor, "M W h w 3"], prompt: str) -> Float[Tensor, " M"]:
        """Of one task, so that all rows are equally long and nothing is padded."""
        pictures = [[Image.fromarray(frame) for frame in clip] for clip in clips.cpu().numpy()]
        seen = self._speech.processor(text=[prompt] * len(clips), images=pictures, return_tensors="pt")
        seen = seen.to(self.net.device, self.net.dtype)
        last = self.net(**seen).logits[:, -1].float().cpu()
        yes, no = (last[:, ids].logsumexp(dim=1) for ids in self._speech.answers)
        return yes - no
