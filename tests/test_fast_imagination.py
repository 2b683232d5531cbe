"""The OpenSora-class world model made fast: nothing of what is saved changes a frame, and steps can be distilled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import CHUNK, Brightness, small_world_model, some_starts
from test_opensora import ACTIONS, BOUNDS, published_tensors, random_net, some_actions, some_latents, write
from torch import Tensor, nn

from wmpo.envs.imagined import ImaginedEnv
from wmpo.hf import WeightFolder
from wmpo.noise import row_normal
from wmpo.report.run import RunFolder, StageLog
from wmpo.reward.detector import Detector, frames_seen
from wmpo.train.distill import DistillConfig, distill_world_model
from wmpo.train.fit import FitConfig
from wmpo.world_model import flow, stdit
from wmpo.world_model.opensora import OpenSoraWorldModel, OpenSoraWorldModelConfig

PIXELS, FRAMES = 32, 4


class Patches(nn.Module):
    """Stands for diffusers' AutoencoderKL, and counts pictures: cells of 8 x 8 pixels, one product each."""

    config = SimpleNamespace(latent_channels=4, block_out_channels=(1,) * 4, scaling_factor=0.5)

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 8, stride=8), nn.ConvTranspose2d(4, 3, 8, stride=8)
        self.encoded = self.decoded = 0

    def encode(self, pictures: Tensor) -> Any:
        self.encoded += len(pictures)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.down(pictures)))

    def decode(self, latents: Tensor) -> Any:
        self.decoded += len(latents)
        return SimpleNamespace(sample=self.up(latents))


def world_model(**settings: Any) -> OpenSoraWorldModel:
    torch.manual_seed(0)
    config = OpenSoraWorldModelConfig(**{"vae": "", "num_context": 3, "euler_steps": 5} | settings)
    return OpenSoraWorldModel(config, random_net(), Patches(), *BOUNDS, PIXELS).eval()


def pictures(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, PIXELS, PIXELS, 3), dtype=torch.uint8, generator=generator)


def noise(model: OpenSoraWorldModel, count: int, chunk: int = 0) -> Tensor:
    return row_normal(0, "test", range(count), chunk, model.noise_shape(FRAMES))


@pytest.mark.usefixtures("float32")
@torch.no_grad()
@pytest.mark.parametrize("shortcut_steps", [0, 2])
def test_two_chunks_are_those_of_computing_everything_anew_for_every_row_and_step(shortcut_steps: int) -> None:
    model = world_model(shortcut_steps=shortcut_steps, imagine_batch=4)
    frames, steps = pictures(2).repeat_interleave(3, dim=0), shortcut_steps or 5
    context, expected = model.begin(frames), model.encode(frames).expand(-1, 3, -1, -1, -1)
    for chunk in range(2):
        actions = some_actions(6, FRAMES, seed=chunk)
        shown, context = model.imagine(context, actions, noise(model, 6, chunk))
        x = noise(model, 6, chunk)
        for step in range(steps):
            time, size = torch.full((6,), step / steps), torch.full((6,), 1000.0 / steps * (shortcut_steps > 0))
            whole = joint(model.net, expected, x, 1000 * (1 - time), size, model.clues(actions))
            x = x + whole / steps
        expected = x[:, -3:]
        assert torch.allclose(context.latents, expected, atol=1e-5), chunk
        assert (shown.int() - model.decode(x).int()).abs().max() <= 1
    assert (context.latents[0] - context.latents[1]).abs().max() > 1e-2, "siblings act differently"


