"""OpenVLA-OFT from a miniature checkpoint under the published names, against plain readings of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmpo import likelihood
from wmpo.execution.local import LocalSampler
from wmpo.execution.parallel import Team
from wmpo.execution.sharded import TeamLearner
from wmpo.hf import WeightFolder
from wmpo.policy.codec import VocabularyCodec
from wmpo.policy.openvla_oft import CROP, OpenVLAOFT, OpenVLAOFTConfig, crop, resize
from wmpo.policy.prismatic import DINO, SIGLIP
from wmpo.protocols import Policy, TrainablePolicy
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.types import Minibatch, Observation

REASON = "needs the extra hf: pip install 'wmpo[hf]'"
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("tokenizers", reason=REASON)
pytest.importorskip("peft", reason=REASON)
from openvla_miniature import GRID, HEADS, PATCH, SIZE, TEXT, WORDS, published_tensors, write_checkpoint  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("openvla"))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A checkpoint of one's own, to damage."""
    return write_checkpoint(tmp_path)


def settings(folder: Path, **changes: object) -> OpenVLAOFTConfig:
    return OpenVLAOFTConfig(
        folder=str(folder), **{"unnorm_key": "square", "chunk_size": 2, "dtype": "float32"} | changes
    )  # type: ignore[arg-type]


@dataclass(frozen=True)
class Spec:
    """What a rank builds."""

    config: OpenVLAOFTConfig

    def policy(self) -> OpenVLAOFT:
        return self.config.build()

    def sampler(self) -> LocalSampler:
        raise NotImplementedError


