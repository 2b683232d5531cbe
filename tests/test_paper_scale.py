"""The paper's networks in place of the small ones: the same stages, on miniatures of the published checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'wmpo[hf]'")

import smolvla_miniature
from commands import refused
from finished_run import recorded
from hf_miniatures import write_autoencoder, write_videomae
from openvla_miniature import write_checkpoint
from vlm_miniature import write_model

import wmpo
from wmpo.checkpoint import load_tensors
from wmpo.config import Experiment, from_json, to_json
from wmpo.data.lerobot import append_episodes
from wmpo.policy.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig
from wmpo.policy.smolvla import SmolVLA, SmolVLAConfig
from wmpo.recipes import RECIPES, tiny
from wmpo.reward.videomae import VideoMAERewardConfig
from wmpo.reward.vlm_judge import VLMJudge, VLMJudgeConfig
from wmpo.rollout.run import run_episodes
from wmpo.stages import models
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import Job, open_job
from wmpo.stages.measure import evaluate
from wmpo.stages.order import run_missing, whole
from wmpo.stages.rounds import imagined_env
from wmpo.train.distill import DistillConfig
from wmpo.train.fit import FitConfig
from wmpo.train.reward import LabelledVideo, peaks
from wmpo.world_model.opensora import OpenSoraWorldModelConfig
from wmpo.world_model.stdit import Sizes


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "openvla").mkdir()
    write_checkpoint(folder / "openvla")
    write_autoencoder(folder / "vae")
    write_videomae(folder / "videomae")
    for name, write in (
        ("smolvla", smolvla_miniature.write_checkpoint),
        ("backbone", smolvla_miniature.write_backbone),
    ):
        (folder / name).mkdir()
        write(folder / name)
    (folder / "judge").mkdir()
    write_model(folder / "judge")
    return folder


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Recorded episodes, half of them solved: a miniature of this size solves nothing by itself."""
    append_episodes(tmp_path / "demos", [recorded(2 * i + 1, 8, policy="expert") for i in range(3)], fps=20)
    append_episodes(tmp_path / "played", [recorded(20 + i, 8) for i in range(12)], fps=20)
    return tmp_path


def experiment(weights: Path) -> Experiment:
    small, fit = tiny(), FitConfig(num_steps=6, batch_size=4, learning_rate=1e-3, checkpoint_seconds=0.0)
    return replace(
        small,
        num_rounds=1,
        collect=replace(small.collect, num_episodes=12, num_held_out=6, shard=12),
        policy=OpenVLAOFTConfig(folder=str(weights / "openvla"), chunk_size=4, dtype="float32", lora_rank=8),
        sft=replace(small.sft, fit=fit),
        clone=replace(small.clone, enabled=False),
        world_model=OpenSoraWorldModelConfig(
            vae=str(weights / "vae"), sizes=Sizes(width=16, depth=2, num_heads=2, mlp_width=24, channels=4),
            num_context=2, frame_stride=2, euler_steps=2,
        ),
        world_model_training=replace(small.world_model_training, fit=fit, check_every=6),
        distillation=DistillConfig(enabled=True, fit=fit, finest=4, shortcut_steps=1),
        reward=VideoMAERewardConfig(folder=str(weights / "videomae"), window=2),
        reward_training=replace(small.reward_training, fit=fit),
        improve=replace(
            small.improve, num_iterations=1, audit=replace(small.improve.audit, max_episodes=0),
            groups=replace(small.improve.groups, num_groups=6),  # every start, also the one that is mixed
        ),
        evaluate=replace(small.evaluate, num_test=2, num_videos=0, temperatures=(0.0, 1.0)),
    )  # fmt: skip


def another(weights: Path) -> Experiment:
    """A flow policy and a judge without labels, with the small world model."""
    wanted, small = experiment(weights), tiny()
    return replace(
        wanted,
        policy=SmolVLAConfig(folder=str(weights / "smolvla"), backbone=str(weights / "backbone"), chunk_size=4),
        world_model=small.world_model,
        world_model_training=replace(
            small.world_model_training, fit=replace(wanted.sft.fit, num_steps=12), check_every=6
        ),
        distillation=DistillConfig(),
        reward=VLMJudgeConfig(folder=str(weights / "judge"), window=1, dtype="float32", question="task {instruction}"),
    )


@pytest.mark.parametrize("made", [experiment, another])
def test_settings_of_other_kinds_survive_the_file(weights: Path, made: Callable[[Path], Experiment]) -> None:
    wanted = made(weights)
    assert from_json(Experiment, json.loads(json.dumps(to_json(wanted)))) == wanted


