"""The OpenSora-class world model: against a plain reading of the published weights, and as a world model."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmpo.hf import WeightFolder
from wmpo.noise import row_normal
from wmpo.protocols import WorldModel
from wmpo.world_model.opensora import OpenSoraWorldModel, OpenSoraWorldModelConfig
from wmpo.world_model.stdit import Sizes, STDiT, load

SIZES = Sizes(width=16, depth=2, num_heads=2, mlp_width=24, channels=4)
PIXELS, GRID, CONTEXT, FRAMES, ACTIONS = 32, 4, 3, 2, 5  # the miniature autoencoder makes 4 x 4 cells of 32 x 32 pixels
BOUNDS = torch.full((ACTIONS,), -1.0), torch.full((ACTIONS,), 1.0)


def published_tensors(actions: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Names and shapes of OpenSora-STDiT-v3, text and frame-rate weights too; those of WMPO add the actions'."""
    d, head, hidden = 16, 8, 24
    shapes: dict[str, tuple[int, ...]] = {"x_embedder.proj.weight": (d, 4, 1, 2, 2), "x_embedder.proj.bias": (d,)}
    linear = {
        "t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d), "t_block.1": (6 * d, d),
        "final_layer.linear": (32, d), "fps_embedder.mlp.0": (d, 256), "fps_embedder.mlp.2": (d, d),
        "y_embedder.y_proj.fc1": (d, 9),
    }  # fmt: skip
    if actions:
        linear |= {"action_embedder.fc.0": (4 * d, ACTIONS), "action_embedder.fc.2": (d, 4 * d)}
        shapes["action_embedder.none_action.weight"] = (1, d)
    for kind in ("spatial", "temporal"):
        for block in range(2):
            prefix = f"{kind}_blocks.{block}."
            linear |= {
                f"{prefix}attn.qkv": (3 * d, d), f"{prefix}attn.proj": (d, d), f"{prefix}mlp.fc1": (hidden, d),
                f"{prefix}mlp.fc2": (d, hidden), f"{prefix}cross_attn.q_linear": (d, d),
            }  # fmt: skip
            shapes |= {f"{prefix}attn.{n}_norm.weight": (head,) for n in "qk"}
            shapes[f"{prefix}scale_shift_table"] = (6, d)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {"final_layer.scale_shift_table": (2, d), "rope.freqs": (head // 2,), "y_embedder.y_embedding": (3, 9)}
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.25 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def plain_velocity(
    w: dict[str, Tensor], x: Tensor, context: Tensor, actions: Tensor, time: float, level: float
) -> Tensor:
    """One row, all frames at once and without memory, after the description of the released code: (T, C, y, x)."""
    video = torch.cat([context, x])
    total, known, size = len(video), len(context), video.shape[-1] // 2

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    def embed(value: float) -> Tensor:
        angle = value * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        return linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()]))))

    place = torch.zeros(size, size, 16)
    for row in range(size):
        for column in range(size):
            angles = [[p / (PIXELS / 512) / 10000 ** (2 * i / 8) for i in range(4)] for p in (column, row)]
            place[row, column] = torch.tensor([f(a) for line in angles for f in (math.sin, math.cos) for a in line])
    tokens = F.conv3d(video.transpose(0, 1), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=(1, 2, 2))
    h = tokens.permute(1, 2, 3, 0).flatten(1, 2) + place.flatten(0, 1)  # (T, S, D)
    acts = linear("action_embedder.fc.2", F.silu(linear("action_embedder.fc.0", actions)))
    known_t = linear("t_block.1", F.silu(embed(level))).view(6, 16)

    def norm(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(value, (16,), eps=1e-6) * (1 + scale) + shift

    def rms(value: Tensor, name: str) -> Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[name]

    for i in range(2):
        for kind in ("spatial", "temporal"):
            b = f"{kind}_blocks.{i}"
            table = []
            for frame in range(total):
                t = embed(time) + (acts[frame - known] if kind == "spatial" and frame >= known else 0)
                one = known_t if frame < known else linear("t_block.1", F.silu(t)).view(6, 16)
                table.append(one + w[f"{b}.scale_shift_table"])
            m = torch.stack(table).unsqueeze(2)  # (T, 6, 1, D)
            q, k, v = linear(f"{b}.attn.qkv", norm(h, m[:, 0], m[:, 1])).view(total, -1, 3, 2, 8).unbind(2)
            q, k = rms(q, f"{b}.attn.q_norm.weight"), rms(k, f"{b}.attn.k_norm.weight")
            if kind == "temporal":
                turned = []
                for value in (q, k):
                    value = value.clone()
                    for frame in range(total):
                        for pair in range(4):
                            a = frame * 10000 ** (-pair / 4)
                            even, odd = value[frame, ..., 2 * pair].clone(), value[frame, ..., 2 * pair + 1].clone()
                            value[frame, ..., 2 * pair] = even * math.cos(a) - odd * math.sin(a)
                            value[frame, ..., 2 * pair + 1] = odd * math.cos(a) + even * math.sin(a)
                    turned.append(value)
                scores = torch.einsum("tshd,ushd->shtu", *turned) / 8**0.5
                scores = scores.masked_fill(torch.ones(total, total).triu(1).bool(), -math.inf)
                seen = torch.einsum("shtu,ushd->tshd", scores.softmax(-1), v)
            else:
                scores = torch.einsum("tshd,tuhd->thsu", q, k) / 8**0.5
                seen = torch.einsum("thsu,tuhd->tshd", scores.softmax(-1), v)
            h = h + m[:, 2] * linear(f"{b}.attn.proj", seen.flatten(2))
            inner = F.gelu(linear(f"{b}.mlp.fc1", norm(h, m[:, 3], m[:, 4])), approximate="tanh")
            h = h + m[:, 5] * linear(f"{b}.mlp.fc2", inner)
    shift, scale = w["final_layer.scale_shift_table"] + embed(time)
    out = linear("final_layer.linear", norm(h[known:], shift, scale)).view(-1, size, size, 2, 2, 8)
    return out[..., :4].permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def some_latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 4, GRID, GRID, generator=torch.Generator().manual_seed(seed))


