"""What ``wmpo plan`` counts is what the miniatures really do and hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import wmpo
from miniatures import decisions, some_starts
from torch.utils.flop_counter import FlopCounterMode

from wmpo.config import Experiment
from wmpo.envs.imagined import ImaginedEnv
from wmpo.execution.backend import ExecutionConfig
from wmpo.execution.ray_cluster import ClusterConfig
from wmpo.policy.codec import ActionCodec
from wmpo.policy.openvla_oft import OpenVLAOFTConfig
from wmpo.policy.small import SmallPolicy, SmallPolicyConfig
from wmpo.recipes import tiny
from wmpo.recipes_paper import paper_square
from wmpo.reward.small import SmallReward, SmallRewardConfig
from wmpo.reward.videomae import VideoMAERewardConfig
from wmpo.rl.grpo import GRPOConfig, GRPOLearner
from wmpo.rollout.run import run_episodes
from wmpo.stages.footprint import (
    dream_footprint,
    imagined_chunk,
    learned_decision,
    policy_footprint,
    reward_footprint,
)
from wmpo.stages.plan import Hardware, Memory, Plan, Stage, describe, plan, training_memory
from wmpo.train.fit import FitConfig
from wmpo.world_model.opensora import OpenSoraWorldModelConfig
from wmpo.world_model.small import SmallWorldModel, SmallWorldModelConfig
from wmpo.world_model.stdit import Sizes
from wmpo.world_model.tokenizer import Tokenizer, TokenizerConfig

ACTIONS, SIZE = 2, 16


def miniature() -> Experiment:
    small = tiny()
    return replace(
        small,
        env=replace(small.env, image_size=SIZE),
        max_chunks=3,
        policy=SmallPolicyConfig(dim=16, depth=1, num_heads=2, num_bins=5),
        tokenizer=TokenizerConfig(channels=8, latent_channels=3),
        world_model=SmallWorldModelConfig(channels=(8, 8), blocks=1, condition=16, frame_stride=2, pretrained="none"),
        reward=SmallRewardConfig(channels=4),
    )


def policy_of(experiment: Experiment) -> SmallPolicy:
    codec = ActionCodec((-1.0,) * ACTIONS, (1.0,) * ACTIONS, experiment.policy.chunk_size, experiment.policy.num_bins)
    return SmallPolicy(experiment.policy, codec, SIZE)


@pytest.fixture
def counted_attention() -> Iterator[None]:
    """Without gradients torch's attention is one fused kernel, in which nothing is counted."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("counted_attention")
