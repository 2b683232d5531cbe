"""The dream as Gymnasium environments: Gymnasium's checks, its autoreset, seeds, and the same dream as elsewhere."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import SENTENCE, finished_run
from miniatures import ACTIONS, CHUNK, SIZE, Brightness, small_reward, small_world_model, some_starts

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

import wmpo.envs.gym  # noqa: E402
from wmpo.envs.gym import Dream, DreamEnv, DreamVectorEnv  # noqa: E402
from wmpo.envs.imagined import ImaginedEnv  # noqa: E402


def dream(*, threshold: float = 120.0, max_chunks: int = 3) -> Dream:
    """Episodes of up to three chunks; some end earlier, by the brightness of what is imagined."""
    return Dream(
        world_model=small_world_model(), reward_model=Brightness(1, threshold), starts=some_starts(6, frames=1),
        chunk_size=CHUNK, max_chunks=max_chunks,
        low=np.full(ACTIONS, -1, dtype=np.float32), high=np.full(ACTIONS, 1, dtype=np.float32),
    )  # fmt: skip


def bright(quantile: float) -> float:
    """A threshold that some imagined frames exceed and others do not."""
    envs = DreamVectorEnv(dream(threshold=1e9), num_envs=6)
    envs.reset(seed=3)
    envs.action_space.seed(0)
    values = [envs.step(envs.action_space.sample())[0].astype(float).mean(axis=(1, 2, 3)) for _ in range(3)]
    return float(np.quantile(np.concatenate(values), quantile))


def play(envs: Any, steps: int, seed: int = 5) -> list[tuple[Any, ...]]:
    envs.action_space.seed(1)
    observation, info = envs.reset(seed=seed)
    played = [(observation, info["instruction"])]
    for _ in range(steps):
        *step, info = envs.step(envs.action_space.sample())
        played.append((*step, info["instruction"]))
    return played


def assert_alike(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("action", ["chunk", "single"])
def test_gymnasiums_own_checks(action: Any) -> None:
    env = DreamEnv(DreamVectorEnv(dream(), action=action, render_mode="rgb_array"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*spec.*|.*render.*")  # it was made without gymnasium.make
        check_env(env, skip_render_check=True)


@pytest.mark.parametrize("action", ["chunk", "single"])
def test_rows_are_single_environments_in_gymnasiums_vector(action: Any, float32: None) -> None:
    """The strongest check of autoreset: Gymnasium's own vectorisation over single environments."""
    threshold = bright(0.8)

    def one() -> DreamEnv:
        return DreamEnv(DreamVectorEnv(dream(threshold=threshold), action=action))

    theirs, ours = SyncVectorEnv([one] * 4), DreamVectorEnv(dream(threshold=threshold), num_envs=4, action=action)
    assert theirs.metadata["autoreset_mode"] == ours.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert theirs.single_observation_space == ours.single_observation_space
    assert theirs.observation_space == ours.observation_space and theirs.action_space == ours.action_space
    steps = 14 if action == "chunk" else 14 * CHUNK
    mine, reference = play(ours, steps), play(theirs, steps)
    ends = np.stack([step[2] | step[3] for step in mine[1:]])
    assert ends.sum() > 8 and 0 < sum(step[2].sum() for step in mine[1:]) < ends.sum()  # solved, and out of time
    for a, b in zip(mine, reference, strict=True):
        off = np.abs(a[0].astype(int) - b[0].astype(int)).max()
        assert off <= 1, off  # sums in another order
        assert all(np.array_equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))


def test_outputs_are_in_their_spaces() -> None:
    envs = DreamVectorEnv(dream(threshold=bright(0.8)), num_envs=3, render_mode="rgb_array")
    observation, info = envs.reset(seed=0)
    assert envs.observation_space.contains(observation) and envs.single_observation_space.shape == (SIZE, SIZE, 3)
    assert envs.single_action_space.shape == (CHUNK, ACTIONS)
    assert info["instruction"].tolist() == ["push the block"] * 3
    kept = observation.copy()
    for _ in range(6):
        found, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert envs.observation_space.contains(found)
        assert reward.dtype == np.float64 and np.array_equal(reward, terminated.astype(float))
        assert terminated.dtype == truncated.dtype == bool and not (terminated & truncated).any()
        assert np.array_equal(np.stack(envs.render() or ()), found)
    assert np.array_equal(observation, kept)  # what was returned is not written to again


def test_the_step_after_an_end_resets() -> None:
    envs = DreamVectorEnv(dream(threshold=1e9), num_envs=2)
    envs.reset(seed=0)
    actions = [envs.action_space.sample() for _ in range(5)]
    steps = [envs.step(a) for a in actions]
    assert [step[3].tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2, [False] * 2, [False] * 2]
    starts = envs.dream.starts.frames
    assert starts is not None
    for row in range(2):
        assert any(np.array_equal(steps[3][0][row], frame[-1]) for frame in starts.numpy())  # a start again
    assert steps[3][1].tolist() == [0, 0]