def some_actions(count: int, frames: int = FRAMES, seed: int = 0) -> Tensor:
    return 2 * torch.rand(count, frames, ACTIONS, generator=torch.Generator().manual_seed(seed)) - 1


@torch.no_grad()
def test_published_weights_give_the_velocity_of_a_plain_reading_of_them(tmp_path: Path) -> None:
    tensors = published_tensors()
    net = load(WeightFolder(write(tmp_path, tensors)), ACTIONS, temporal_actions=False)
    assert net.sizes == SIZES
    x, context, actions = some_latents(2, FRAMES), some_latents(2, CONTEXT, seed=1), some_actions(2)
    memory = net.remember(context, 15.0, PIXELS)
    found = net(x, torch.tensor([700.0, 30.0]), actions, memory, PIXELS)
    for row, time in enumerate((700.0, 30.0)):
        expected = plain_velocity(tensors, x[row], context[row], actions[row], time, 15.0)
        assert expected.std() > 0.1 and torch.allclose(found[row], expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("temporal_actions", [False, True])
def test_keys_and_values_computed_once_are_those_of_the_whole_forward(temporal_actions: bool) -> None:
    net = random_net(temporal_actions)
    x, context, actions = some_latents(2, FRAMES), some_latents(2, CONTEXT, seed=1), some_actions(2)
    time = torch.tensor([700.0, 30.0])
    found = net(x, time, actions, net.remember(context, 15.0, PIXELS), PIXELS)
    known, fresh = net.conditions(torch.full((2,), 15.0), None, CONTEXT), net.conditions(time, actions, FRAMES)
    joint = [torch.cat(pair, dim=1) for pair in zip(known, fresh, strict=True)]
    tokens, memory = net._run(net.embed(torch.cat([context, x], dim=1), PIXELS), *joint, None)
    assert memory[0][0].shape[2] == CONTEXT + FRAMES
    shift, scale = (net.final_layer.scale_shift_table + net.level(time).unsqueeze(1)).unbind(1)
    last = F.layer_norm(tokens[:, CONTEXT:], (16,), eps=1e-6) * (1 + scale[:, None, None]) + shift[:, None, None]
    whole = net.final_layer.linear(last).view(2, FRAMES, 2, 2, 2, 2, 8)[..., :4]
    expected = whole.permute(0, 1, 6, 2, 4, 3, 5).reshape(found.shape)
    assert torch.allclose(found, expected, atol=1e-5) and found.std() > 0.1


def random_net(temporal_actions: bool = False) -> STDiT:
    torch.manual_seed(0)
    net = STDiT(replace(SIZES, temporal_actions=temporal_actions), ACTIONS)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return net


@torch.no_grad()
@pytest.mark.parametrize("temporal_actions", [False, True])
def test_later_actions_do_not_change_earlier_frames(temporal_actions: bool) -> None:
    net = random_net(temporal_actions)
    x, actions, time = some_latents(1, FRAMES), some_actions(1), torch.tensor([500.0])
    memory = net.remember(some_latents(1, CONTEXT, seed=1), 15.0, PIXELS)
    changed = actions.clone()
    changed[:, 1] *= -1
    first, second = (net(x, time, a, memory, PIXELS) for a in (actions, changed))
    assert torch.allclose(first[:, 0], second[:, 0], atol=1e-6) and (first[:, 1] - second[:, 1]).abs().max() > 1e-3


def test_weights_without_actions_begin_them_anew(tmp_path: Path) -> None:
    tensors = published_tensors(actions=False)
    net = load(WeightFolder(write(tmp_path, tensors)), 9, temporal_actions=True)
    assert net.clues == 9 and net.sizes.temporal_actions
    assert torch.equal(net.t_block[1].weight, tensors["t_block.1.weight"])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tensors = published_tensors()
    with pytest.raises(
        ValueError, match=r"2 tensors differ \(action_embedder.fc.0.weight: expected \(64, 6\)"
    ) as error:
        load(WeightFolder(write(tmp_path / "a", tensors | {"surplus": torch.zeros(1)})), 6, False)
    assert "surplus: expected None" in str(error.value)
    del tensors["temporal_blocks.1.attn.qkv.bias"]
    with pytest.raises(ValueError, match=r"temporal_blocks.1.attn.qkv.bias: expected \(48,\), found None"):
        load(WeightFolder(write(tmp_path / "b", tensors)), ACTIONS, False)
    del tensors["spatial_blocks.0.attn.q_norm.weight"]
    with pytest.raises(ValueError, match=r"has no tensor spatial_blocks.0.attn.q_norm.weight"):
        load(WeightFolder(write(tmp_path / "c", tensors)), ACTIONS, False)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers", reason="needs the extra hf: pip install 'wmpo[hf]'")
    from hf_miniatures import write_autoencoder

    return write_autoencoder(tmp_path_factory.mktemp("vae"))


def world_model(autoencoder: Path, weights: Path | None = None, **changes: object) -> OpenSoraWorldModel:
    given = {
        "vae": str(autoencoder),
        "sizes": SIZES,
        "num_context": CONTEXT,
        "euler_steps": 3,
        "decode_batch": 3,
    } | changes
    config = OpenSoraWorldModelConfig(folder="" if weights is None else str(weights), **given)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = config.build(*BOUNDS, PIXELS)
    if weights is None:
        model.net.load_state_dict(random_net().state_dict() if model.frame_stride == 1 else model.net.state_dict())
    return model


def pictures(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, PIXELS, PIXELS, 3), dtype=torch.uint8, generator=generator)