def frames(count: int, size: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def logits(policy: OpenVLAOFT, pictures: Tensor, *instruction: str) -> Tensor:
    return policy(**policy.prepare(Observation(frame=pictures, instruction=instruction)))


@torch.no_grad()
def test_pictures_of_several_cameras_follow_each_other(checkpoint: Path) -> None:
    """As the published code has them: patches of the first one, then those of the second."""
    one, two = settings(checkpoint).build(), settings(checkpoint).build(views=("top", "wrist"))
    top, wrist = frames(2), frames(2, seed=1)
    both = Observation(frame=torch.cat([top, wrist], dim=2), instruction=("open the drawer",) * 2)
    pixels = two.prepare(both)["pixels"]
    seen = two.net.features(pixels)
    apart = [
        one.net.features(one.prepare(Observation(frame=view, instruction=both.instruction))["pixels"])
        for view in (top, wrist)
    ]
    assert pixels.shape[1] == 12 and torch.allclose(seen, torch.cat(apart, dim=1), atol=1e-5)
    assert two(**two.prepare(both)).shape == one(**one.prepare(replace(both, frame=top))).shape
    assert two.config.restore(two.about()).views == ("top", "wrist")
    with pytest.raises(ValueError, match="are not the pictures of 2 cameras side by side"):
        two.prepare(replace(both, frame=both.frame[:, :, 1:]))


def plain_features(tensors: dict[str, Tensor], prefix: str, pixels: Tensor) -> Tensor:
    """What timm computes: patches after the second-to-last block, without the last norm."""
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    x = F.conv2d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + weights["pos_embed"]
    special = [weights[n].expand(len(x), -1, -1) for n in ("cls_token", "reg_token") if n in weights]
    x = torch.cat([*special, x], dim=1)
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    for block in range(depth - 1):
        b = f"blocks.{block}"
        normal = F.layer_norm(x, x.shape[-1:], weights[f"{b}.norm1.weight"], weights[f"{b}.norm1.bias"], 1e-6)
        q, k, v = linear(f"{b}.attn.qkv", normal).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        x = x + linear(f"{b}.attn.proj", attention.transpose(1, 2).flatten(2)) * weights.get(f"{b}.ls1.scale_factor", 1)
        normal = F.layer_norm(x, x.shape[-1:], weights[f"{b}.norm2.weight"], weights[f"{b}.norm2.bias"], 1e-6)
        hidden = F.gelu(linear(f"{b}.mlp.fc1", normal))
        x = x + linear(f"{b}.mlp.fc2", hidden) * weights.get(f"{b}.ls2.scale_factor", 1)
    return x[:, -GRID * GRID :]


def test_towers_give_the_features_of_a_plain_reading_of_the_published_weights(checkpoint: Path) -> None:
    policy, tensors = settings(checkpoint).build(), published_tensors()
    pixels = policy.prepare(Observation(frame=frames(3), instruction=("a",) * 3))["pixels"]
    expected = torch.cat(
        [plain_features(tensors, p, half) for p, half in zip((DINO, SIGLIP), pixels.chunk(2, 1), strict=True)], dim=2
    )
    found = policy.net.features(pixels)
    assert found.shape == (3, GRID * GRID, 80) and expected.std() > 0.1
    assert torch.allclose(found, expected, atol=1e-5)


def test_logits_are_those_of_the_bins_in_one_bidirectional_pass(checkpoint: Path) -> None:
    """The published recipe, row by row and without padding: BOS, patches, prompt, N zeros, EOS; all attend to all."""
    policy, tensors, texts = settings(checkpoint).build(), published_tensors(), ("open the drawer", "shut")
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    llama.load_state_dict(
        {n.removeprefix("language_model."): t for n, t in tensors.items() if n.startswith("language")}
    )
    seen = policy.prepare(Observation(frame=frames(2), instruction=texts))
    found = policy(**seen)
    assert found.shape == (2, 6, 256)
    for row in range(2):
        halves = zip((DINO, SIGLIP), seen["pixels"][row : row + 1].chunk(2, 1), strict=True)
        x = torch.cat([plain_features(tensors, p, half) for p, half in halves], dim=2)
        for name in ("fc1", "fc2", "fc3"):
            x = F.linear(x, tensors[f"projector.{name}.weight"], tensors[f"projector.{name}.bias"])
            x = F.gelu(x) if name != "fc3" else x
        ids = seen["ids"][row][seen["mask"][row]].tolist()
        assert ids[-1] == WORDS.index("▁") and ids[-2] == WORDS.index("<unk>")
        embed = llama.model.embed_tokens
        bos, prompt, eos = (embed(torch.tensor([i])) for i in ([1], ids, [2]))
        sequence = torch.cat([bos, x, prompt, torch.zeros(1, 6, 32), eos], dim=1)
        every = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
        whole = llama(inputs_embeds=sequence, attention_mask=every).logits
        first = GRID * GRID + len(ids)  # of the last word of the prompt
        expected = whole[0, first : first + 6, -256 - 64 : -64]
        assert expected.std() > 0.3
        assert torch.allclose(found[row], expected, atol=2e-5), (found[row] - expected).abs().max()


def test_it_is_a_policy_whose_rows_do_not_depend_on_their_neighbours(checkpoint: Path) -> None:
    policy, pictures = settings(checkpoint).build(), frames(2)
    assert isinstance(policy, Policy) and isinstance(policy, TrainablePolicy)
    both = logits(policy, pictures, "open", "shut the drawer slowly")
    assert both.dtype == torch.float32 and both.isfinite().all()
    assert torch.allclose(logits(policy, pictures[:1], "open"), both[:1], atol=1e-4)
    assert torch.allclose(logits(policy, pictures[:1], "Open"), both[:1], atol=1e-4), "prompts are lower case"
    assert (logits(policy, pictures[:1], "shut") - both[0]).abs().max() > 1e-3
    assert (logits(policy, 255 - pictures[:1], "open") - both[0]).abs().max() > 1e-3
    assert policy.codec.decode(both.argmax(dim=-1)).shape == (2, 2, 3)


def published_decode(token_ids: np.ndarray, vocab: int, low: float, high: float) -> np.ndarray:
    """Written after the description in the published code: digit d of 1 .. 256 is the token ``vocab - d``."""
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    return low + (centres[np.clip(vocab - token_ids - 1, 0, 254)] + 1) / 2 * (high - low)


def test_tokens_mean_what_they_mean_in_published_checkpoints(checkpoint: Path) -> None:
    codec = settings(checkpoint).build().codec
    assert codec == VocabularyCodec((-0.5, 0.0, -1.0), (0.5, 2.0, 1.0), (True, True, False), 2, 256)
    tokens = torch.arange(256).repeat_interleave(6).view(256, 6)
    actions = codec.decode(tokens)
    ids = np.arange(64, 320)  # the last 256 of the 320 tokens before the padding
    for dimension, (low, high) in enumerate([(-0.5, 0.5), (0.0, 2.0), (-1.0, 1.0)]):
        assert np.allclose(actions[:, 1, dimension], published_decode(ids, 320, low, high), atol=1e-6)
    unit = torch.linspace(-1.2, 1.2, 999)
    digit = np.digitize(np.clip(unit.numpy().astype(np.float64), -1, 1), np.linspace(-1, 1, 256))
    chunk = torch.stack([unit / 2, unit + 1, unit], dim=1).unsqueeze(1).expand(-1, 2, -1)
    encoded = codec.encode(chunk)
    assert encoded.min() == 0 and encoded.max() == 255
    assert ((encoded[:, 2] + 64) - torch.from_numpy(320 - digit)).abs().max() == 0
    inside = unit.abs() < 0.999
    assert (codec.decode(encoded)[inside] - chunk[inside]).abs().amax() <= 2 / 255 + 1e-6


def test_a_dimension_that_never_moves_stays_where_it_is() -> None:
    codec = VocabularyCodec((0.3, -1.0), (0.3, 1.0), (True, True), 1)
    chunk = torch.tensor([[[0.3, 0.5]]])
    assert torch.allclose(codec.decode(codec.encode(chunk)), chunk, atol=0.01)
    with pytest.raises(ValueError, match="q01 <= q99"):
        VocabularyCodec((1.0,), (0.0,), (True,), 1)


@pytest.mark.parametrize("size", [20, 56, 61])
def test_pictures_are_resized_as_pillow_does(size: int) -> None:
    pictures = torch.nn.functional.avg_pool2d(frames(1, size + 4).movedim(-1, 1).float(), 5, 1).round()
    image = Image.fromarray(pictures[0].movedim(0, -1).byte().numpy()).resize((28, 28), Image.Resampling.BICUBIC)
    found = resize(pictures, 28)[0].movedim(0, -1)
    assert (found - torch.from_numpy(np.array(image)).float()).abs().max() <= 1


def test_the_centre_crop_samples_between_corner_pixels() -> None:
    picture = frames(1).movedim(-1, 1).float()
    found, last = crop(picture, SIZE), SIZE - 1
    for row, column in [(0, 0), (3, 20), (27, 27), (14, 5)]:
        y, x = ((1 - CROP) / 2 * last + i * CROP for i in (row, column))
        top, left = int(y), int(x)
        fy, fx = y - top, x - left
        four = picture[0, :, top : top + 2, left : left + 2]
        value = (four * torch.tensor([[(1 - fy) * (1 - fx), (1 - fy) * fx], [fy * (1 - fx), fy * fx]])).sum(dim=(1, 2))
        assert (found[0, :, row, column] - value).abs().max() <= 1.5


def test_pixels_are_normalised_for_each_tower(checkpoint: Path) -> None:
    policy = settings(checkpoint, center_crop=False).build()
    seen = Observation(frame=torch.full((1, 40, 60, 3), 255, dtype=torch.uint8), instruction=("a",))
    pixels = policy.prepare(seen)["pixels"]
    assert pixels.shape == (1, 6, SIZE, SIZE)
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225, 1.0, 1.0, 1.0])
    assert torch.allclose(pixels.mean(dim=(0, 2, 3)), expected, atol=1e-5) and pixels.var(dim=(0, 2, 3)).max() < 1e-9


