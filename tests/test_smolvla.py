"""SmolVLA from a miniature checkpoint: against the published code's numbers, and what learning needs of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmpo.denoising import DenoisingConfig
from wmpo.likelihood import NoiseKeys
from wmpo.policy.codec import PathCodec
from wmpo.policy.smolvla import SentenceReader, SmolVLA, SmolVLAConfig
from wmpo.rng import keyed
from wmpo.types import Observation

REASON = "needs the extra hf: pip install 'wmpo[hf]'"
pytest.importorskip("transformers", reason=REASON)
tokenizers = pytest.importorskip("tokenizers", reason=REASON)
from smolvla_miniature import ACTIONS, CHUNK, MAX_ACTIONS, published_tensors, write_checkpoint  # noqa: E402

pytestmark = pytest.mark.usefixtures("float32")
WHOLE = PathCodec((0.0,) * MAX_ACTIONS, (1.0,) * MAX_ACTIONS, CHUNK)
PUBLISHED = [
    [-2.188215, 2.96923, -2.53183, -1.286553, -1.801962, 0.509941],
    [-2.021096, 1.896443, -2.203741, 0.047864, -1.407633, -0.982366],
    [-0.36012, 1.088535, -1.741097, -0.181272, -2.236408, -1.549079],
    [-1.378575, 1.587343, -0.631133, 0.42182, 0.255762, 0.09984],
    [-0.797701, 1.250569, -1.595286, 3.069121, -1.124201, 0.32374],
    [-0.683366, 3.164455, -1.916474, 2.097267, -1.408909, -0.663232],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("smolvla"))


def config(folder: Path, **changes: object) -> SmolVLAConfig:
    few = DenoisingConfig(num_steps=2)
    settings = {"folder": str(folder), "backbone": str(folder / "backbone"), "chunk_size": 2, "denoising": few}
    return SmolVLAConfig(**settings | changes)  # type: ignore[arg-type]


def some_frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 20, 28, 3), dtype=torch.uint8, generator=generator)


def seen_by(policy: SmolVLA, *texts: str) -> dict[str, Tensor]:
    return dict(policy.prepare(Observation(frame=some_frames(len(texts)), instruction=texts)))


@torch.no_grad()
def test_pictures_of_several_cameras_come_before_the_sentence(checkpoint: Path) -> None:
    """Each costs as many tokens as one, and their order counts."""
    one, two = config(checkpoint).build(), config(checkpoint).build(views=("top", "wrist"))
    top, wrist = some_frames(2).split(1)
    single = one(**one.prepare(Observation(frame=top, instruction=("open",))))[1].shape[1]
    kept = []
    for views in ((top, wrist), (wrist, top)):
        context, real = two(**two.prepare(Observation(frame=torch.cat(views, dim=2), instruction=("open",))))
        kept.append(context)
        pictures = one.net.connector(one.net.vision(pixel_values=one.prepare(
            Observation(frame=top, instruction=("open",)))["pixels"]).last_hidden_state).shape[1]  # fmt: skip
        assert real.shape[1] == single + pictures
    assert not torch.allclose(*kept)
    assert config(checkpoint).restore(two.about()).views == ("top", "wrist")


@torch.no_grad()
def test_it_denoises_as_the_published_code(checkpoint: Path) -> None:
    """PUBLISHED: the first of three chunks that lerobot 0.4.4 (VLAFlowMatching.sample_actions, ten steps) makes of
    these weights, pictures, sentences and noise, with the state at zero."""
    policy = config(checkpoint, chunk_size=CHUNK).build(WHOLE)
    context = policy(**seen_by(policy, "push the block", "push slowly the block", "slowly"))
    state = torch.randn(3, 1, CHUNK, MAX_ACTIONS, generator=torch.Generator().manual_seed(2))
    for step in range(10):
        state = state - policy.velocity(context, state, torch.full((3, 1), 1 - step / 10)) / 10
    assert torch.allclose(state[0, 0], torch.tensor(PUBLISHED), atol=1e-5)


@torch.no_grad()
def test_actions_are_causal_and_sentences_judged_by_themselves(checkpoint: Path) -> None:
    policy = config(checkpoint).build()
    texts = "slowly the block", "push slowly the block"
    states = torch.randn(2, 3, 2, ACTIONS, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([[1.0, 0.5, 0.1], [0.9, 0.4, 0.2]])
    both = policy.velocity(policy(**seen_by(policy, *texts)), states, time)
    assert both.std() > 0.05
    alone = policy.velocity(policy(**seen_by(policy, texts[0])), states[:1], time[:1])
    assert torch.allclose(alone, both[:1], atol=1e-5)
    first = policy.velocity(policy(**seen_by(policy, *texts)), states[:, :, :1], time)
    assert torch.allclose(first, both[:, :, :1], atol=1e-5)
    other = policy.velocity(policy(**seen_by(policy, "push the block", texts[1])), states, time)
    assert (other[0] - both[0]).abs().max() > 1e-3 and torch.allclose(other[1], both[1], atol=1e-5)


def test_instructions_end_with_the_newline_of_training(tmp_path: Path) -> None:
    words = tokenizers.models.WordLevel({"<unk>": 0, "push": 1, "push\n": 2}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    reader = SentenceReader(tmp_path, 3)
    assert reader.read("push push") == reader.read("push push\n") == [1, 2]
    assert reader.read("push push push push") == [1, 1, 1]


def test_what_is_drawn_is_judged_alike_and_teaches_the_expert_only(checkpoint: Path) -> None:
    policy = config(checkpoint).build()
    seen = seen_by(policy, "push the block", "slowly")
    with torch.no_grad():
        path, before = policy.likelihood.draw(seen, 0.8, NoiseKeys(0, [4, 7], 0))
    assert path.shape == (2, 2 * ACTIONS, 3) and policy.codec.decode(path).shape == (2, 2, ACTIONS)
    logprob, _ = policy.likelihood.score(seen, path, 0.8)
    assert torch.allclose(logprob, before, atol=1e-3)
    logprob.sum().backward()
    learned = {name.split(".")[0] for name, p in policy.net.named_parameters() if p.grad is not None and p.grad.any()}
    heads = {"action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out"}
    assert learned == {"expert", "norm"} | heads
    whole = config(checkpoint, train_backbone=True).build()
    noise = whole.likelihood.cloning_noise(2, keyed(0, "test"))
    whole.likelihood.cloning_loss(seen, torch.zeros(2, 2, ACTIONS), *noise).backward()
    learned = {name.split(".")[0] for name, p in whole.net.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"vision", "connector", "embed", "layers", "state_proj"} <= learned


def test_cloning_overfits_a_batch(checkpoint: Path) -> None:
    policy = config(checkpoint).build().train()
    seen, actions = (
        seen_by(policy, "push the block", "slowly"),
        torch.tensor([[[0.5, 0.0, 3.0]] * 2, [[0.6, -3.0, 1.0]] * 2]),
    )
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(60):
        loss = policy.likelihood.cloning_loss(
            seen, actions, *policy.likelihood.cloning_noise(len(actions), keyed(0, "test", step))
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10]), losses


def test_statistics_of_either_format_and_other_demonstrations(checkpoint: Path, tmp_path: Path) -> None:
    codec = config(checkpoint).build().codec
    assert codec.center == (0.5, -1.0, 2.0) and codec.scale == pytest.approx((0.1, 2.0, 1.0))
    older = write_checkpoint(tmp_path / "older")
    (older / "policy_postprocessor.json").unlink()
    config(older).build(PathCodec((3.0,), (4.0,), 2)).export(tmp_path / "newer")
    newer = config(tmp_path / "newer", backbone=str(older / "backbone"))
    assert newer.build().codec.center == (3.0,) and newer.build().codec.scale == pytest.approx((4.0,))
    with pytest.raises(ValueError, match="no mean and deviation of actions"):
        config(older).build()
    buffers = {
        f"unnormalize_outputs.buffer_action.{k}": torch.tensor([v] * 2) for k, v in (("mean", 1.0), ("std", 2.0))
    }
    save_file(published_tensors() | buffers, older / "model.safetensors")
    assert config(older).build().codec.center == (1.0, 1.0)
    own = PathCodec((0.0,), (1.0,), 2, 1.0)
    assert config(checkpoint).build(own).codec is own
    with pytest.raises(ValueError, match="does not fit chunk_size 2"):
        config(checkpoint).build(WHOLE)


@torch.no_grad()
def test_an_exported_policy_is_read_again_under_the_published_names(checkpoint: Path, tmp_path: Path) -> None:
    policy = config(checkpoint).build(PathCodec((1.0, 2.0), (3.0, 4.0), 2))
    for parameter in policy.net.expert.parameters():
        parameter.add_(0.05)
    policy.export(tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed and all(".lm_expert.layers." in name for name in changed)
    again = config(tmp_path / "out", backbone=str(checkpoint / "backbone")).build()
    assert again.codec.center == (1.0, 2.0) and again.codec.scale == pytest.approx((3.0, 4.0))
    states, time = torch.ones(1, 1, 2, 2), torch.full((1, 1), 0.5)
    found = [p.velocity(p(**seen_by(p, "slowly")), states, time) for p in (policy, again)]
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="name another one"):
        policy.export(checkpoint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "pi0"}, "type 'pi0', not smolvla"),
        ({"chunk_size": 1}, r"chunk_size 2 must lie in 1\.\.1"),
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha is switched on"),
        ({"attention_mode": "self_attn"}, "attention_mode 'self_attn'"),
        ({"num_expert_layers": 2}, "num_expert_layers 2"),
        ({"num_vlm_layers": 3}, "belongs to another architecture"),
        ({"normalization_mapping": {"ACTION": "MIN_MAX"}}, "normalised by MIN_MAX"),
    ],
)
def test_what_is_not_built_here_is_named(
    checkpoint: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    folder = write_checkpoint(tmp_path / "foreign")
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        config(folder).build()
    with pytest.raises(ValueError, match=words):
        config(folder, fine_tuned=True).check_weights()


def test_what_is_missing_or_strange_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config.json; download .* of HuggingFaceTB/SmolVLM2-500M"):
        config(checkpoint, backbone=str(tmp_path)).build()
    folder = write_checkpoint(tmp_path / "strange")
    (folder / "backbone" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json does not exist"):
        config(folder).build()
    save_file(published_tensors() | {"model.lora": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensors that SmolVLA has not: model\.lora"):
        config(folder).build()
    config(checkpoint, fine_tuned=True).check_weights()