def imagine(model: OpenSoraWorldModel, frames: Tensor, actions: Tensor, keys: list[int], chunks: int = 2) -> Tensor:
    context, latents = model.begin(frames), []
    for chunk in range(chunks):
        noise = row_normal(0, "test", keys, chunk, model.noise_shape(actions.shape[1]))
        frames, context = model.imagine(context, actions, noise)
        assert frames.shape == (len(keys), actions.shape[1] // model.frame_stride, PIXELS, PIXELS, 3)
        latents.append(context.latents)
    return torch.cat(latents, dim=1)


@pytest.mark.usefixtures("float32")
def test_it_is_a_world_model_whose_rows_are_their_own(autoencoder: Path) -> None:
    model = world_model(autoencoder)
    assert isinstance(model, WorldModel) and model.noise_shape(8) == (8, 4, GRID, GRID)
    frames, actions = pictures(3, 1), some_actions(3, 4)
    whole = imagine(model, frames, actions, [0, 1, 2])
    assert whole.shape == (3, 2 * CONTEXT, 4, GRID, GRID) and torch.equal(
        imagine(model, frames, actions, [0, 1, 2]), whole
    )
    assert torch.allclose(imagine(model, frames[[2, 0]], actions[[2, 0]], [2, 0]), whole[[2, 0]], atol=1e-4)
    picked = model.select(model.begin(frames), torch.tensor([2]))
    assert torch.allclose(picked.latents, model.begin(frames[[2]]).latents, atol=1e-5)
    for other in (
        imagine(model, pictures(3, 1, seed=1), actions, [0, 1, 2]),
        imagine(model, frames, some_actions(3, 4, seed=1), [0, 1, 2]),
        imagine(model, frames, actions, [5, 6, 7]),
    ):
        assert ((other - whole).abs().amax(dim=(1, 2, 3, 4)) > 1e-3).all()


@pytest.mark.usefixtures("float32")
def test_a_context_repeats_its_first_frame_and_scales_the_latents(autoencoder: Path) -> None:
    model, frames = world_model(autoencoder), pictures(2, 5)
    latents = model.begin(frames[:, :1]).latents
    assert torch.equal(latents[:, 0], latents[:, 2]) and latents.shape == (2, CONTEXT, 4, GRID, GRID)
    assert torch.allclose(model.begin(frames).latents, model.encode(frames[:, 2:]), atol=1e-6)
    mean = model.vae.encode(frames[:, 0].movedim(-1, 1).float() / 127.5 - 1).latent_dist.mean
    assert torch.allclose(latents[:, 0], 0.13025 * mean, atol=1e-5)
    shown = model.vae.decode(latents[:, 0] / 0.13025).sample.add(1).mul(127.5).round().clamp(0, 255)
    assert (model.reconstruct(frames[:, 0]).movedim(-1, 1) - shown).abs().max() <= 1


@pytest.mark.usefixtures("float32")
def test_sampling_is_euler_from_noise_at_the_levels_of_the_paper(autoencoder: Path) -> None:
    model, actions = world_model(autoencoder, num_context=1), some_actions(1, 2)
    context, noise = model.begin(pictures(1, 1)), some_latents(1, 2, seed=3)
    _, after = model.imagine(context, actions, noise)
    x, memory = noise, model.net.remember(context.latents, 15.0, PIXELS)
    for level in (1000.0, 2000 / 3, 1000 / 3):
        with torch.no_grad():
            x = x + model.net(x, torch.tensor([level]), actions, memory, PIXELS) / 3
    assert torch.allclose(after.latents, x[:, -1:], atol=1e-5)


@pytest.mark.usefixtures("float32")
def test_the_loss_falls_and_counts_new_frames_only(autoencoder: Path) -> None:
    model = world_model(autoencoder).train()
    assert not model.vae.training and not any(p.requires_grad for p in model.vae.parameters())
    latents, noise, actions = some_latents(4, CONTEXT + 2), some_latents(4, CONTEXT + 2, seed=1), some_actions(4)
    time = torch.tensor([0.1, 0.4, 0.6, 0.9])
    with torch.no_grad():
        memory = model.net.remember(0.985 * latents[:, :CONTEXT] + 0.015 * noise[:, :CONTEXT], 15.0, PIXELS)
        t = time.view(4, 1, 1, 1, 1)
        x, aim = (1 - t) * noise[:, CONTEXT:] + t * latents[:, CONTEXT:], (latents - noise)[:, CONTEXT:]
        expected = (model.net(x, 1000 * (1 - time), actions, memory, PIXELS) - aim).square().mean(dim=(1, 2, 3, 4))
        assert torch.allclose(model(latents, actions, noise, time), expected, atol=1e-5)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = model(latents, actions, noise, time).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0], (losses[0], losses[-1])