@pytest.mark.parametrize("rank", [0, 4])
def test_cloning_learns_a_batch_by_heart(checkpoint: Path, rank: int) -> None:
    policy, pictures = settings(checkpoint, lora_rank=rank).build(), frames(4)
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name for name in trained) if rank else all(p.requires_grad for p in policy.parameters())
    parts = ("dino", "siglip", "projector", "llama")
    assert all(any(name.startswith(f"net.{part}.") for name in trained) for part in parts)
    seen = policy.prepare(Observation(frame=pictures, instruction=("open", "shut", "open the drawer", "shut")))
    tokens = torch.randint(0, 256, (4, 6), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.02 if rank else 2e-3)
    losses = []
    for _ in range(60):
        loss = -likelihood.log_probs(policy(**seen), tokens).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 5 and losses[-1] < 2.5, losses  # ln 256 = 5.5 is chance


def test_reinforcement_moves_the_log_probabilities_by_the_sign_of_the_advantage(checkpoint: Path) -> None:
    policy, pictures = settings(checkpoint, lora_rank=4).build(), frames(2)
    texts = ("open", "shut the drawer")
    tokens = torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(0))

    def logprob() -> Tensor:
        with torch.no_grad():
            return likelihood.log_probs(logits(policy, pictures, *texts), tokens)

    before = logprob()
    batch = Minibatch(
        frame=pictures, instruction=texts, tokens=tokens, old_logprob=before, mask=torch.ones(2, 6, dtype=torch.bool),
        advantage=torch.tensor([1.0, -1.0]), weight=torch.full((2,), 1 / 6), num_episodes=2,
    )  # fmt: skip
    learner = GRPOLearner(policy, GRPOConfig(learning_rate=1e-3, warmup_steps=1), temperature=1.0)
    learner.step(batch)
    change = (logprob() - before).mean(dim=1)
    assert change[0] > 1e-3 and change[1] < -1e-3