@pytest.mark.parametrize("action", ["chunk", "single"])
def test_seeds(action: Any) -> None:
    threshold = bright(0.9)
    envs = DreamVectorEnv(dream(threshold=threshold), num_envs=3, action=action)
    first = play(envs, 12)
    assert_alike(first, play(envs, 12))
    assert_alike(first, play(DreamVectorEnv(dream(threshold=threshold), num_envs=3, action=action), 12))
    other = play(envs, 12, seed=100)
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
    envs.reset(seed=0)
    more = [envs.reset()[0] for _ in range(6)]  # the next episodes, not the same one again
    assert len({frames.tobytes() for frames in more}) > 1
    unseeded = DreamVectorEnv(dream(), num_envs=1)
    assert unseeded.reset()[0].shape == (1, SIZE, SIZE, 3)


def test_it_is_the_dream_of_improve(float32: None) -> None:
    """Frames and ends are those of ImaginedEnv on the same starts and noise."""
    made = dream(threshold=bright(0.7))
    envs = DreamVectorEnv(made, num_envs=4)
    observation, _ = envs.reset(seed=7)
    (group,) = envs._groups
    env = ImaginedEnv(made.world_model, made.reward_model, chunk_size=CHUNK, max_chunks=3, seed=0)
    keys = group.env._keys
    frames = torch.from_numpy(observation).unsqueeze(1)
    starts = some_starts(4).with_ids(torch.tensor(keys), torch.arange(4))
    env.reset(replace(starts, frames=frames))
    chunk = envs.action_space.sample()
    found, _, terminated, truncated, _ = envs.step(chunk)
    step = env.step(torch.from_numpy(chunk))
    assert np.array_equal(found, step.frames[:, -1].numpy())
    assert np.array_equal(terminated, step.terminated.numpy()) and not truncated.any()


def test_single_actions_are_the_chunk(float32: None) -> None:
    """Two frames a chunk of four: pictures change after every second action only."""
    chunked, single = (DreamVectorEnv(dream(threshold=1e9), num_envs=2, action=a) for a in ("chunk", "single"))
    first, _ = chunked.reset(seed=2)
    assert np.array_equal(first, single.reset(seed=2)[0])
    chunk = chunked.action_space.sample()
    seen = [single.step(chunk[:, k]) for k in range(CHUNK)]
    assert np.array_equal(seen[0][0], first) and not np.array_equal(seen[1][0], first)
    assert np.array_equal(seen[2][0], seen[1][0])
    ends = [single.step(chunk[:, 0])[3].tolist() for _ in range(2 * CHUNK)]
    assert ends == [[False] * 2] * (2 * CHUNK - 1) + [[True] * 2]


def test_actions_are_clipped_and_nonsense_is_refused() -> None:
    envs = DreamVectorEnv(dream(), num_envs=2)
    with pytest.raises(ValueError, match="reset"):
        envs.step(envs.action_space.sample())
    chunk = np.full((2, CHUNK, ACTIONS), 1.0, dtype=np.float32)
    envs.reset(seed=0)
    inside = envs.step(chunk)[0]
    envs.reset(seed=0)
    assert np.array_equal(envs.step(50 * chunk)[0], inside)
    for bad in (chunk[0], chunk[:, :1], chunk * np.nan):
        with pytest.raises(ValueError, match="finite"):
            envs.step(bad)
    for wrong in ({"num_envs": 0}, {"action": "chunks"}, {"render_mode": "human"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DreamVectorEnv(dream(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="recorded frames"):
        DreamVectorEnv(Dream(world_model=small_world_model(), reward_model=small_reward(), starts=some_starts(2),
                             chunk_size=4, max_chunks=1, low=np.zeros(2, "f4"), high=np.ones(2, "f4")))  # fmt: skip


def test_make_vec_and_make_of_a_run(tmp_path: Path) -> None:
    finished_run(tmp_path / "run", threshold=-1e9)
    wmpo.envs.gym.register()  # twice is once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gymnasium.make_vec("wmpo/Dream-v0", num_envs=3, run=tmp_path / "run")
        again = gymnasium.make_vec("wmpo.envs.gym:wmpo/Dream-v0", run=str(tmp_path / "run"))
        env = gymnasium.make("wmpo/Dream-v0", run=str(tmp_path / "run"), action="single", render_mode="rgb_array")
    observation, info = envs.reset(seed=0)
    assert np.array_equal(again.reset(seed=0)[0], observation[:1])
    assert observation.shape == (3, 32, 32, 3) and info["instruction"].tolist() == [SENTENCE] * 3
    _, reward, terminated, _, _ = envs.step(envs.action_space.sample())
    assert reward.tolist() == [1, 1, 1] and terminated.all()
    assert envs.single_action_space.low.tolist() == [[-1.0] * 4] * 4
    env.reset(seed=0)
    check_env(env.unwrapped, skip_render_check=True)
    finished_run(tmp_path / "young", rounds=0)
    with pytest.raises(ValueError, match="no complete round"):
        gymnasium.make_vec("wmpo/Dream-v0", run=tmp_path / "young")