def test_published_weights_imagine_and_strides_group_actions(autoencoder: Path, tmp_path: Path) -> None:
    model = world_model(autoencoder, write(tmp_path / "wm", published_tensors()))
    assert imagine(model, pictures(1, 2), some_actions(1, 4), [0]).isfinite().all()
    strided = world_model(autoencoder, frame_stride=2)
    assert strided.noise_shape(8)[0] == 4 and strided.net.clues == 2 * ACTIONS
    actions = some_actions(1, 4)
    assert torch.allclose(strided.clues(actions)[0, 1], actions[0, 2:].flatten())
    assert imagine(strided, pictures(1, 2), actions, [0]).isfinite().all()


def test_without_frame_level_control_all_frames_of_a_chunk_are_told_its_mean(autoencoder: Path) -> None:
    actions = some_actions(2).view(2, FRAMES, ACTIONS)
    own, one = (world_model(autoencoder, frame_actions=kind).clues(actions) for kind in (True, False))
    assert torch.allclose(one, own.mean(dim=1, keepdim=True).expand_as(own)) and not torch.allclose(one, own)


def test_what_does_not_fit_is_refused_with_the_fix(autoencoder: Path, tmp_path: Path) -> None:
    model = world_model(autoencoder)
    with pytest.raises(ValueError, match=r"frames are 16x16.*32 px"):
        model.reconstruct(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must be a multiple of 16"):
        model.config.build(*BOUNDS, 40)
    with pytest.raises(ValueError, match="context_noise"):
        replace(model.config, context_noise=1000.0).build(*BOUNDS, PIXELS)
    with pytest.raises(ValueError, match="low < high"):
        model.config.build(BOUNDS[0], BOUNDS[0], PIXELS)
    with pytest.raises(ValueError, match="4 channels, the transformer 6"):
        replace(model.config, sizes=replace(SIZES, channels=6)).build(*BOUNDS, PIXELS)
    with pytest.raises(ValueError, match="must be the folder of a diffusers AutoencoderKL"):
        world_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="has neither diffusion_pytorch_model"):
        world_model(tmp_path)


