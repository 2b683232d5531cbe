"""VideoMAE from a miniature checkpoint, against the ``transformers`` forward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmpo.protocols import RewardModel
from wmpo.reward.detector import Detector, score_video
from wmpo.reward.videomae import VideoMAEReward, VideoMAERewardConfig

transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'wmpo[hf]'")
pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    from hf_miniatures import write_videomae

    return write_videomae(tmp_path / "base")


TOLD = ("push the block",)


def built(folder: Path, window: int = 8) -> VideoMAEReward:
    torch.manual_seed(1)
    return VideoMAERewardConfig(folder=str(folder), window=window).build()


def clips(count: int, window: int = 8, size: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, window, size, size, 3), dtype=torch.uint8, generator=generator)


def test_the_logit_is_the_difference_of_the_classes_of_the_saved_network(pretrained: Path, tmp_path: Path) -> None:
    model = built(pretrained)
    model.threshold = 1.25
    model.save(tmp_path / "saved")
    again = built(tmp_path / "saved")
    assert again.threshold == 1.25 and isinstance(again, RewardModel) and again.window == 8
    reference = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "saved").eval()
    seen = clips(3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    both = reference(pixel_values=((seen / 255 - mean) / std).movedim(-1, 2)).logits
    found = again(seen, TOLD * 3)
    assert found.shape == (3,) and found.dtype == torch.float32 and found.std() > 0.01
    assert torch.allclose(found, both[:, 1] - both[:, 0], atol=1e-5) and torch.equal(found, model(seen, TOLD * 3))


def test_the_pretrained_encoder_is_read_and_its_decoder_left(pretrained: Path) -> None:
    tensors, state = load_file(pretrained / "model.safetensors"), built(pretrained).net.state_dict()
    assert any(name.startswith("decoder.") for name in tensors)
    assert any(name.endswith(".q_bias") for name in tensors), "as in published files"
    names = {name: name.replace("q_bias", "query.bias").replace("v_bias", "value.bias") for name in tensors}
    shared = {name for name in tensors if name.startswith("videomae.")}
    assert {names[name] for name in shared} == {name for name in state if name.startswith("videomae.")}
    assert all(torch.equal(tensors[name], state[names[name]]) for name in shared)


def test_clips_are_judged_by_themselves_at_any_size_and_in_order(pretrained: Path) -> None:
    model, seen = built(pretrained), clips(4)
    logits = model(seen, TOLD * 4)
    cut = replace(model.config, batch_size=3).build()
    cut.load_state_dict(model.state_dict())
    assert torch.allclose(cut(seen, TOLD * 4), logits, atol=1e-5), "parts change nothing"
    assert torch.allclose(model(seen[[2, 0]], TOLD * 2), logits[[2, 0]], atol=1e-5)
    assert (model(seen.flip(1), TOLD * 4) - logits).abs().max() > 1e-3
    colours = clips(3, size=1)
    small, large = (colours.expand(-1, -1, size, size, -1) for size in (32, 50))
    assert (
        torch.allclose(*(model(some, TOLD * 3) for some in (small, large)), atol=1e-4)
        and model(small, TOLD * 3).std() > 1e-3
    )


def test_the_detector_works_with_it(pretrained: Path) -> None:
    model, video = built(pretrained), clips(1, 12)[0]
    logits = score_video(model, video, "")
    model.threshold = float(logits.sort().values[-2:].mean())
    first, _ = Detector(model, video[:1], TOLD).update(video[1:].unsqueeze(0), torch.zeros(1, dtype=torch.long))
    assert int(first) == int(logits.argmax()) + 1
    assert torch.allclose(logits[-1], model(video[-8:].unsqueeze(0), TOLD)[0], atol=1e-5)


def test_it_learns_to_tell_clips_apart(pretrained: Path) -> None:
    model, seen = built(pretrained).train(), clips(8)
    labels = torch.arange(8) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(25):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(seen, TOLD * 8), labels.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((model.eval()(seen, TOLD * 8) > 0) == labels.bool()).all()


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def test_what_is_missing_or_foreign_is_named(pretrained: Path, tmp_path: Path) -> None:
    model = built(pretrained)
    with pytest.raises(ValueError, match=r"4 frames.*built for 8"):
        model(clips(1, 4), TOLD)
    with pytest.raises(ValueError, match="window 7 must be a multiple of 2"):
        built(pretrained, window=7)
    with pytest.raises(ValueError, match="is not a folder"):
        built(tmp_path / "nowhere")
    model.save(tmp_path / "saved")
    drop(tmp_path / "saved", "classifier.bias")
    with pytest.raises(ValueError, match=r"a part of a classifier only: classifier\.bias"):
        built(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"a part of a classifier only: classifier\.bias"):
        VideoMAERewardConfig(folder=str(tmp_path / "saved")).check_weights()
    VideoMAERewardConfig(folder=str(pretrained)).check_weights()
    drop(pretrained, "videomae.encoder.layer.1.output.dense.bias")
    with pytest.raises(ValueError, match=r"1 tensors differ \(videomae.encoder.layer.1.output.dense.bias"):
        built(pretrained)
    with pytest.raises(ValueError, match=r"1 tensors differ \(videomae.encoder.layer.1.output.dense.bias"):
        VideoMAERewardConfig(folder=str(pretrained)).check_weights()  # before anything is played
    change(pretrained / "config.json", model_type="vit")
    with pytest.raises(ValueError, match="is of a vit, not a videomae"):
        built(pretrained)


def test_a_threshold_that_is_no_number_is_refused(pretrained: Path, tmp_path: Path) -> None:
    built(pretrained).save(tmp_path / "saved")
    change(tmp_path / "saved" / "wmpo.json", threshold="high")
    with pytest.raises(ValueError, match="threshold 'high' must be a number"):
        built(tmp_path / "saved")
