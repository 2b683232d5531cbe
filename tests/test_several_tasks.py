"""Several tasks in one run: their sentences tell them apart, everything else is shared."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused, wmpo
from finished_run import SENTENCE, finished_run, recorded
from miniatures import CHUNK, Brightness, small_world_model, some_starts

from wmpo.data.splits import start_seeds
from wmpo.envs.imagined import ImaginedEnv
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.simulated import SimulatedEnv
from wmpo.envs.tasks import SeveralTasks
from wmpo.envs.workspace import Workspace, Workspaces
from wmpo.recipes import recipe
from wmpo.reward.small import SmallReward, SmallRewardConfig
from wmpo.stages import models
from wmpo.stages.deploy import export_policy, load_policy
from wmpo.stages.job import existing_job
from wmpo.stages.learn import _level
from wmpo.stages.plan import Hardware, plan
from wmpo.train.fit import FitConfig
from wmpo.train.reward import LabelledVideo, RewardTraining, telling_success

PUSH, BUTTON = "drawer-open-v3", "button-press-topdown-v3"
BOTH = MetaWorldConfig(task=PUSH, more_tasks=(BUTTON,), image_size=32)
TOLD = ("open it", "close it")


def test_each_start_is_of_its_task_and_episodes_in_turns_are_those_of_one_simulator_each() -> None:
    several, alone = SeveralTasks(BOTH), {task: BOTH.with_task(task).build() for task in BOTH.tasks}
    states, acts = {}, np.random.default_rng(0).uniform(-1, 1, (6, 4))
    for seed in (100, 101, 102):
        several.reset(seed)
        states[seed] = several.snapshot()
    for task, seed in ((PUSH, 100), (BUTTON, 101), (PUSH, 102)):
        alone[task].reset(seed)
        for act in acts:
            for other in (s for s in states if s != seed):  # somebody else's turn
                several.restore(states[other])
            several.restore(states[seed])
            assert several.step(act) == alone[task].step(act)
            states[seed] = several.snapshot()
        assert np.array_equal(several.render(), alone[task].render())
    several.close()


def test_their_experts_play_in_one_process() -> None:
    seeds = start_seeds("demonstrations", 0, 0, 4)
    with SimulatedEnv(BOTH, chunk_size=4, max_chunks=25, frame_stride=4, ledger=None, num_workers=1) as env:
        played = env.play_expert(seeds, noise=0.1, frame_stride=4)
    assert all(solved > 0 for _, _, solved in played)
    brightness = [frames[0].mean() for frames, _, _ in played]
    assert abs(brightness[0] - brightness[2]) < 1 < abs(brightness[0] - brightness[1]), "two scenes, in turns"


def test_a_task_is_named_once_and_must_exist() -> None:
    with pytest.raises(ValueError, match=r"name a task twice: drawer-open-v3 drawer-open-v3"):
        replace(BOTH, more_tasks=(PUSH,)).validate()
    with pytest.raises(ValueError, match=r"unknown Meta-World task 'drawer-opn-v3'; did you mean drawer-open-v3"):
        replace(BOTH, more_tasks=("drawer-opn-v3",)).validate()


def test_a_plan_counts_the_demonstrations_of_each() -> None:
    one, two = (replace(recipe("tiny"), env=replace(BOTH, more_tasks=more)) for more in ((), (BUTTON,)))
    counted = [plan(experiment, Hardware()).real_episodes for experiment in (one, two)]
    assert counted[1] - counted[0] == one.demos.num_episodes


def test_each_task_must_be_tested() -> None:
    few = replace(recipe("tiny"), env=replace(BOTH, more_tasks=(BUTTON, "door-open-v3", "window-open-v3")))
    with pytest.raises(ValueError, match=r"evaluate.num_validation 2 is too few starts for 4 tasks in turn"):
        few.validate()


def test_every_row_of_the_dream_has_the_limits_of_its_task() -> None:
    told: list[torch.Tensor] = []
    model = small_world_model()
    imagine = model.imagine
    model.imagine = lambda context, chunk, *rest: (told.append(chunk.clone()), imagine(context, chunk, *rest))[1]  # type: ignore[func-returns-value, method-assign]
    limits = {TOLD[0]: Workspace(low=(-0.1, -math.inf), high=(0.1, math.inf)), TOLD[1]: Workspace.unlimited(2)}
    dream = ImaginedEnv(
        model, Brightness(1, 1e9), chunk_size=CHUNK, max_chunks=2, seed=0, workspaces=Workspaces(limits)
    )
    dream.reset(replace(some_starts(2, frames=1), instruction=TOLD))
    chunk = torch.full((2, CHUNK, 2), 0.08)
    dream.step(chunk)
    assert told[0][0, :, 0].sum() == pytest.approx(0.1) and torch.equal(told[0][1], chunk[1])
    with pytest.raises(ValueError, match=r"'wave' is none of this run's tasks, which are open it, close it"):
        Workspaces(limits).of("wave")
    assert Workspaces({TOLD[0]: limits[TOLD[0]]}).of("wave") == limits[TOLD[0]], "one task, whatever it is called"


def judge() -> SmallReward:
    torch.manual_seed(0)
    return SmallRewardConfig(channels=8, dropout=0.0).build(32, instructions=TOLD)


def test_the_classifier_learns_that_the_same_picture_is_success_of_one_task_only() -> None:
    dark, bright = (torch.full((6, 32, 32, 3), level, dtype=torch.uint8) for level in (60, 190))
    videos = [
        LabelledVideo(torch.cat([first, then]), 6, sentence) if wins else LabelledVideo(first, -1, sentence)
        for sentence, (first, then) in zip(TOLD, ((dark, bright), (bright, dark)), strict=True)
        for wins in (True, False)
    ]
    model, fit = judge(), FitConfig(num_steps=120, batch_size=32, learning_rate=3e-3, checkpoint_seconds=1e9)
    training = telling_success(model, videos, RewardTraining(fit=fit), seed=0)
    for number in range(fit.num_steps):
        training.step(number)
    training.finish()
    clips = torch.stack([bright[:2], bright[:2], dark[:2], dark[:2]])
    with torch.no_grad():
        assert (model(clips, TOLD * 2) > 0).tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match=r"'wave' is none of this classifier's tasks: open it, close it"):
        model(clips[:1], ("wave",))


def test_no_task_is_seen_more_rosily_than_another_and_the_levels_are_kept(tmp_path: Path) -> None:
    model, rng = judge(), np.random.default_rng(0)
    told = [TOLD[i % 2] for i in range(40)]
    solved = [(i % 2 == 0 and i % 4 == 0) or (i % 2 == 1 and i % 20 == 1) for i in range(40)]  # 10 of 20, and 2 of 20
    episodes = [replace(recorded(2 * i + won, 8), instruction=told[i]) for i, won in enumerate(solved)]
    rosy = np.array([5.0 * (i % 2) for i in range(40)])  # the dream shows more of the second
    peaks = rng.normal(size=120) + np.tile(rosy, 3)
    level = _level(model, peaks, episodes).reshape(3, 40)
    assert (level[:, ::2] > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert (level[:, 1::2] > 0).mean() == pytest.approx(0.1, abs=0.02)
    never = [replace(episode, solved_at=-1) if i % 2 else episode for i, episode in enumerate(episodes)]
    level = _level(judge(), peaks, never).reshape(3, 40)
    assert not (level[:, 1::2] > 0).any() and (level[:, ::2] > 0).mean() == pytest.approx(0.5, abs=0.02)
    job = finished_run(tmp_path / "run", rounds=1)
    models.save_reward(job.root, model)
    again, clips = models.load_reward(job.root), torch.zeros(2, 2, 32, 32, 3, dtype=torch.uint8)
    assert again.instructions == TOLD and torch.equal(again(clips, TOLD), model.eval()(clips, TOLD))
    model.levels.zero_()
    assert (model(clips, TOLD) - again(clips, TOLD)).tolist() == pytest.approx(again.levels.tolist(), abs=1e-5)


def test_a_policy_of_several_tasks_must_be_told_which(tmp_path: Path) -> None:
    job = finished_run(tmp_path / "run", rounds=1)
    policy, _ = models.open_policy(job.root.model("improved"))
    models.save_policy(job.root, "improved", policy, (SENTENCE, "pull it"))
    loaded, picture = load_policy(tmp_path / "run"), np.zeros((32, 32, 3), np.uint8)
    assert loaded.instructions == (SENTENCE, "pull it")
    with pytest.raises(ValueError, match=f"several tasks; say which one.*{SENTENCE}, pull it"):
        loaded.act(picture)
    assert loaded.act(picture, "pull it").shape == (4, 4)
    export_policy(tmp_path / "run", tmp_path / "alone")
    card = (tmp_path / "alone/README.md").read_text()
    assert f"policy.act(image, {SENTENCE!r})" in card and f"- sentences: {SENTENCE!r}, 'pull it'" in card
    file = str(job.root.model("improved"))
    said = refused("robot", "collect", "arm.py", "--policy", file, "--to", "out", cwd=tmp_path)
    assert "several tasks; say which one, as in --instruction" in said


def test_a_whole_run_of_two_tasks(tmp_path: Path) -> None:
    """Networks that learn nothing, but every stage, and each task's share of everything."""
    done = wmpo("run", "tiny", "--env.more-tasks", "button-press-topdown-v3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/tiny"
    results, sentences = json.loads((run / "results.json").read_text()), ("coffee button", "button press topdown")
    assert list(results["tasks"]) == list(sentences)
    for found in results["tasks"].values():
        assert found["base"]["n"] == found["improved"]["n"] == 2
    together = [sum(found[who]["success"] for found in results["tasks"].values()) / 2 for who in ("base", "improved")]
    assert together == [results[who]["best"]["success"] for who in ("base", "improved")]
    job = existing_job(run)
    job.round = 2
    assert Counter(e.instruction for e in job.demonstrations()) == dict.fromkeys(sentences, 3)
    learn, held_out = job.collected()
    assert Counter(e.instruction for e in [*learn, *held_out]) == dict.fromkeys(sentences, 8)
    assert set(Counter(e.instruction for e in held_out)) == set(sentences)
    report = (run / "report.html").read_text()
    assert "Task by task" in report and all(sentence in report for sentence in sentences)
