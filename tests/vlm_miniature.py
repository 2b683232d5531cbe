"""A miniature Qwen2.5-VL with random weights and a tokenizer of a dozen words."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
WORDS = ["<unk>", *SPECIAL, "<|video_pad|>", "yes", "no", "Yes", "push", "pull", "block", "user", "assistant", "task"]
PATCH, MERGE, SIZE = 14, 2, 56
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def write_model(folder: Path, template: str = TEMPLATE, words: list[str] = WORDS, *, tied: bool = False) -> Path:
    """As ``save_pretrained`` writes it; pictures become SIZE pixels wide, four tokens each."""
    torch.manual_seed(0)
    place = WORDS.index
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": len(WORDS), "max_position_embeddings": 512,
            "initializer_range": 0.4,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": PATCH, "spatial_merge_size": MERGE, "window_size": SIZE, "fullatt_block_indexes": [1],
            "initializer_range": 0.4,
        },
        tie_word_embeddings=tied, image_token_id=place("<|image_pad|>"), video_token_id=place("<|video_pad|>"),
        vision_start_token_id=place("<|vision_start|>"), vision_end_token_id=place("<|vision_end|>"),
        initializer_range=0.4,
    )  # fmt: skip
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    known = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(known)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=[word for word in words if word.startswith("<|")],
    )  # fmt: skip
    fast.chat_template = template or None
    fast.save_pretrained(folder)
    pixels = {"min_pixels": SIZE * SIZE, "max_pixels": SIZE * SIZE}
    transformers.Qwen2VLImageProcessorPil(**pixels).save_pretrained(folder)
    return folder
