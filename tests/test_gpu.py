"""What only a GPU can show: the same numbers as on a CPU, and every stage with its networks there.

Run with: pytest -m gpu
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import wmpo
from miniatures import CHUNK, SIZE, small_policy, small_reward, small_world_model
from torch import Tensor, nn

from wmpo import likelihood
from wmpo.checkpoint import load_tensors, save_tensors
from wmpo.likelihood import NoiseKeys
from wmpo.noise import row_normal
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.train.fit import FitConfig, Training
from wmpo.types import Minibatch, Observation

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
]  # fmt: skip
ROWS = 6


@pytest.fixture(autouse=True)
def exact(float32: None) -> Iterator[None]:
    """No matrix product in fewer digits."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def seen() -> Observation:
    generator = torch.Generator().manual_seed(1)
    frame = torch.randint(0, 256, (ROWS, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return Observation(frame=frame, instruction=("push the block",) * ROWS)


def on_cpu(net: Any) -> Any:
    return copy.deepcopy(net).cpu()


def test_a_policy_draws_and_judges_as_on_a_cpu() -> None:
    policy, keys = small_policy(), NoiseKeys(seed=0, episodes=tuple(range(ROWS)), chunk=0)
    assert next(policy.parameters()).is_cuda
    drawn = []
    for each in (policy, on_cpu(policy)):
        tokens, logprob = likelihood.of(each).draw(each.prepare(seen()), 1.0, keys)
        again, _ = likelihood.of(each).score(each.prepare(seen()), tokens, 1.0)
        torch.testing.assert_close(again.detach(), logprob, rtol=1e-4, atol=1e-5)
        drawn.append((tokens, logprob))
    torch.testing.assert_close(drawn[0][0], drawn[1][0])
    torch.testing.assert_close(drawn[0][1], drawn[1][1], rtol=1e-4, atol=1e-5)


def test_a_world_model_imagines_as_on_a_cpu() -> None:
    model = small_world_model()
    start, chunk = seen().frame.unsqueeze(1), torch.linspace(-1, 1, ROWS * CHUNK * 2).view(ROWS, CHUNK, 2)
    noise = row_normal(0, "test", range(ROWS), 0, model.noise_shape(CHUNK))
    imagined = []
    for each in (model, on_cpu(model)):
        frames, context = each.imagine(each.begin(start), chunk, noise)
        later, _ = each.imagine(context, chunk, noise)
        imagined.append(torch.cat([frames, later], dim=1))
    assert not imagined[0].is_cuda
    assert (imagined[0].float() - imagined[1].float()).abs().mean() < 0.1, "of 255 grey levels"


def test_a_classifier_judges_as_on_a_cpu() -> None:
    model, clips = small_reward(), seen().frame.view(ROWS // 2, 2, SIZE, SIZE, 3)
    told = [""] * len(clips)
    torch.testing.assert_close(model(clips, told).cpu(), on_cpu(model)(clips, told), rtol=1e-4, atol=1e-5)


def test_a_learner_takes_the_same_step_as_on_a_cpu() -> None:
    policy, steps = small_policy(), []
    tokens, _ = likelihood.of(policy).draw(policy.prepare(seen()), 0.0, None)
    minibatch = Minibatch(
        frame=seen().frame, instruction=seen().instruction, tokens=tokens,
        old_logprob=torch.full(tokens.shape, -1.5), mask=torch.ones_like(tokens, dtype=torch.bool),
        advantage=torch.linspace(-1, 1, ROWS), weight=torch.full((ROWS,), 1 / tokens.shape[1]), num_episodes=ROWS,
    )  # fmt: skip
    for each in (on_cpu(policy), policy):
        learner = GRPOLearner(each, GRPOConfig(warmup_steps=1, learning_rate=1e-3), temperature=1.0)
        steps.append((learner.step(minibatch), {name: tensor.cpu() for name, tensor in learner.publish().items()}))
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-3, abs=1e-5)
    torch.testing.assert_close(steps[0][1], steps[1][1], rtol=0, atol=1e-3)  # AdamW's first step has full size


def test_a_checkpoint_of_a_gpu_goes_on_there_and_on_a_cpu(tmp_path: Path) -> None:
    def training(net: nn.Module) -> Training:
        def batches(number: int):
            x = torch.arange(8.0).view(4, 2).to(next(net.parameters()).device) + number
            return lambda rows: (net(x[rows]) - x[rows].sum(dim=1, keepdim=True)).square().mean()

        return Training(net, batches, FitConfig(num_steps=20, batch_size=4, learning_rate=1e-2))

    torch.manual_seed(0)
    first = training(nn.Linear(2, 1).cuda())
    for number in range(5):
        first.step(number)
    save_tensors(tmp_path / "c.safetensors", first.save(), {})
    losses = [first.step(number) for number in range(5, 10)]
    for device in ("cuda", "cpu"):
        other = training(nn.Linear(2, 1).to(device))
        other.restore(load_tensors(tmp_path / "c.safetensors")[0])
        assert [other.step(number) for number in range(5, 10)] == pytest.approx(losses, rel=1e-4)


def test_every_stage_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("metaworld", reason="needs the extra sim")
    done = wmpo("run", "tiny", "--name", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs/run/results.json").read_text())
    assert torch.cuda.get_device_name() in json.dumps(results)


def test_the_papers_networks_take_a_step(tmp_path: Path) -> None:
    """OpenVLA-OFT and the OpenSora-class world model, as miniatures in the precision of GPUs."""
    pytest.importorskip("diffusers", reason="needs the extra hf: pip install 'wmpo[hf]'")
    from hf_miniatures import write_autoencoder
    from openvla_miniature import write_checkpoint

    from wmpo.policy.openvla_oft import OpenVLAOFTConfig
    from wmpo.world_model.opensora import OpenSoraWorldModelConfig
    from wmpo.world_model.stdit import Sizes

    (tmp_path / "openvla").mkdir()
    write_checkpoint(tmp_path / "openvla")
    write_autoencoder(tmp_path / "vae")
    actions: Tensor = 2 * torch.rand(50, 3) - 1
    policy = OpenVLAOFTConfig(folder=str(tmp_path / "openvla"), chunk_size=4, unnorm_key="square").fit(actions, 32)
    sizes = Sizes(width=16, depth=2, num_heads=2, mlp_width=24)
    model = OpenSoraWorldModelConfig(vae=str(tmp_path / "vae"), sizes=sizes, euler_steps=3).build(
        -torch.ones(3), torch.ones(3), 32
    )
    frames = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    observation = Observation(frame=frames, instruction=("open the drawer",) * 4)
    with torch.no_grad():
        keys = NoiseKeys(seed=0, episodes=tuple(range(4)), chunk=0)
        tokens, logprob = likelihood.of(policy).draw(policy.prepare(observation), 1.6, keys)
    minibatch = Minibatch(
        frame=frames, instruction=observation.instruction, tokens=tokens, old_logprob=logprob,
        mask=torch.ones_like(tokens, dtype=torch.bool), advantage=torch.tensor([1.0, -1.0, 1.0, -1.0]),
        weight=torch.full((4,), 1 / tokens.shape[1]), num_episodes=4,
    )  # fmt: skip
    found = GRPOLearner(policy, GRPOConfig(), temperature=1.6).step(minibatch)
    assert abs(found["kl"]) < 0.05 and found["grad_norm"] > 0, found
    noise = row_normal(0, "test", range(4), 0, model.noise_shape(4))
    shown, _ = model.imagine(model.begin(frames.unsqueeze(1)), policy.codec.decode(tokens), noise)
    assert shown.shape == (4, 4, 32, 32, 3) and not shown.is_cuda