def lesson() -> Minibatch:
    tokens = torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(0))
    return Minibatch(
        frame=frames(2), instruction=("open", "shut the drawer"), tokens=tokens, old_logprob=torch.full((2, 6), -5.5),
        mask=torch.ones(2, 6, dtype=torch.bool), advantage=torch.tensor([1.0, -1.0]),
        weight=torch.full((2,), 1 / 6), num_episodes=2,
    )  # fmt: skip


def trained(policy: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_a_small_step_moves_the_weights_of_a_half_precision_policy(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, rank: int, half: bool
) -> None:
    """At the paper's rate; rounded to bfloat16 nine in ten of its steps would be lost."""
    monkeypatch.setattr("wmpo.nn.has_fast_bf16", lambda device: half)
    policy = settings(checkpoint, dtype="bfloat16", lora_rank=rank).build()
    before = trained(policy)
    learner = GRPOLearner(policy, GRPOConfig(learning_rate=5e-6, warmup_steps=1), temperature=1.6)
    learner.step(lesson())
    moments = learner._optimizer.state
    moved = torch.cat(
        [
            (p != before[name].float())[moments[p]["exp_avg"].abs() > 1e-9]
            for name, p in policy.named_parameters()
            if p in moments
        ]
    )
    assert len(moved) > 1000 and moved.float().mean() > 0.99, moved.float().mean()
    assert all(p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16) for p in policy.parameters())
    acting = settings(checkpoint, dtype="bfloat16", lora_rank=rank).build()
    acting.load_state_dict(dict(learner.publish()))
    assert next(acting.parameters()).dtype == torch.bfloat16, "samplers take weights in their own type"
    found, expected = (logits(each, frames(2), "open", "shut") for each in (acting, policy))
    assert (found - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize("rank", [0, 4])
def test_ranks_train_in_full_precision_what_they_gather_in_half(alone: Team, checkpoint: Path, rank: int) -> None:
    wanted = settings(checkpoint, dtype="bfloat16", lora_rank=rank)
    policy = wanted.build()
    learner = TeamLearner(
        alone, Spec(wanted), policy, GRPOConfig(learning_rate=5e-6, warmup_steps=1), temperature=1.6
    )  # fmt: skip
    assert learner.step(lesson())["grad_norm"] > 0
    kept, own = learner.save(), wanted.build().state_dict()
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert all(kept[f"model.{name}"].dtype == torch.float32 for name in names)
    assert all(tensor.dtype == torch.float32 for name, tensor in kept.items() if name.startswith("optimizer."))
    moved = torch.cat([(kept[f"model.{name}"] != own[name].float()).flatten() for name in names])
    assert moved.float().mean() > (0.3 if rank else 0.5)  # unused bins and embeddings, and the zeros of LoRA, have none
    published = learner.publish()
    assert {name: t.dtype for name, t in published.items()} == {name: t.dtype for name, t in own.items()}
    learner.restore(kept)


def test_recomputed_activations_give_the_same_gradient(checkpoint: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = settings(checkpoint, gradient_checkpointing=checkpointing).build()
        logits(policy, frames(1), "open").square().mean().backward()
        assert policy.net.llama.training == checkpointing, "transformers recomputes in training mode only"
        gradients.append(policy.net.dino.embeddings.cls_token.grad)
    assert gradients[0].abs().max() > 0 and torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 4])
def test_half_precision_says_nearly_the_same(checkpoint: Path, rank: int) -> None:
    exact, half = (settings(checkpoint, dtype=name, lora_rank=rank).build() for name in ("float32", "bfloat16"))
    assert half.net.llama.lm_head.weight.dtype == torch.bfloat16
    found, expected = (logits(policy, frames(2), "open", "shut the drawer") for policy in (half, exact))
    assert found.dtype == torch.float32 and (found - expected).std() < 0.05 * expected.std()
    found.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in half.parameters())


