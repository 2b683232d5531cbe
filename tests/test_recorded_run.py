"""A run from datasets alone: two cameras, seven action dimensions, a rate of its own, and no simulator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finished_run import finished_run

import wmpo
from wmpo.cli import main
from wmpo.cli_compare import main as compare
from wmpo.config import Experiment
from wmpo.data.damage import DatasetError
from wmpo.data.episode import Episode
from wmpo.data.lerobot import append_episodes, read_episodes
from wmpo.envs.recorded import RecordedConfig
from wmpo.envs.simulated import Purpose
from wmpo.policy.codec import PathCodec
from wmpo.recipes import recipe, tiny
from wmpo.report.render import render
from wmpo.stages import models
from wmpo.stages.begin import usual_actions
from wmpo.stages.export import export
from wmpo.stages.fidelity import fidelity
from wmpo.stages.job import Job, open_job
from wmpo.stages.measure import evaluate
from wmpo.stages.order import run_missing, whole
from wmpo.stages.recorded import described
from wmpo.world_model.small import SmallWorldModel

SIZE, FPS = 32, 15
VIEWS = ("front", "wrist")
LOW, HIGH = -30.0, 90.0


def episode(number: int, solved: bool, steps: int = 10) -> Episode:
    """Pictures become bright where the task is solved; actions are angles in degrees."""
    generator = np.random.default_rng(number)
    frames = generator.integers(0, 90, (steps + 1, SIZE, 2 * SIZE, 3), dtype=np.uint8)
    frames[steps - 1 :] += np.uint8(150 * solved)
    return Episode(
        frames=frames,
        actions=generator.uniform(LOW, HIGH, (steps, 7)).astype(np.float32),
        solved_at=steps - 1 if solved else -1,
        instruction="fold the cloth",
        start=-1,
        episode_id=number,
        policy="unknown",
        views=VIEWS,
    )


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    append_episodes(Path("demos"), [episode(i, True, 9) for i in range(3)], fps=FPS)
    append_episodes(Path("played"), [episode(10 + i, i % 2 == 0, 10 + i % 3) for i in range(12)], fps=FPS)
    return tmp_path


def small() -> Experiment:
    """The recipe with networks and training of ``tiny``."""
    wanted, sizes = recipe("recorded"), tiny()
    parts = ("policy", "sft", "tokenizer", "tokenizer_training", "world_model", "world_model_training", "reward")
    parts += ("clone", "fidelity")
    return replace(
        wanted,
        demos=replace(wanted.demos, recorded="demos"),
        collect=replace(wanted.collect, recorded="played"),
        reward_training=replace(sizes.reward_training, on_policy=wanted.reward_training.on_policy),
        improve=replace(sizes.improve, audit=wanted.improve.audit),
        **{name: getattr(sizes, name) for name in parts},
    )


def test_the_whole_job(data: Path) -> None:
    experiment = described(small())
    assert experiment.env == RecordedConfig(task="fold the cloth", image_size=SIZE, views=VIEWS, action_dim=7, rate=FPS)
    assert (experiment.demos.num_episodes, experiment.collect.num_episodes) == (3, 12)
    assert (experiment.collect.num_held_out, experiment.max_chunks) == (3, 3), "chunks of 4 in 12 actions"
    with open_job(data / "run", "recorded", experiment, 0, quiet=True) as job:
        run_missing(job, whole(job))
        fidelity(job)
        _check_stages(job)
        with pytest.raises(ValueError, match="run there: wmpo robot deploy"):
            evaluate(job)
        with pytest.raises(ValueError, match=r"nothing can be played here.*wmpo robot deploy"):
            job.real_env(Purpose("test", ""), frame_stride=1)
    policy = wmpo.load_policy(data / "run")
    pictures = {name: np.zeros((48, 64, 3), dtype=np.uint8) for name in VIEWS}
    actions = policy.act(pictures)
    assert actions.shape == (4, 7) and (actions >= LOW).all() and (actions <= HIGH).all()
    assert policy.instructions == ("fold the cloth",)
    export(data / "run", data / "dreams", "imagined", num_episodes=2, temperature=None)
    assert {(e.views, e.frames.shape[1:]) for e in read_episodes(data / "dreams")} == {(VIEWS, (SIZE, 2 * SIZE, 3))}
    page = render(data / "run").read_text()
    assert "Real success was not measured" in page and "Policies could not be played" in page


def _check_stages(job: Job) -> None:
    from wmpo.stages.models import load_world_model

    dream = load_world_model(job.folder)
    assert isinstance(dream, SmallWorldModel) and dream.views == VIEWS
    assert (dream.action_high - dream.action_low > (HIGH - LOW) / 2).all(), "as in the demonstrations"
    assert (job.folder.summary("reward") or {})["on_policy"] == {}, "who acted is not known"
    assert not job.root.ledger.exists(), "no episode was played"
    seen = [*read_episodes(job.dataset("demonstrations")), *read_episodes(job.dataset("collected"))]
    assert len({episode.start for episode in seen}) == 15, "every episode has a start of its own"
    assert job.root.summary("fidelity") is not None


def test_what_is_set_stays_and_a_run_goes_on_without_its_datasets(data: Path) -> None:
    settings = ["--demos.recorded", "demos", "--collect.recorded", "played", "--collect.num-episodes", "8"]
    main(["demos", "recorded", *settings, "--env.task", "fold it", "--max-chunks", "5"])
    saved = json.loads(Path("runs/recorded/config.json").read_text())["config"]
    assert saved["env"] | {"kind": ""} == {
        "kind": "", "task": "fold it", "more_tasks": [], "image_size": SIZE, "views": list(VIEWS), "action_dim": 7,
        "rate": FPS,
    }  # fmt: skip
    assert (saved["max_chunks"], saved["collect"]["num_episodes"], saved["collect"]["num_held_out"]) == (5, 8, 2)
    (data / "demos").rename(data / "elsewhere")
    main(["demos", "recorded"])  # complete already: the folder knows all


def test_datasets_that_do_not_do(data: Path) -> None:
    wanted = small()
    for part, flag in (("demos", "--demos.recorded"), ("collect", "--collect.recorded")):
        for name in ("", "nowhere"):
            broken = replace(wanted, **{part: replace(getattr(wanted, part), recorded=name)})
            with pytest.raises(ValueError, match=f"{flag} .*wmpo data import"):
                described(broken)
    append_episodes(Path("flat"), [replace(episode(1, True), views=("main",))], fps=FPS)
    with pytest.raises(DatasetError, match=r"32x64 pixels.*--image-size"):
        described(replace(wanted, demos=replace(wanted.demos, recorded="flat")))
    with pytest.raises(ValueError, match=r"--demos\.recorded and --collect\.recorded"):
        known = described(wanted)
        replace(known, demos=replace(known.demos, recorded="")).validate()
    with pytest.raises(ValueError, match="has no simulator, so there is nothing to compare"):
        compare("compare", "recorded", ["--demos.recorded", "demos", "--collect.recorded", "played"])


def test_collected_episodes_must_be_of_the_same_robot(data: Path) -> None:
    swapped = [replace(episode(10 + i, i % 2 == 0), views=VIEWS[::-1]) for i in range(4)]
    append_episodes(Path("swapped"), swapped, fps=FPS)
    experiment = described(small())
    wrong = replace(experiment, collect=replace(experiment.collect, recorded="swapped", num_episodes=4, num_held_out=2))
    cameras = pytest.raises(ValueError, match="cameras wrist, front where this run has front, wrist")
    with open_job(data / "run", "recorded", wrong, 0, quiet=True) as job, cameras:
        run_missing(job, [("demos", 1), ("sft", 1), ("collect", 1)])


def test_a_policy_without_bounds_leaves_them_to_the_demonstrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished_run(tmp_path / "run", rounds=0)
    low, high = usual_actions(job)
    assert (low.tolist(), high.tolist()) == ([-1.0, -2.0, 0.0, 5.0], [1.0, 2.0, 0.5, 6.0]), "the base policy's"
    unbounded = SimpleNamespace(codec=PathCodec((0.0,) * 4, (1.0,) * 4, 4))
    monkeypatch.setattr(models, "load_policy", lambda folder, name: unbounded)
    low, high = usual_actions(job)
    actions = np.concatenate([e.actions for e in job.demonstrations()])
    np.testing.assert_allclose(torch.stack([low, high]), np.quantile(actions, [0.01, 0.99], axis=0), rtol=1e-5)
