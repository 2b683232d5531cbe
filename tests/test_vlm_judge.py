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
from torch import Tensor

from wmpo.data.importing import read_labels, write_labels
from wmpo.data.lerobot import append_episodes
from wmpo.protocols import RewardModel
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
    with pytest.raises(ValueError, match="window 0"):
        config(folder, window=0).build()
    with pytest.raises(ValueError, match=r"must hold \{instruction\}"):
        config(folder, question="done?").build()
    with pytest.raises(ValueError, match="is not a folder"):
        config(tmp_path / "nowhere").build()
    with pytest.raises(ValueError, match="has no chat template"):
        config(write_model(tmp_path / "plain", template="")).build()
    mute = [{"no": "never"}.get(word, word) for word in WORDS]
    with pytest.raises(ValueError, match="no token for 'no'"):
        config(write_model(tmp_path / "mute", words=mute)).build()


def test_foreign_code_is_never_run(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "remote")
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="is not a vision-language model that transformers can read"):
        config(folder).build()