def joint(net: stdit.STDiT, context: Tensor, x: Tensor, time: Tensor, step: Tensor, actions: Tensor) -> Tensor:
    """Context and new frames in one sequence, without memory."""
    known = net.conditions(torch.full_like(time, 15.0), None, context.shape[1])
    fresh = net.conditions(time, actions, x.shape[1], step)
    both = [torch.cat(pair, dim=1) for pair in zip(known, fresh, strict=True)]
    tokens, _ = net._run(net.embed(torch.cat([context, x], dim=1), PIXELS), *both, None)
    out = net.final_layer(tokens[:, context.shape[1] :], net.level(time, step))
    cells = out.view(*x.shape[:2], x.shape[3] // 2, x.shape[4] // 2, 2, 2, -1)[..., :4]
    return cells.permute(0, 1, 6, 2, 4, 3, 5).reshape(x.shape)


def test_a_start_that_siblings_share_is_encoded_and_remembered_once() -> None:
    model, asked = world_model(), []
    remember = model.net.remember
    model.net.remember = lambda context, *rest: (asked.append(len(context)), remember(context, *rest))[1]  # type: ignore[method-assign]
    frames = pictures(3)[[0, 0, 1, 0, 2, 1]]
    context = model.begin(frames)
    assert model.vae.encoded == 3 and torch.equal(context.row, torch.tensor([0, 0, 1, 0, 2, 1]))
    left = model.select(context, torch.tensor([1, 3, 5]))
    assert len(left.distinct) == 2 and torch.equal(left.latents, context.latents[[1, 3, 5]])
    for chunk in range(2):
        _, left = model.imagine(left, some_actions(3, FRAMES), noise(model, 3, chunk))
    assert asked == [2, 3]


@pytest.mark.usefixtures("float32")
def test_frames_that_are_wanted_are_the_same_without_the_others() -> None:
    model = world_model()
    context = model.begin(pictures(2))
    whole, after = model.imagine(context, some_actions(2, FRAMES), noise(model, 2))
    assert model.vae.decoded == 2 * FRAMES
    some, same = model.imagine(context, some_actions(2, FRAMES), noise(model, 2), [1, 3])
    assert model.vae.decoded == 2 * FRAMES + 4
    assert torch.equal(some, whole[:, [1, 3]]) and torch.equal(same.latents, after.latents)
    small = small_world_model(frame_stride=1)
    frames, start = some_starts(2, frames=1).frames, row_normal(0, "test", range(2), 0, small.noise_shape(4))
    all_four, picked = (
        small.imagine(small.begin(frames), some_actions(2, 4)[..., :2], start, s)[0] for s in (None, [3])
    )
    assert torch.equal(picked, all_four[:, 3:])


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("every", [1, 2, 3, 6])
def test_looking_seldom_gives_the_scores_of_looking_always_at_those_frames(window: int, every: int) -> None:
    videos = torch.randint(0, 256, (50, 13, 2, 2, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    model, rows = Brightness(window, 140.0 * sum(0.5**i for i in range(window))), torch.arange(50)
    dense, seldom = (Detector(model, videos[:, 0], [""] * len(videos), seen) for seen in (1, every))
    places = frames_seen(window, every, 6)
    assert places[-1] == 5 and len(places) == 6 // every * min(window, every)
    for chunk in (videos[:, 1:7], videos[:, 7:]):
        _, expected = dense.update(chunk, rows)
        first, logits = seldom.update(chunk[:, places], rows)
        assert torch.allclose(logits, expected[:, every - 1 :: every])
        above = [[k + 1 for k in range(every - 1, 6, every) if row[k] > model.threshold] for row in expected]
        assert first.tolist() == [frames[0] if frames else 0 for frames in above]
        assert 0 < int((first > 0).sum()) < 50


@pytest.mark.usefixtures("float32")
def test_an_imagined_episode_that_is_looked_at_once_a_chunk_is_the_same_and_ended_rows_are_dropped() -> None:
    def play(every: int, threshold: float) -> tuple[list[Tensor], list[int], Tensor]:
        model, asked = small_world_model(), []
        imagine = model.imagine
        model.imagine = lambda context, chunk, *rest: (asked.append(len(chunk)), imagine(context, chunk, *rest))[1]  # type: ignore[method-assign]
        env = ImaginedEnv(model, Brightness(1, threshold), chunk_size=CHUNK, max_chunks=4, seed=0, score_every=every)
        env.reset(some_starts(8, frames=1))
        steps = []
        for chunk in range(4):
            steps.append(env.step(some_actions(8, CHUNK, seed=chunk)[..., :2]))
            if env._clock.finished.all():
                break
        ended = torch.stack([step.terminated for step in steps])
        assert all((step.steps[step.terminated] % (2 * every) == 0).all() for step in steps)
        return [step.frames[:, -1] for step in steps], asked, ended

    always, _, _ = play(1, 1e9)
    seldom, asked, _ = play(2, 1e9)
    assert all(map(torch.equal, always, seldom)) and asked == [8] * 4
    bright = torch.stack([frames.float().mean(dim=(1, 2, 3)) for frames in always])
    threshold = float(bright.amax(dim=0).sort().values[3:5].mean())
    _, asked, ended = play(2, threshold)
    over = (bright > threshold).cumsum(dim=0) > 0
    assert torch.equal(ended.cumsum(dim=0) > 0, over[: len(ended)])
    assert asked[1:] == [8 - int(over[k].sum()) for k in range(len(asked) - 1)] and asked[-1] < 8
    with pytest.raises(ValueError, match="score_every 3 must divide the 2"):
        play(3, 0.0)


def test_two_halves_of_a_linear_flow_make_the_whole_and_the_smallest_are_euler_steps() -> None:
    rate, x = -1.3, torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def exact(x: Tensor, time: Tensor, step: Tensor) -> Tensor:  # dx/dt = rate x, so x(t + d) = exp(rate d) x(t)
        mean = torch.where(step > 0, (rate * step).exp().sub(1) / step.clamp(min=1e-9), torch.tensor(rate))
        return mean.unsqueeze(1) * x

    time, step = torch.tensor([0.0, 0.5, 0.25, 0.0]), torch.tensor([1.0, 0.5, 0.25, 0.5])
    whole = flow.two_halves(exact, x, time, step, finest=1 / 32)
    assert torch.allclose(whole, exact(x, time, step), atol=1e-6)
    coarse = flow.two_halves(exact, x, time, step, finest=0.5)  # all halves are small enough: velocities
    assert torch.allclose(coarse, rate * (1 + rate * step / 4).unsqueeze(1) * x, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_few_steps_are_as_good_as_many_where_the_flow_is_straight(steps: int) -> None:
    x0, x1 = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()

    def straight(x: Tensor, time: Tensor, step: Tensor | None = None) -> Tensor:
        return x1 - x0

    assert torch.allclose(flow.euler(straight, x0, steps), x1, atol=1e-5)
    step = torch.full((5,), 1.0 / steps)
    assert torch.equal(flow.two_halves(straight, x0, torch.zeros(5), step, 1 / 32), x1 - x0)


def test_steps_of_all_sizes_begin_where_samplers_look() -> None:
    time, step = flow.shortcut_times(20_000, 16, torch.Generator().manual_seed(0))
    sizes, counts = step.unique(return_counts=True)
    assert sizes.tolist() == [1 / 8, 1 / 4, 1 / 2, 1] and (counts / 20_000 - 0.25).abs().max() < 0.02
    assert torch.equal((time / step).round() * step, time) and (time + step).max() == 1
    assert len(time[step == 1 / 8].unique()) == 8


@pytest.mark.usefixtures("float32")
def test_what_is_distilled_is_what_two_halves_give_and_the_flow_where_the_step_is_zero() -> None:
    model = world_model()
    latents, actions = some_latents(4, 3 + FRAMES), some_actions(4, FRAMES)
    fresh, time = some_latents(4, 3 + FRAMES, seed=1), torch.tensor([0.0, 0.5, 0.25, 0.7])
    step = torch.tensor([1.0, 0.5, 0.25, 0.0])
    found = model(latents, actions, fresh, time, step, finest=1 / 8)
    plain = model(latents, actions, fresh, time)
    assert torch.allclose(found[3], plain[3], atol=1e-6) and (found[:3] - plain[:3]).abs().min() > 1e-3
    with torch.no_grad():
        memory = model.net.remember(0.985 * latents[:, :3] + 0.015 * fresh[:, :3], 15.0, PIXELS)

        def mean(x: Tensor, at: Tensor, size: Tensor) -> Tensor:
            return model.net(x, 1000 * (1 - at), model.clues(actions), memory, PIXELS, 1000 * size)

        x = flow.between(fresh[:, 3:], latents[:, 3:], time)
        half = torch.tensor([0.5, 0.25, 0.0, 0.0])  # a half of 1/8 is an Euler step
        first = mean(x, time, half)
        second = mean(x + (step / 2).view(4, 1, 1, 1, 1) * first, time + step / 2, half)
        expected = (mean(x, time, step) - (first + second) / 2).square().flatten(1).mean(dim=1)
    assert torch.allclose(found[:3], expected[:3], atol=1e-5)


class Recorded:
    """Windows of random latents; breaks off at one of the draws, as Ctrl-C does."""

    def __init__(self, stop: int = -1) -> None:
        self.stop, self.drawn = stop, 0

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        self.drawn += 1
        if self.drawn == self.stop:
            raise KeyboardInterrupt
        seed = int(rng.integers(1000))
        return some_latents(count, 3 + FRAMES, seed=seed), some_actions(count, FRAMES, seed=seed)


def distilled(folder: RunFolder, name: str, windows: Recorded, num_steps: int) -> OpenSoraWorldModel:
    fit = FitConfig(num_steps=num_steps, batch_size=4, learning_rate=3e-3, checkpoint_seconds=0.0)
    model, log = world_model(), StageLog(folder, name, quiet=True)
    config = DistillConfig(finest=8, fit=fit)
    distill_world_model(model, windows, config, seed=0, checkpoint=folder.checkpoint(name), log=log)
    return model


@pytest.mark.usefixtures("float32")
def test_distillation_resumes_where_it_was_interrupted_and_chooses_the_sampler(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    model = distilled(folder, "whole", Recorded(), 4)
    with pytest.raises(KeyboardInterrupt):
        distilled(folder, "parts", Recorded(stop=3), 4)
    again = Recorded()
    resumed = distilled(folder, "parts", again, 4)
    assert again.drawn == 2 and model.config.shortcut_steps == 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert not torch.equal(model.net.t_block[1].weight, world_model().net.t_block[1].weight)


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
def test_distillation_brings_one_step_nearer_to_many(tmp_path: Path) -> None:
    before, after = apart(world_model()), apart(distilled(RunFolder(tmp_path), "whole", Recorded(), 150))
    assert after < 0.7 * before, (before, after)


def apart(model: OpenSoraWorldModel) -> float:
    """Of one distilled step from eight Euler steps of the same weights."""
    few, many = (
        OpenSoraWorldModel(
            OpenSoraWorldModelConfig(vae="", num_context=3, euler_steps=8, shortcut_steps=n),
            model.net, model.vae, *BOUNDS, PIXELS,
        ).eval() for n in (1, 0)
    )  # fmt: skip
    context, actions = model.begin(pictures(8)), some_actions(8, FRAMES)
    ends = [m.sample(context, actions, noise(m, 8)) for m in (few, many)]
    return float((ends[0] - ends[1]).square().mean() / ends[1].var())


@torch.no_grad()
def test_published_weights_know_no_steps_and_distilled_ones_load_again(tmp_path: Path) -> None:
    net = stdit.load(WeightFolder(write(tmp_path / "a", published_tensors())), ACTIONS, False)
    memory = net.remember(some_latents(1, 3), 15.0, PIXELS)
    x, time = some_latents(1, 2, seed=2), torch.tensor([600.0])
    plain = net(x, time, some_actions(1), memory, PIXELS)
    assert torch.equal(net(x, time, some_actions(1), memory, PIXELS, torch.tensor([500.0])), plain)
    nn.init.normal_(net.step_embedder["mlp"][2].weight)
    again = stdit.load(WeightFolder(write(tmp_path / "b", net.state_dict())), ACTIONS, False)
    memory = net.remember(some_latents(1, 3), 15.0, PIXELS)
    found, expected = (m(x, time, some_actions(1), memory, PIXELS, torch.tensor([500.0])) for m in (again, net))
    assert torch.equal(found, expected) and not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistillConfig(finest=12), "finest 12 must be a power of two"),
        (DistillConfig(shortcut_steps=3), "shortcut_steps 3 must be a power of two below finest 32"),
        (DistillConfig(flow_share=1.0), "flow_share 1.0 must be at least 0 and below 1"),
    ],
)
def test_settings_that_cannot_be_are_named(config: DistillConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config.validate()
    for settings, fix in (
        ({"shortcut_steps": 3}, "3 must be 0 or a power of two"),
        ({"imagine_batch": 0}, "imagine_batch"),
    ):
        with pytest.raises(ValueError, match=fix):
            OpenSoraWorldModelConfig(vae=str(tmp_path), **settings).build(*BOUNDS, PIXELS)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("float32", "uncompiled")
def test_compiled_blocks_imagine_the_same_in_batches_of_any_size() -> None:
    model, compiled = world_model(), world_model()
    compiled.net.compile_blocks()
    assert compiled.state_dict().keys() == model.state_dict().keys()
    for count in (4, 3):
        ends = [
            m.sample(m.begin(pictures(count)), some_actions(count, FRAMES), noise(m, count)) for m in (model, compiled)
        ]
        assert torch.allclose(*ends, atol=1e-4)
