"""A batch may be cut in parts, and its parts learned by several processes: what is learned stays the same."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import ACTIONS, BINS, CHUNK, SIZE, rollouts_of, small_policy, small_reward, small_world_model
from test_fast_imagination import PIXELS, world_model
from test_opensora import ACTIONS as JOINTS
from torch import Tensor, nn

import wmpo.nn
from wmpo.data.episode import Episode
from wmpo.denoising import DenoisingConfig
from wmpo.division import WHOLE, Division, Whole, cut
from wmpo.execution.parallel import Team
from wmpo.execution.supervised import TeamTrainer
from wmpo.nn import autocast
from wmpo.policy.codec import PathCodec
from wmpo.policy.small_flow import SmallFlowPolicyConfig
from wmpo.protocols import Trainer
from wmpo.recipes import tiny
from wmpo.report.run import RunFolder, StageLog
from wmpo.train import dpo
from wmpo.train.distill import DistillConfig, distillation
from wmpo.train.fit import FitConfig, Training, fit, schedule
from wmpo.train.reward import LabelledVideo, RewardTraining, telling_success
from wmpo.train.sft import SFTConfig, cloning
from wmpo.train.tokenizer import TokenizerTraining, train_tokenizer
from wmpo.train.video_clips import VideoClips
from wmpo.train.world_model import WorldModelTraining, flow_matching, train_and_check
from wmpo.world_model.tokenizer import TokenizerConfig

# A small rate: where the true gradient is zero, AdamW makes steps of full size out of rounding.
FIT = FitConfig(num_steps=40, batch_size=5, learning_rate=1e-6, ema=0.9)


def episodes(count: int, *, size: int = SIZE, actions: int = ACTIONS) -> list[Episode]:
    draw = np.random.default_rng(0)
    return [
        Episode(
            frames=draw.integers(0, 256, (9, size, size, 3), dtype=np.uint8),
            actions=draw.uniform(-1, 1, (8, actions)).astype(np.float32),
            solved_at=8 if i % 2 else -1, instruction=f"push block {i}", start=i, episode_id=i, policy="expert",
        )
        for i in range(count)
    ]  # fmt: skip


def flow_policy() -> nn.Module:
    torch.manual_seed(0)
    codec = PathCodec((0.0,) * ACTIONS, (0.5,) * ACTIONS, CHUNK)
    config = SmallFlowPolicyConfig(
        dim=16, depth=1, num_heads=2, hidden=16, denoising=DenoisingConfig(num_steps=2, times_per_sample=2)
    )
    return config.build(codec, SIZE)


def clone(policy: Any, config: FitConfig, division: Division) -> Training:
    return cloning(policy, episodes(3), SFTConfig(fit=config), seed=0, division=division)


def dream(model: Any, config: FitConfig, division: Division) -> Training:
    training = WorldModelTraining(fit=config, pretrain_share=0.0, unroll_from=0.0)
    like = {"size": PIXELS, "actions": JOINTS} if isinstance(model, type(world_model())) else {}
    seen = episodes(3, **like)
    return flow_matching(model, seen[:1], seen[1:], training, chunk_size=CHUNK, seed=0, division=division)


def distil(model: Any, config: FitConfig, division: Division) -> Training:
    windows = VideoClips(model, episodes(3, size=PIXELS, actions=JOINTS), CHUNK)
    return distillation(model, windows, DistillConfig(fit=config, finest=8), seed=0, division=division)


def judge(model: Any, config: FitConfig, division: Division) -> Training:
    videos = [LabelledVideo(torch.from_numpy(e.frames), 5 if e.success else -1) for e in episodes(4)]
    return telling_success(model, videos, RewardTraining(fit=config), seed=0, division=division)


LESSONS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, FitConfig, Division], Training]]] = {
    "tokens": (small_policy, clone),
    "flow policy": (flow_policy, clone),
    "small world model": (small_world_model, dream),
    "video transformer": (world_model, dream),
    "distillation": (world_model, distil),
    "classifier with dropout": (small_reward, judge),
}


@dataclass(frozen=True)
class Lesson:
    """A :class:`wmpo.execution.local.TrainingSpec` without a run."""

    kind: str
    config: FitConfig = FIT

    def network(self) -> nn.Module:
        if multiprocessing.parent_process():  # the fixture float32 does not reach other processes
            wmpo.nn.has_fast_bf16 = lambda device: False
        return LESSONS[self.kind][0]()

    def training(self, network: nn.Module, division: Division) -> Training:
        return LESSONS[self.kind][1](network, self.config, division)

    def alone(self) -> Training:
        return self.training(self.network(), WHOLE)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 128])
@pytest.mark.parametrize("most", [0, 1, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_row_is_in_one_part_and_all_ranks_have_as_many(count: int, most: int, size: int) -> None:
    ranks = [cut(count, most, rank, size) for rank in range(size)]
    assert len({len(parts) for parts in ranks}) == 1
    parts = [part for parts in ranks for part in parts if part[1]]
    assert [row for rows, _ in parts for row in range(rows.start, rows.stop)] == list(range(count))
    assert all(
        share == (rows.stop - rows.start) / count and rows.stop - rows.start <= (most or count) for rows, share in parts
    )
    assert all(rows == slice(0, 1) for parts in ranks for rows, share in parts if not share)
    assert most or size > 1 or cut(count, 0) == [(slice(0, count), 1.0)]


class Third(Whole):
    """The part of one of three processes, of which nobody adds up the sums."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def parts(self, count: int, most: int) -> list[tuple[slice, float]]:
        return cut(count, most, self.rank, 3)