def test_weights_are_compared_by_their_headers_before_anything_is_played(autoencoder: Path, tmp_path: Path) -> None:
    def config(net: dict[str, Tensor], vae: Path = autoencoder) -> OpenSoraWorldModelConfig:
        return OpenSoraWorldModelConfig(vae=str(vae), folder=str(write(tmp_path / "net", net)))

    tensors = published_tensors()
    config(tensors).check_weights(ACTIONS)
    with pytest.raises(ValueError, match=r"action_embedder.fc.0.weight: expected \(64, 6\)"):
        config(tensors).check_weights(6)
    with pytest.raises(ValueError, match=r"t_block.1.bias: expected \(96,\), found None"):
        config({name: t for name, t in tensors.items() if name != "t_block.1.bias"}).check_weights(ACTIONS)
    name, older = "diffusion_pytorch_model.safetensors", Path(shutil.copytree(autoencoder, tmp_path / "vae"))
    of_vae = load_file(autoencoder / name)
    save_file({n.replace(".to_q.", ".query.").replace(".to_out.0.", ".proj_attn."): t for n, t in of_vae.items()},
              older / name)  # fmt: skip
    config(tensors, older).check_weights(ACTIONS)
    save_file({n: t for n, t in of_vae.items() if n != "encoder.conv_in.bias"}, older / name)
    with pytest.raises(ValueError, match=r"encoder.conv_in.bias: expected \(8,\), found None"):
        config(tensors, older).check_weights(ACTIONS)
