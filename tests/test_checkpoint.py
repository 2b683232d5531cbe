"""What is on disk: never half a file, never another program's file, and never a training that resumes otherwise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from miniatures import small_reward
from safetensors.torch import save_file
from torch import Tensor, nn

from wmpo.checkpoint import (
    load_into,
    load_tensors,
    pack_training,
    read_json,
    save_tensors,
    unpack_training,
    write_atomic,
    write_json,
)
from wmpo.noise import torch_generator
from wmpo.report.run import RunFolder, StageLog
from wmpo.reward.small import SmallReward
from wmpo.rng import keyed
from wmpo.train.fit import FitConfig, Part, Training, fit, schedule
from wmpo.train.reward import LabelledVideo, RewardTraining, telling_success


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    path, tensors = tmp_path / "new" / "a.safetensors", {"a": torch.randn(3, 2).t(), "b": torch.arange(4)}
    header = {"kind": "policy", "threshold": 0.1, "codec": {"low": [-1.0]}, "name": "öffnen"}
    save_tensors(path, tensors, header)
    found, read = load_tensors(path)
    assert read == header and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": True})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert read_json(path) == {"old": True} and os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\xff" * 64])
def test_damaged_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors.*damaged"):
        load_tensors(path)
    with pytest.raises(ValueError, match=r"weights\.safetensors.*damaged"):
        read_json(path)


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_tensors(path, net().state_dict(), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"weights\.safetensors.*damaged"):
        load_tensors(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"wmpo": "{torn"}])
def test_checkpoints_of_other_programs_are_refused_by_name(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata)
    with pytest.raises(ValueError, match=r"foreign\.safetensors is not a checkpoint of wmpo"):
        load_tensors(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.safetensors does not exist; run the stage"):
        load_tensors(tmp_path / "nothing.safetensors")


def test_weights_of_another_configuration_are_refused_with_the_parameters_that_differ() -> None:
    tensors = net().state_dict()
    del tensors["3.bias"]
    tensors["0.weight"], tensors["extra"] = torch.zeros(8, 5), torch.zeros(1)
    module = net()
    with pytest.raises(
        ValueError, match=r"w.safetensors .* 3 parameters differ .*0\.weight: expected \(8, 4\), found \(8, 5\)"
    ):
        load_into(module, tensors, Path("w.safetensors"))
    load_into(module, net(1).state_dict(), Path("w.safetensors"))
    assert torch.equal(module[0].weight, net(1)[0].weight)


def test_packed_training_goes_on_exactly(tmp_path: Path) -> None:
    def step(module: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        module(torch.randn(16, 4, generator=torch_generator(0, "x", number))).square().sum().backward()
        optimizer.step()

    module, other = net(), net(1)
    optimizer, fresh = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (module, other))
    step(module, optimizer, 0)
    average = [p.detach() * 2 for p in module.parameters()]
    save_tensors(tmp_path / "t.safetensors", pack_training(module, optimizer, average), {})
    found = unpack_training(load_tensors(tmp_path / "t.safetensors")[0], other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(found, average, strict=True))
    for each in ((module, optimizer), (other, fresh)):
        step(*each, 1)
    for (name, a), b in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_restored_moments_lie_in_memory_like_their_weights() -> None:
    """Fused AdamW pairs weights and moments by address; in another layout they would be mixed up without an error."""
    module = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    module(torch.randn(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    packed = {name: tensor.contiguous() for name, tensor in pack_training(module, optimizer, []).items()}
    unpack_training(packed, module, optimizer)
    state = optimizer.state[module.weight]
    assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == module.weight.stride() != (18, 9, 3, 1)
    assert torch.equal(state["exp_avg"], packed["optimizer.0.exp_avg"])


class Interrupted(Exception):
    pass


def train(
    folder: RunFolder, *, stop_at: int | None = None, ema: float = 0.9, check_every: int = 4
) -> dict[str, Tensor]:
    """Twelve steps of regression with batch statistics, averaged weights and checks; maybe interrupted."""
    module = net()
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

    def batch(step: int) -> Part:
        if step == stop_at:
            raise Interrupted
        index = torch.from_numpy(keyed(0, "batch", step).integers(64, size=8))
        return lambda rows: (module(data[index[rows]]) - data[index[rows], :2]).square().mean()

    def check(done: int, notes: dict[str, object]) -> bool:
        assert not module.training
        notes["seen"] = [*notes.get("seen", []), (done, float(module[0].weight.sum()))]  # type: ignore[misc]
        return True

    config = FitConfig(num_steps=12, batch_size=8, learning_rate=0.05, ema=ema, checkpoint_seconds=0.0)
    log = StageLog(folder, "toy", quiet=True)
    checkpoint = folder.checkpoint("toy")
    trainer = Training(module, batch, config)
    notes = fit(trainer, config, checkpoint=checkpoint, log=log, check=check, check_every=check_every)
    seen = torch.tensor([list(pair) for pair in notes["seen"]], dtype=torch.float64)
    return {**module.state_dict(), "checks": seen}


@pytest.mark.parametrize("ema", [0.9, 0.0])
@pytest.mark.parametrize("stops", [[1], [5], [4, 8, 11]])
def test_a_training_that_was_stopped_and_resumed_ends_with_the_same_bits(
    stops: list[int], ema: float, tmp_path: Path
) -> None:
    expected = train(RunFolder(tmp_path / "whole"), ema=ema)
    folder = RunFolder(tmp_path / "stopped")
    for stop in stops:
        with pytest.raises(Interrupted):
            train(folder, stop_at=stop, ema=ema)
        assert load_tensors(folder.checkpoint("toy"))[1]["step"] == stop
    found = train(folder, ema=ema)
    assert expected["checks"].shape == (3, 2) and not torch.equal(expected["0.weight"], net()[0].weight)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    metrics = [json.loads(line) for line in (folder.path / "metrics" / "toy.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [12], "nothing is logged twice"


def test_looking_at_the_averaged_weights_does_not_change_training(tmp_path: Path) -> None:
    often, once = (train(RunFolder(tmp_path / str(every)), check_every=every) for every in (1, 12))
    assert often.pop("checks").shape == (12, 2) and once.pop("checks").shape == (1, 2)
    assert all(torch.equal(often[name], once[name]) for name in once)


def test_a_resumed_reward_model_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has dropout, and its weights are laid out channels last."""
    frames = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    videos = [LabelledVideo(frames, solved_at=5), LabelledVideo(frames.flip(0), solved_at=-1)]
    config = RewardTraining(fit=FitConfig(num_steps=6, batch_size=4, checkpoint_seconds=0.0))

    def trained(folder: RunFolder) -> SmallReward:
        model, log = small_reward(), StageLog(folder, "reward", quiet=True)
        training = telling_success(model, videos, config, seed=0)
        fit(training, config.fit, checkpoint=folder.checkpoint("reward"), log=log)
        return model

    whole, folder, saved = trained(RunFolder(tmp_path / "whole")), RunFolder(tmp_path / "stopped"), save_tensors

    def interrupted(path: Path, tensors: dict[str, Tensor], header: dict[str, object]) -> None:
        saved(path, tensors, header)
        if header["step"] == 3:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("wmpo.train.fit.save_tensors", interrupted)
        trained(folder)
    resumed = trained(folder)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_metrics_after_the_checkpoint_are_forgotten_and_torn_lines_too(tmp_path: Path) -> None:
    log = StageLog(RunFolder(tmp_path), "toy", quiet=True)
    for step in (1, 2, 3, 4):
        log.write(step=step, loss=0.123456789)
    with open(log.path, "a") as file:
        file.write('{"step": 2, "lo')
    log.resume("step", 3)
    log.write(step=3, loss=1.0)
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.12346}, {"step": 2, "loss": 0.12346}, {"step": 3, "loss": 1.0}]


def test_a_loss_that_is_not_finite_stops_and_says_where(tmp_path: Path) -> None:
    folder, module = RunFolder(tmp_path), net()
    with pytest.raises(FloatingPointError, match=r"toy: the loss is nan at step 0"):
        fit(
            Training(module, lambda step: lambda rows: module[0].weight.sum() * float("nan"), FitConfig()), FitConfig(),
            checkpoint=folder.checkpoint("toy"), log=StageLog(folder, "toy", quiet=True),
        )  # fmt: skip


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0] and max(rates) == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] < 0.001