def gradient(*trainings: Training) -> dict[str, Tensor]:
    """Sums over several trainings; the loss too."""
    found: dict[str, Tensor] = {}
    for training in trainings:
        parts = {"loss": torch.tensor(training._backward(1))}
        parts |= {name: p.grad for name, p in training.module.named_parameters() if p.grad is not None}
        found = {name: found.get(name, 0) + grad for name, grad in parts.items()}
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=1e-4, msg=lambda t, name=name: f"{name}: {t}")


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("kind", LESSONS)
def test_the_gradients_of_a_batchs_parts_add_up_to_its_own(kind: str) -> None:
    whole, parts = Lesson(kind), Lesson(kind, replace(FIT, micro_batch=2))
    expected = gradient(whole.alone())
    assert len(expected) > 5 and any(grad.abs().max() > 1e-4 for name, grad in expected.items() if name != "loss")
    assert_close(gradient(parts.alone()), expected)
    assert_close(gradient(*(parts.training(parts.network(), Third(rank)) for rank in range(3))), expected)


@pytest.mark.usefixtures("float32")
def test_the_pairs_of_a_batch_may_be_parted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[Training] = []
    monkeypatch.setattr(dpo, "fit", lambda training, *args, **settings: trainings.append(training))
    rollouts = rollouts_of([True, False, True, False], [0, 0, 1, 1], num_tokens=CHUNK * ACTIONS, bins=BINS)
    rollouts = replace(rollouts, sim_seed=rollouts.group)
    for micro_batch in (0, 2):
        dpo.prefer(
            small_policy(), rollouts, dpo.DPOConfig(fit=replace(FIT, micro_batch=micro_batch)),
            temperature=1.0, seed=0, checkpoint=tmp_path / "c", log=StageLog(RunFolder(tmp_path), "dpo", quiet=True),
        )  # fmt: skip
    whole, parts = trainings
    assert_close(gradient(parts), gradient(whole))


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("kind", ["tokens", "classifier with dropout"])
def test_a_batch_that_is_not_cut_is_learned_as_by_a_plain_loop_bit_for_bit(kind: str, tmp_path: Path) -> None:
    config = replace(FIT, num_steps=4, learning_rate=1e-3)
    found, expected = (Lesson(kind, config).alone() for _ in range(2))
    fit(found, config, checkpoint=tmp_path / "c", log=StageLog(RunFolder(tmp_path), "toy", quiet=True))
    weights = expected.parameters
    optimizer = torch.optim.AdamW(weights, weight_decay=config.weight_decay, betas=(0.9, 0.95), fused=True)
    ema = [p.detach().clone() for p in weights]
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-3 * schedule(step, 4)
        with autocast(weights[0].device):
            loss = expected._batches(step)(slice(0, 5))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(ema, [p.detach() for p in weights], 1 - min(0.9, (1 + step) / (10 + step)))
    for p, average in zip(found.parameters, ema, strict=True):
        assert torch.equal(p, average)
    assert not torch.equal(found.parameters[0], Lesson(kind).alone().parameters[0])


def test_parts_of_no_or_a_negative_size_and_of_the_tokenizers_batch_are_refused(tmp_path: Path) -> None:
    small = tiny()
    with pytest.raises(ValueError, match=r"sft.fit.micro_batch must be at least 0, not -1"):
        replace(small, sft=replace(small.sft, fit=replace(small.sft.fit, micro_batch=-1))).validate()
    with pytest.raises(ValueError, match=r"improve.grpo.micro_batch must be at least 1"):
        replace(small, improve=replace(small.improve, grpo=replace(small.improve.grpo, micro_batch=0))).validate()
    cut_up = TokenizerTraining(fit=FitConfig(micro_batch=8))
    with pytest.raises(ValueError, match=r"fit.micro_batch 8 must be 0: its latents are normalised over the batch"):
        replace(small, tokenizer_training=cut_up).validate()
    with pytest.raises(ValueError, match=r"fit.micro_batch 8 must be 0"):
        train_tokenizer(
            TokenizerConfig(channels=8).build(), episodes(1), cut_up, seed=0, checkpoint=tmp_path / "c",
            log=StageLog(RunFolder(tmp_path), "tokenizer", quiet=True),
        )  # fmt: skip


