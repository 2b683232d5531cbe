"""A vision-language judge from a miniature model, against the network called by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmpo.data.importing import read_labels, write_labels
from wmpo.data.lerobot import append_episodes
from wmpo.protocols import RewardModel
from wmpo.reward import vlm_judge
from wmpo.reward.detector import Detector, score_video
from wmpo.reward.vlm_judge import VLMJudge, VLMJudgeConfig
from wmpo.train.reward import LabelledVideo, RewardTraining, calibrate, peaks

transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'wmpo[hf]'")
from finished_run import recorded  # noqa: E402
from vlm_miniature import MERGE, PATCH, SIZE, WORDS, write_model  # noqa: E402  # needs transformers itself

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("vlm"))


def config(folder: Path, **changes: object) -> VLMJudgeConfig:
    settings = {"folder": str(folder), "window": 2, "dtype": "float32", "question": "task {instruction}"}
    return VLMJudgeConfig(**settings | changes)  # type: ignore[arg-type]


TOLD = ("push block",)


@pytest.fixture(scope="module")
def judge(folder: Path) -> VLMJudge:
    return config(folder, batch_size=2).build()


def clips(count: int, window: int = 2, size: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, window, size, size, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_the_score_is_the_log_odds_of_the_first_word(judge: VLMJudge, folder: Path) -> None:
    seen = clips(3)
    found = judge(seen, TOLD * 3)
    assert isinstance(judge, RewardModel) and found.shape == (3,) and found.std() > 1e-3 and judge.threshold == 0
    net = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    pictures = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)
    picture = ["<|vision_start|>", *["<|image_pad|>"] * (SIZE // PATCH // MERGE) ** 2, "<|vision_end|>"]
    said = ["<|im_start|>", "user", *picture * 2, "task", "push", "block", "<|im_end|>", "<|im_start|>", "assistant"]
    ids = torch.tensor([[WORDS.index(word) for word in said]])
    kinds = (ids == WORDS.index("<|image_pad|>")).int()
    for row, clip in enumerate(seen):
        shown = pictures(
            images=[frame.numpy() for frame in clip], return_tensors="pt", input_data_format="channels_last"
        )
        logits = net(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **shown).logits[0, -1]
        odds = logits.softmax(dim=0)
        expected = (odds[WORDS.index("yes")] + odds[WORDS.index("Yes")]).log() - odds[WORDS.index("no")].log()
        assert float(found[row]) == pytest.approx(float(expected), abs=1e-4)


def test_clips_are_judged_by_themselves_in_order_and_by_the_task(judge: VLMJudge, folder: Path) -> None:
    seen = clips(3)
    logits = judge(seen, TOLD * 3)
    assert torch.allclose(judge(seen[[2, 0]], TOLD * 2), logits[[2, 0]], atol=1e-4)
    assert (judge(seen.flip(1), TOLD * 3) - logits).abs().max() > 1e-4
    other = judge(seen, (*TOLD, "pull block", *TOLD))
    assert torch.allclose(other[[0, 2]], logits[[0, 2]], atol=1e-4) and (other - logits)[1].abs() > 1e-4


def test_detector_and_calibration_work_with_it(judge: VLMJudge) -> None:
    video = clips(1, 7)[0]
    logits = score_video(judge, video, *TOLD)
    judge.threshold = float(logits.sort().values[-2:].mean())
    first, _ = Detector(judge, video[:1], TOLD).update(video[1:].unsqueeze(0), torch.zeros(1, dtype=torch.long))
    assert int(first) == int(logits.argmax()) + 1
    best = int(logits.argmax()) + 1
    won, lost = video[best - 1 : best + 1], video[[0, 0]]
    videos = [LabelledVideo(won, 1, *TOLD), LabelledVideo(lost, -1, *TOLD)] * 2
    scores = [float(score_video(judge, v.frames, v.instruction).max()) for v in videos]
    found = peaks(judge, videos)
    measured = calibrate(judge, found, found, np.array([v.success for v in videos]), RewardTraining())
    assert judge.threshold == measured["threshold"]
    assert (min(scores) < judge.threshold < max(scores)) == (scores[0] > scores[1])
    judge.threshold = 0.0


def test_the_script_of_the_docs_labels_a_dataset(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = [replace(recorded(number, 9), instruction="push block") for number in range(4)]
    append_episodes(tmp_path / "data/unlabelled", episodes, fps=10)
    write_labels(tmp_path / "by-hand.csv", {3: (True, 5), 0: (False, None)})
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs/howto/vlm_judge.md").read_text()
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    made: dict[str, Any] = {}
    exec(script.replace("/models/Qwen2.5-VL-3B-Instruct", str(folder)), made)
    labels = read_labels(tmp_path / "labels.csv")
    assert sorted(labels) == [0, 1, 2, 3] and labels[3] == (True, 5) and labels[0] == (False, None)
    for number in (1, 2):
        solved = bool(made["peaks"][number] > made["judge"].threshold)
        assert labels[number] == (solved, 8 if solved else None)


def test_what_is_missing_or_foreign_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 frames.*built for 2"):
        config(folder).build()(clips(1, 3), TOLD)
    refused(config(folder, window=0), "window 0")
    refused(config(folder, question="done?"), r"must hold \{instruction\}")
    refused(config(folder, dtype="int8"), "'int8' must be one of float32, bfloat16")
    refused(config(tmp_path / "nowhere"), "is not a folder")
    refused(config(write_model(tmp_path / "plain", template="")), "has no chat template")
    mute = [{"no": "never"}.get(word, word) for word in WORDS]
    refused(config(write_model(tmp_path / "mute", words=mute)), "no token for 'no'")


def refused(wanted: VLMJudgeConfig, message: str) -> None:
    """When it is built, and before anything is played."""
    for attempt in (wanted.check_weights, wanted.build):
        with pytest.raises(ValueError, match=message):
            attempt()


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "config.json"])
def test_a_missing_file_is_found_before_anything_is_played(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).unlink()
    refused(config(folder), "is not a vision-language model that transformers can read")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    change_config(folder, model_type="llama")
    refused(config(folder), "a llama does not answer questions about pictures")


DOWN, SEEN = "model.layers.1.mlp.down_proj.weight", "visual.blocks.0.attn.proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({DOWN: None}, r"incomplete.*: 1 tensors differ \(model.language_model.layers.1.mlp.down_proj.weight: missing"),
        ({SEEN: torch.zeros(3, 32)}, r"1 tensors differ \(model.visual.\S+: expected \(32, 32\), found \(3, 32\)"),
        ({DOWN: None, SEEN: None}, r"2 tensors differ \(model.language\S+: missing; model.visual\S+: missing"),
    ],
    ids=["missing", "other shape", "two"],
)
def test_no_tensor_begins_at_random(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    folder = write_model(tmp_path / "model")
    change_tensors(folder, changes)
    refused(config(folder), message)


def test_tied_weights_are_not_missing_but_what_they_are_tied_to_is(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", tied=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    config(folder).check_weights()
    net = config(folder).build().net
    assert net.lm_head.weight is net.model.language_model.embed_tokens.weight
    change_tensors(folder, {"model.embed_tokens.weight": None})
    refused(config(folder), r"embed_tokens.weight: missing")


def test_the_check_takes_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = []
    read = vlm_judge.read_net
    monkeypatch.setattr(vlm_judge, "read_net", lambda *args, **named: nets.append(read(*args, **named)))
    config(folder).check_weights()
    assert {parameter.device.type for parameter in nets[0].parameters()} == {"meta"}


def change_tensors(folder: Path, changes: dict[str, Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert changes.keys() <= tensors.keys()
    kept = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))


def test_foreign_code_is_never_run(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "remote")
    change_config(folder, model_type="strange", auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    refused(config(folder), "is not a vision-language model that transformers can read")