@pytest.mark.parametrize("rank", [0, 4])
def test_export_writes_the_published_format_with_updates_merged(checkpoint: Path, tmp_path: Path, rank: int) -> None:
    policy = settings(checkpoint, lora_rank=rank).build()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    policy.export(tmp_path / "out")
    expected = logits(policy, frames(2), "open", "shut")
    again = settings(tmp_path / "out").build()
    assert torch.allclose(logits(again, frames(2), "open", "shut"), expected, atol=1e-3)
    for shard in sorted(path.name for path in checkpoint.glob("*.safetensors")):
        old, new = load_file(checkpoint / shard), load_file(tmp_path / "out" / shard)
        assert {n: t.shape for n, t in old.items()} == {n: t.shape for n, t in new.items()}
        unused = [name for name in old if ".attn_pool." in name or f"{DINO}blocks.2." in name]
        assert all(torch.equal(old[name], new[name]) for name in unused)
        moved = [
            name
            for name in old
            if ".attn.qkv.weight" in name and name not in unused and f"{SIGLIP}blocks.3" not in name
        ]
        assert all((old[name] - new[name]).abs().max() > 1e-3 for name in moved)
    with pytest.raises(ValueError, match="name another one"):
        policy.export(checkpoint)


def change_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_tensors(folder: Path, name: str, tensor: Tensor | None) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"].get(name, "model-00002-of-00002.safetensors")
    tensors = load_file(shard)
    tensors.pop(name, None)
    index["weight_map"].pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
        index["weight_map"][name] = shard.name
    save_file(tensors, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HEAD = "language_model.lm_head.weight"
DAMAGES = {
    "no shard": (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), {}, "lacks model-00002"),
    "no index": (lambda f: (f / "model.safetensors.index.json").unlink(), {}, "has neither model.safetens"),
    "damaged shard": (lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(b"?"), {}, "00001.*is damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), {}, r"config\.json does not exist"),
    "foreign config": (lambda f: change_json(f / "config.json", timm_model_ids=None), {}, "has no timm_model_ids"),
    "other towers": (lambda f: change_json(f / "config.json", timm_model_ids=["vit_tiny"] * 2), {}, "not supported"),
    "no statistics": (
        lambda f: ((f / "dataset_statistics.json").unlink(), change_json(f / "config.json", norm_stats=None)),
        {},
        "dataset_statistics.json of its fine-tuning",
    ),
    "no key": (lambda f: None, {"unnorm_key": ""}, "must be one of coffee, square"),
    "wrong key": (lambda f: None, {"unnorm_key": "stack"}, "'stack' must be one of coffee, square"),
    "no quantiles": (
        lambda f: (f / "dataset_statistics.json").write_text(json.dumps({"square": {"action": {"mean": [0]}}})),
        {},
        r"no q01 and q99; they hold \['mean'\]",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), {}, r"tokenizer\.json does not exist"),
    "no picture settings": (lambda f: (f / "preprocessor_config.json").unlink(), {}, "preprocessor_config.json does"),
    "continuous head": (lambda f: (f / "action_head--9.pt").touch(), {}, "fine-tuned with discrete bins"),
    "missing tensor": (lambda f: change_tensors(f, HEAD, None), {}, r"1 tensors differ \(llama.lm_head.weight: "),
    "other shape": (lambda f: change_tensors(f, "projector.fc3.bias", torch.zeros(9)), {}, r"fc3.bias: .*found \(9,\)"),
    "unknown tensor": (lambda f: change_tensors(f, "vision.x", torch.zeros(1)), {}, "vision.x: expected None"),
    "dtype": (lambda f: None, {"dtype": "int8"}, "'int8' must be one of float32, bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "changes", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_missing_or_foreign_is_named(broken: Path, damage, changes: dict[str, object], message: str) -> None:
    damage(broken)
    with pytest.raises(ValueError, match=message):
        settings(broken, **changes).build()
    with pytest.raises(ValueError, match=message):  # before anything is played
        settings(broken, **{"fine_tuned": True} | changes).check_weights()


def test_a_complete_checkpoint_passes_without_being_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightFolder, "shards", lambda self: pytest.fail("weights were read"))
    settings(checkpoint, fine_tuned=True).check_weights()
    settings(checkpoint, unnorm_key="").check_weights()  # several data sets matter to fine-tuned ones only


def test_statistics_of_the_first_training_serve_where_there_are_no_later_ones(broken: Path) -> None:
    (broken / "dataset_statistics.json").unlink()
    assert settings(broken, unnorm_key="").build().codec.high == (1.0, 1.0, 1.0)


def test_frames_that_are_not_square_are_refused_where_stretching_is_wrong(broken: Path) -> None:
    change_json(broken / "preprocessor_config.json", image_resize_strategy="letterbox")
    policy = settings(broken).build()
    with pytest.raises(ValueError, match="frames are 28x56"):
        policy.prepare(Observation(frame=torch.zeros(1, 28, 56, 3, dtype=torch.uint8), instruction=("a",)))