def learn_and_resume(team: Team, kind: str, shards: int) -> None:
    """Losses, weights, moments, averages, and checkpoints that go from n ranks to one and back."""
    lesson = Lesson(kind, replace(FIT, micro_batch=2))
    one, network = lesson.alone(), lesson.network()
    with torch.no_grad():  # all begin with what rank 0 has
        for each in (*one.parameters[:1], next(p for p in network.parameters() if p.requires_grad)):
            each.add_(0.01)
    one.restore({f"model.{name}": tensor for name, tensor in one.module.state_dict().items()})
    many: Trainer = TeamTrainer(team, lesson, network, shards=shards)
    for step in range(2):
        assert many.step(step) == pytest.approx(one.step(step), abs=1e-5)
    assert_close(dict(many.save()), one.save())
    alone = lesson.alone()
    alone.restore(many.save())
    for each in (alone, one):
        each.step(2)
    assert_close(alone.save(), one.save())
    again = TeamTrainer(team, lesson, network := lesson.network(), shards=shards)
    again.restore(alone.save())
    assert again.step(3) == pytest.approx(one.step(3), abs=1e-5)
    assert_close(dict(again.save()), one.save())
    with again.averaged():
        assert not network.training
        assert_close(dict(network.state_dict()), one.average())
    moved = max((a - b).abs().max() for a, b in zip(one.parameters, lesson.alone().parameters, strict=True))
    assert moved > 1e-6, "something was learned"
    team.forget()


@pytest.mark.usefixtures("float32")
def test_one_rank_is_trained_like_no_rank(alone: Team) -> None:
    learn_and_resume(alone, "flow policy", shards=0)


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("kind", LESSONS)
def test_two_ranks_learn_what_one_process_does_and_resume_each_other(pair: Team, kind: str) -> None:
    learn_and_resume(pair, kind, shards=0)


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
def test_two_copies_of_a_network_learn_the_same(pair: Team) -> None:
    learn_and_resume(pair, "tokens", shards=1)


@pytest.mark.usefixtures("float32")
def test_the_world_model_stops_after_checks_without_progress_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = replace(FIT, num_steps=10, learning_rate=1e-3)
    lesson, distances, seen = Lesson("video transformer", fits), [0.3, 0.2, 0.25, 0.21, 0.1], []

    def measured(model: torch.nn.Module, *_: object, **__: object) -> tuple[list[float], float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return [distances[len(seen) - 1]], 0.05

    monkeypatch.setattr("wmpo.train.world_model.replay_distance", measured)
    one, folder = lesson.alone(), RunFolder(tmp_path)
    config = WorldModelTraining(fit=fits, pretrain_share=0.0, check_every=2, patience=2)
    found = train_and_check(
        one, one.module, [], config, chunk_size=CHUNK, seed=0,
        checkpoint=folder.checkpoint("world-model"), log=StageLog(folder, "world-model", quiet=True),
    )  # fmt: skip
    assert found["checks"] == distances[:4] and found["stopped"] == "held-out replays stopped improving"
    kept = one.module.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[1].items())
    assert not all(torch.equal(kept[name], tensor) for name, tensor in seen[2].items())


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
def test_checks_see_whole_weights_and_their_stop_reaches_all_ranks(pair: Team, tmp_path: Path) -> None:
    fits = replace(FIT, num_steps=6, learning_rate=1e-3, checkpoint_seconds=0.0)
    config = WorldModelTraining(fit=fits, pretrain_share=0.5, check_every=1, patience=0)
    lesson, held_out = Lesson("video transformer", fits), episodes(1, size=PIXELS, actions=JOINTS)

    def train(name: str, trainer: Trainer, network: Any) -> dict[str, Any]:
        folder = RunFolder(tmp_path / name)
        return train_and_check(
            trainer, network, held_out, config, chunk_size=CHUNK, seed=0,
            checkpoint=folder.checkpoint("world-model"), log=StageLog(folder, "world-model", quiet=True),
        )  # fmt: skip

    one = lesson.alone()
    expected = train("one", one, one.module)
    network = lesson.network()
    found = train("two", TeamTrainer(pair, lesson, network), network)
    assert found["checks"] == pytest.approx(expected["checks"], abs=1e-3) and len(found["checks"]) == 3
    assert found["stopped"] == expected["stopped"] == "held-out replays stopped improving"
    assert_close(dict(network.state_dict()), dict(one.module.state_dict()), atol=1e-2)
    assert pair.call(_rank) == [0, 1], "nobody waits for a step any more"
    pair.forget()


def _rank(team: Team) -> int:
    return team.rank
