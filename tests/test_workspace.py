"""What a controller makes of commands: arithmetic that must be the simulator's own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import CHUNK, Brightness, small_policy, small_world_model, some_starts

from wmpo.data.episode import Episode
from wmpo.envs.imagined import ImaginedEnv
from wmpo.envs.metaworld import MetaWorldConfig, MetaWorldSim
from wmpo.envs.workspace import Workspace, Workspaces
from wmpo.rollout.run import run_episodes

BOX = Workspace(low=(-1.0, -math.inf), high=(1.5, math.inf))


def episode(actions: np.ndarray) -> Episode:
    frames = np.zeros((len(actions) + 1, 16, 16, 3), dtype=np.uint8)
    return Episode(
        frames=frames, actions=actions.astype(np.float32), solved_at=-1, instruction="push",
        start=0, episode_id=0, policy="base",
    )  # fmt: skip


def test_the_border_takes_what_goes_beyond_and_gives_nothing_back() -> None:
    commands = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [-1.0, 2.0], [-1.0, 2.0], [-1.0, 2.0]])
    found = BOX.executed(episode(commands))
    assert found.actions[:, 0].tolist() == [1.0, 0.5, 0.0, -1.0, -1.0, -0.5]
    assert found.actions[:, 1].tolist() == [2.0] * 6
    free = Workspace.unlimited(2).executed(episode(commands))
    assert np.array_equal(free.actions, commands.astype(np.float32))


def test_chunk_by_chunk_is_all_at_once_for_every_row() -> None:
    commands = np.random.default_rng(0).uniform(-1, 1, (3, 8, 2)).astype(np.float32)
    still = np.zeros((3, 2), dtype=np.float32)
    whole, end = BOX.execute(still, commands)
    first, middle = BOX.execute(still, commands[:, :4])
    second, last = BOX.execute(middle, commands[:, 4:])
    assert np.array_equal(np.concatenate([first, second], axis=1), whole) and np.array_equal(last, end)
    assert np.allclose(whole.sum(axis=1), end, atol=1e-6)


@pytest.mark.parametrize("task", ["plate-slide-v3", "button-press-topdown-v3"])
def test_it_is_what_meta_worlds_controller_does(task: str) -> None:
    config = MetaWorldConfig(task=task)
    sim, rng = MetaWorldSim(config), np.random.default_rng(0)
    sim.reset(5)
    start = sim.env.data.mocap_pos[0].copy()
    commands = np.clip(rng.standard_normal((30, 4)) + np.array([0.4, -0.6, 0.8, 0.0]), -1, 1)
    found = config.workspace().executed(episode(commands))
    assert not np.allclose(found.actions[:, :3], commands[:, :3], atol=0.05), "some of it must be beyond the border"
    for step, action in enumerate(commands, start=1):
        sim.step(action)
        expected = start + 0.01 * config.action_repeat * found.actions[:step, :3].sum(axis=0)
        assert np.allclose(sim.env.data.mocap_pos[0], expected, atol=1e-4)


def test_the_dream_is_told_what_is_executed_and_branches_go_on_from_where_they_are() -> None:
    told = []
    model = small_world_model()
    imagine = model.imagine
    model.imagine = lambda context, chunk, *rest: (told.append(chunk.clone()), imagine(context, chunk, *rest))[1]  # type: ignore[method-assign]
    tight = Workspace(low=(-0.1, -math.inf), high=(0.1, math.inf))
    env = ImaginedEnv(
        model, Brightness(1, 1e9), chunk_size=CHUNK, max_chunks=3, seed=0, workspaces=Workspaces({"": tight})
    )
    run_episodes(env, small_policy(), some_starts(4, frames=1), temperature=1.0, seed=0)
    sums = torch.cat(told, dim=1)[..., 0].cumsum(dim=1)
    assert sums.abs().max() <= 0.1 + 1e-6 and sums.abs().max() > 0.09
    told.clear()
    at_the_border = replace(some_starts(4, frames=1), travelled=torch.tensor([[0.1, 0.0]]).repeat(4, 1))
    run_episodes(env, small_policy(), at_the_border, temperature=1.0, seed=0)
    sums = torch.cat(told, dim=1)[..., 0].cumsum(dim=1)
    assert sums.max() <= 1e-6 and sums.min() >= -0.2 - 1e-6