@pytest.mark.slow
@pytest.mark.timeout(60)  # it took 16 s on two busy cores
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_whole_job_runs_with_the_networks_of_the_paper(weights: Path, given: Path, tmp_path: Path) -> None:
    job = _run(experiment(weights), given, tmp_path)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["real_episodes"]["test"] == 8
    assert results["config"]["policy"]["folder"].endswith("openvla")
    acted = wmpo.load_policy(tmp_path / "run/models/improved.safetensors").act(np.zeros((32, 32, 3), np.uint8))
    assert acted.shape == (4, 4) and np.isfinite(acted).all()
    _what_was_learned_is_kept(Job(job.root, job.experiment, 0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_whole_job_runs_with_a_flow_policy_and_a_judge(weights: Path, given: Path, tmp_path: Path) -> None:
    job = _run(another(weights), given, tmp_path)
    base, improved = (load_tensors(job.root.model(name))[0] for name in ("base", "improved"))
    assert any(not torch.equal(base[name], improved[name]) for name in base)
    assert isinstance(models.load_policy(job.root, "improved"), SmolVLA)
    judge = models.load_reward(job.root)
    assert isinstance(judge, VLMJudge) and not load_tensors(job.root.model("reward"))[0]


def _run(wanted: Experiment, given: Path, tmp_path: Path) -> Job:
    """The stages on recorded episodes, then evaluation in the simulator."""
    recorded = replace(
        wanted,
        demos=replace(wanted.demos, recorded=str(given / "demos")),
        collect=replace(wanted.collect, recorded=str(given / "played")),
    )
    with open_job(tmp_path / "run", "tiny", recorded, seed=0, quiet=True) as job:
        run_missing(job, whole(job)[:-1])
        _let_some_succeed(job)
        run_missing(job, whole(job))
    with Job(job.root, wanted, 0, quiet=True) as job:
        evaluate(job)
    return job


def _let_some_succeed(job: Job) -> None:
    """Moves the classifier's threshold amid what it says of imagined episodes, so that groups are mixed."""
    dream, judge = imagined_env(job, 1), models.load_reward(job.root)
    starts = imagined_starts(job.collected()[0]).rows(torch.zeros(8, dtype=torch.long))
    starts = starts.with_ids(torch.arange(8), torch.zeros(8, dtype=torch.long))
    dream.reward_model.threshold = 1e9
    played = run_episodes(
        dream, models.load_policy(job.root, "base"), starts, temperature=1.0, seed=0, record_video=True
    )
    assert played.video is not None
    judge.threshold = float(np.median(peaks(judge, [LabelledVideo(video, -1) for video in played.video])))
    models.save_reward(job.root, judge)


def _what_was_learned_is_kept(job: Job) -> None:
    published = OpenVLAOFTConfig(
        folder=job.experiment.policy.folder, chunk_size=4, dtype="float32", unnorm_key="coffee"
    ).build()
    base, improved = (load_tensors(job.root.model(name))[0] for name in ("base", "improved"))
    assert base.keys() == improved.keys() == published.state_dict().keys(), "low-rank updates are part of the weights"
    name = "net.llama.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(base[name], published.state_dict()[name])
    assert not torch.equal(base[name], improved[name])
    policy = models.load_policy(job.root, "improved")
    assert isinstance(policy, OpenVLAOFT) and all(p.requires_grad for p in policy.parameters())
    dream, judge = models.load_world_model(job.root), models.load_reward(job.root)
    assert torch.allclose(dream.action_low, torch.tensor(policy.codec.low)) and dream.config.shortcut_steps == 1
    assert np.isfinite(judge.threshold) and judge.window == 2


def test_a_fine_tuned_checkpoint_is_the_base_policy_as_it_is(weights: Path) -> None:
    config = OpenVLAOFTConfig(folder=str(weights / "openvla"), fine_tuned=True, unnorm_key="square", dtype="float32")
    assert config.fit(torch.randn(50, 3), 32).codec == config.build().codec
    fitted = replace(config, fine_tuned=False).fit(torch.linspace(0, 1, 101).unsqueeze(1).repeat(1, 3), 32)
    assert fitted.codec.low == pytest.approx((0.01,) * 3) and fitted.codec.high == pytest.approx((0.99,) * 3)


@pytest.mark.parametrize("rank", [0, 3])
def test_settling_changes_no_logit(weights: Path, rank: int) -> None:
    from wmpo.types import Observation

    torch.manual_seed(0)
    config = OpenVLAOFTConfig(
        folder=str(weights / "openvla"), unnorm_key="square", dtype="float32", lora_rank=2, improve_lora_rank=rank
    )
    policy = config.build()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    frame = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8)
    seen = policy.prepare(Observation(frame=frame, instruction=("open", "shut")))
    with torch.no_grad():
        before, after = policy(**seen), policy.settle()(**seen)
    assert torch.allclose(before, after, atol=2e-4)
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert all((".lora_" in name) == bool(rank) for name in trained)
    assert policy.state_dict().keys() == policy.config.restore(policy.about()).state_dict().keys()


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("paper-")])
def test_a_recipe_of_the_paper_without_its_weights_says_so_before_anything_is_played(name: str, tmp_path: Path) -> None:
    said = refused("run", name, "--env.image-size", "64", cwd=tmp_path)
    missing = "mimicgen" if name == "paper-coffee" else "weights/openvla-7b is not a folder"  # its task is MimicGen's
    assert missing in said
    assert not (tmp_path / "runs").exists()