def test_an_imagined_chunk_costs_what_is_counted_while_one_is_imagined() -> None:
    wanted = miniature()
    bounds = -torch.ones(ACTIONS), torch.ones(ACTIONS)
    model = SmallWorldModel(wanted.world_model, Tokenizer(wanted.tokenizer).eval(), *bounds, SIZE // 4).eval()
    reward = SmallReward(wanted.reward, SIZE).eval()
    reward.threshold = 1e9
    env = ImaginedEnv(model, reward, chunk_size=wanted.policy.chunk_size, max_chunks=3, seed=0)
    with FlopCounterMode(display=False) as counter:
        run_episodes(
            env, policy_of(wanted).eval().requires_grad_(False), some_starts(1, frames=1), temperature=1.0, seed=0
        )
    with FlopCounterMode(display=False) as beginning, torch.no_grad():
        model.begin(torch.zeros(1, 1, SIZE, SIZE, 3, dtype=torch.uint8))
    policy, dream = policy_footprint(wanted, ACTIONS), dream_footprint(wanted, ACTIONS)
    expected = 3 * imagined_chunk(wanted, policy, dream, reward_footprint(wanted))
    assert expected > 0 and counter.get_total_flops() - beginning.get_total_flops() == expected


def test_a_learner_does_and_holds_what_is_counted() -> None:
    wanted = miniature()
    found = policy_footprint(wanted, ACTIONS)
    learner = GRPOLearner(policy_of(wanted), GRPOConfig(micro_batch=1), temperature=1.0)
    with FlopCounterMode(display=False) as counter:
        learner.step(decisions(3, policy_of(wanted), num_tokens=wanted.policy.chunk_size * ACTIONS))
    assert counter.get_total_flops() == 3 * learned_decision(wanted, found)
    saved = learner.save()
    memory = training_memory(found, wanted.sft.fit)
    moments = [t for name, t in saved.items() if name.endswith(("exp_avg", "exp_avg_sq"))]
    weights = [t for name, t in saved.items() if name.startswith("model.")]
    assert memory.weights == sum(t.nbytes for t in weights)
    assert memory.optimizer == sum(t.nbytes for t in moments) == 2 * memory.gradients
    assert found.parameters == found.trained == sum(t.numel() for t in weights)
    assert found.saved_bytes > 4 * 16 * (4 * ACTIONS), "at least the queries' activations"


def test_more_gpus_shorten_what_is_spread_and_divide_the_learner() -> None:
    one, eight = (plan(tiny(), Hardware(gpus=gpus)) for gpus in (1, 8))
    (alone, together) = (found.stages[-1] for found in (one, eight))
    assert (alone.gpus, together.gpus) == (1, 8) and alone.operations == together.operations
    assert together.memory.optimizer == alone.memory.optimizer // 8
    policy = one.networks[0]
    assert alone.memory.others - together.memory.others == 2 * policy.trained - policy.weight_bytes, (
        "rank 0 has a copy for audits, one process another in bfloat16"
    )
    assert together.seconds(Hardware()) == pytest.approx([seconds / 8 for seconds in alone.seconds(Hardware())])
    assert [stage.name for stage in one.stages] == ["sft", "tokenizer", "world-model", "reward", "clone", "improve"]
    assert [stage.gpus for stage in eight.stages] == [8, 1, 8, 8, 8, 8], "the tokenizer's batch is not divided"
    for before, after in zip(one.stages[:-1], eight.stages[:-1], strict=True):
        assert after.operations == before.operations
        assert after.memory.optimizer == before.memory.optimizer // after.gpus
    small = Hardware(gpus=8, gpu_memory=0.001)
    said = describe(eight, small)
    assert (
        "improve does not fit into 0.001 GB; what helps: more GPUs with --execution.shards of backend torchrun or "
        "--execution.cluster.learners of ray, --policy.improve-lora-rank" in said
    )
    assert "real episodes of up to 24 steps" in said


def planned(gpus: int, dim: int = 16, **execution: Any) -> Plan:
    policy = SmallPolicyConfig(dim=dim, depth=1, num_heads=2, num_bins=5)
    wanted = replace(miniature(), policy=policy, execution=ExecutionConfig(**execution))
    return plan(wanted, Hardware(gpus=gpus))


@pytest.mark.parametrize(
    ("execution", "gpus", "says"),
    [
        ({}, [(8, 8), (8, 8)], "local would use one GPU; planned as with --execution.backend processes, which uses 8"),
        ({"backend": "processes"}, [(8, 8), (8, 8)], "processes trains and imagines on 8"),
        ({"backend": "processes", "processes": 4}, [(4, 4), (4, 4)], "processes trains and imagines on 4"),
        ({"backend": "torchrun"}, [(8, 8), (8, 8)], "torchrun trains and imagines on 8"),
        ({"backend": "ray"}, [(1, 1), (1, 7)], "--execution.cluster.samplers 7 --execution.cluster.gpus-per-sampler 1"),
        (
            {"backend": "ray", "cluster": ClusterConfig(samplers=3, gpus_per_sampler=0.5, learner_gpus=1)},
            [(1, 1), (1, 1.5)],
            "imagines on 1.5 (--execution.cluster.learners 1 --execution.cluster.learner-gpus 1 "
            "--execution.cluster.samplers 3",
        ),
        (
            {"backend": "ray", "cluster": ClusterConfig(learners=4)},
            [(4, 4), (4, 4)],
            "ray trains on 4 and imagines on 4 (--execution.cluster.learners 4 --execution.cluster.learner-gpus 1 "
            "--execution.cluster.samplers 4",
        ),
    ],
)
def test_a_plan_uses_the_gpus_that_the_backend_would(
    execution: dict[str, Any], gpus: list[tuple[int, float]], says: str
) -> None:
    found = planned(8, **execution)
    assert [(stage.gpus, stage.imagining) for stage in (found.stages[0], found.stages[-1])] == gpus
    assert says in describe(found, Hardware(gpus=8))


def test_rays_learner_is_whole_and_only_imagination_is_shared_out() -> None:
    alone, ray, shared = planned(1, dim=64), planned(8, dim=64, backend="ray"), planned(1, dim=64, backend="ray")
    assert "local trains and imagines on one GPU" in describe(alone, Hardware())
    for one, many in zip(alone.stages, ray.stages, strict=True):
        assert replace(many.memory, others=one.memory.others) == one.memory, "whole, with all activations"
        assert (many.memory.others > one.memory.others) == (one.name != "tokenizer"), "the driver's networks"
        divided = 7 if one.name == "improve" else 1
        hardware = Hardware()
        learned = replace(one, imagined=0.0, most=0.0).seconds(hardware)
        beside = [all - own for all, own in zip(one.seconds(hardware), learned, strict=True)]
        expected = [own + rest / divided for own, rest in zip(learned, beside, strict=True)]
        assert many.seconds(hardware) == pytest.approx(expected), one.name
    policy, dream, reward = ray.networks[:3]
    sampler = policy.weight_bytes + dream.weight_bytes + reward.weight_bytes
    assert shared.stages[-1].memory.others - ray.stages[-1].memory.others == sampler
    fuller = planned(8, backend="ray")  # a policy so small that a GPU with the driver's and a sampler's is the fullest
    policy, dream, reward = fuller.networks[:3]
    assert fuller.stages[-1].memory.total == 2 * (policy.weight_bytes + dream.weight_bytes + reward.weight_bytes)


def test_rays_learners_divide_the_network_and_the_driver_has_its_own() -> None:
    one, four = (
        planned(8, dim=64, backend="ray", cluster=ClusterConfig(learners=count, samplers=4, gpus_per_sampler=1))
        for count in (1, 4)
    )
    for whole, part in zip(one.stages[:-1], four.stages[:-1], strict=True):
        divided = 1 if whole.name == "tokenizer" else 4
        assert part.memory.optimizer == whole.memory.optimizer // divided, whole.name
    policy, dream, reward = four.networks[:3]
    driver = policy.weight_bytes + dream.weight_bytes + reward.weight_bytes
    assert four.stages[-1].memory.total == 2 * driver, "the fullest GPU of improve is a sampler's, with the driver's"


def test_training_and_imagination_are_timed_by_what_each_reaches() -> None:
    stage = Stage(name="improve", learned=3e14, imagined=2e14, most=4e14, gpus=2, imagining=4.0, memory=Memory())
    hardware = Hardware(tflops=100, utilisation=0.5, imagination_utilisation=0.1)
    assert stage.seconds(hardware) == pytest.approx((3 + 5, 3 + 10))
    assert [Hardware(utilisation=share).imagining for share in (0.3, 0.02)] == [0.14, 0.02]


@pytest.mark.parametrize(
    ("gpus", "execution", "says"),
    [
        (2, {"backend": "ray", "cluster": ClusterConfig(samplers=2, gpus_per_sampler=1)}, "want 3 GPUs, but --gpus is"),
        (3, {"backend": "ray", "cluster": ClusterConfig(samplers=3, gpus_per_sampler=0.6)}, "want 4 GPUs"),
        (2, {"backend": "ray", "cluster": ClusterConfig(learner_gpus=2)}, "learner_gpus 2 must be at most 1"),
        (2, {"backend": "ray", "cluster": ClusterConfig(learners=2)}, "and 2 learners want 3 GPUs"),
        (2, {"backend": "processes", "processes": 4}, "wants 4 GPUs of one machine, but --gpus is 2"),
        (16, {"backend": "processes"}, "several machines take --execution.backend torchrun"),
    ],
)
def test_a_backend_that_wants_more_than_there_is_is_refused(gpus: int, execution: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        planned(gpus, **execution)


def test_recomputed_activations_are_counted_in_cloning_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(1).stages[0].learned
    monkeypatch.setattr("wmpo.stages.plan.learned_decision", lambda experiment, policy: 2 * policy.training)
    assert planned(1).stages[0].learned == 2 * found


def test_activations_are_those_of_one_forward_pass() -> None:
    net = policy_footprint(miniature(), ACTIONS)
    for gpus, micro_batch, rows in ((1, 0, 64), (1, 8, 8), (1, 7, 7), (3, 0, 22), (3, 8, 8), (128, 8, 1)):
        memory = training_memory(net, FitConfig(batch_size=64, micro_batch=micro_batch), gpus)
        assert memory.activations == rows * net.saved_bytes, (gpus, micro_batch)


@pytest.mark.parametrize(
    ("hardware", "says"),
    [
        ({"gpus": 0}, "--gpus 0"),
        ({"utilisation": 2.0}, "--utilisation 2.0"),
        ({"imagination_utilisation": 0.0}, "--imagination-utilisation 0.0"),
    ],
)
def test_impossible_hardware_is_refused_in_words(hardware: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Hardware(**hardware).validate()


@pytest.mark.slow
def test_the_plan_of_a_recipe_is_printed_and_follows_its_flags(tmp_path: Path) -> None:
    said = wmpo("plan", "tiny", "--gpus", "2", "--improve.grpo.micro-batch", "8", cwd=tmp_path)
    assert said.returncode == 0 and "world-model" in said.stdout and not list(tmp_path.iterdir())
    assert "--gpus 0" in wmpo("plan", "tiny", "--gpus", "0", cwd=tmp_path).stderr


@pytest.mark.external
def test_published_networks_have_their_published_sizes_and_cost_no_memory() -> None:
    pytest.importorskip("transformers", reason="needs the extra hf: pip install 'wmpo[hf]'")
    pytest.importorskip("diffusers", reason="needs the extra hf: pip install 'wmpo[hf]'")
    small = tiny()
    wanted = replace(
        small,
        env=replace(small.env, image_size=256),
        policy=OpenVLAOFTConfig(folder="", lora_rank=32),  # type: ignore[arg-type]
        world_model=OpenSoraWorldModelConfig(vae="", sizes=Sizes()),  # type: ignore[arg-type]
        reward=VideoMAERewardConfig(folder=""),  # type: ignore[arg-type]
    )
    policy, dream, reward = policy_footprint(wanted, 7), dream_footprint(wanted, 7), reward_footprint(wanted)
    assert policy.parameters == pytest.approx(7.6e9, rel=0.02) and policy.trained < 0.02 * policy.parameters
    lora = training_memory(policy, FitConfig(batch_size=1, ema=0))
    assert lora.weights == policy.weight_bytes and lora.optimizer == 8 * policy.trained == 2 * policy.trained_bytes
    whole = policy_footprint(replace(wanted, policy=OpenVLAOFTConfig(folder="")), 7)  # type: ignore[arg-type]
    assert whole.weight_bytes == pytest.approx(2 * 7.6e9, rel=0.02), "those that only act stay in bfloat16"
    learner = training_memory(whole, FitConfig(batch_size=1, ema=0))
    assert learner.total - learner.activations == pytest.approx(18 * whole.trained, rel=1e-3)
    assert policy.forward == pytest.approx(2 * policy.parameters * 345, rel=0.15), "two for each weight and token"
    assert dream.net.parameters == pytest.approx(0.9e9, rel=0.05) and dream.extra_bytes == pytest.approx(
        334.6e6, rel=0.01
    )
    assert dream.imagine > 30 * dream.net.forward / 2
    frames = small.policy.chunk_size // wanted.world_model.frame_stride
    looks = replace(wanted, reward=SmallRewardConfig(window=1), improve=replace(small.improve, score_every=frames))
    assert frames > 1 and dream_footprint(looks, 7).imagine < dream.imagine, "frames that nobody sees are not decoded"
    assert reward.parameters == pytest.approx(86e6, rel=0.02)
    cut = paper_square().world_model_training.fit
    whole = training_memory(dream.net, replace(cut, micro_batch=0), beside=dream.extra_bytes).total
    assert training_memory(dream.net, cut, beside=dream.extra_bytes).total < 80e9 < whole
