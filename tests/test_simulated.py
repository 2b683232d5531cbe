"""Meta-World itself: an episode depends on its start and its actions, never on what else a process plays."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from wmpo.data.splits import simulator_starts
from wmpo.envs.ledger import Ledger
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.processes import LocalWorkers
from wmpo.envs.simulated import Purpose, SimulatedEnv
from wmpo.protocols import ChunkEnv
from wmpo.types import ChunkStep

CONFIG, CHUNK, MAX_CHUNKS = MetaWorldConfig(task="drawer-open-v3", image_size=32), 4, 10
SEEDS = [101, 102, 103]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedEnv]:
    """One simulator process, so that rows must take turns in it."""
    ledger = Ledger(tmp_path_factory.mktemp("run") / "ledger.jsonl")
    with SimulatedEnv(
        CONFIG, chunk_size=CHUNK, max_chunks=MAX_CHUNKS, frame_stride=2, ledger=ledger, num_workers=1
    ) as env:
        yield env


@pytest.fixture(scope="module")
def expert(env: SimulatedEnv) -> Tensor:
    """The scripted expert's actions from two starts, and for the third start somebody else's: it must fail."""
    played = env.play_expert(SEEDS[:2], noise=0.0, frame_stride=1)
    assert all(solved > 0 for _, _, solved in played)
    actions = torch.zeros(len(SEEDS), CHUNK * MAX_CHUNKS, 4)
    for row, (frames, taken, solved) in enumerate(played):
        assert len(frames) == len(taken) + 1 == solved + 1 and frames.shape[1:] == (32, 32, 3)
        actions[row, : len(taken)] = torch.from_numpy(taken)
    actions[2, :, 2] = 1.0  # up and away
    return actions


def play(env: SimulatedEnv, rows: list[int], actions: Tensor) -> tuple[Tensor, list[ChunkStep]]:
    starts = simulator_starts([SEEDS[row] for row in rows], CONFIG.instructions)
    video, steps = [env.reset(starts).frame.unsqueeze(1)], []
    for chunk in range(MAX_CHUNKS):
        steps.append(env.step(actions[rows, CHUNK * chunk : CHUNK * (chunk + 1)]))
        video.append(steps[-1].frames)
    return torch.cat(video, dim=1), steps


def test_interleaved_rows_are_bit_equal_to_rows_played_one_at_a_time(env: SimulatedEnv, expert: Tensor) -> None:
    whole, together = play(env, [0, 1, 2], expert)
    for row in (2, 0, 1):
        alone, steps = play(env, [row], expert)
        assert torch.equal(alone[0], whole[row])
        for a, b in zip(steps, together, strict=True):
            assert (a.steps[0], a.terminated[0], a.truncated[0]) == (b.steps[row], b.terminated[row], b.truncated[row])
    success = torch.stack([step.terminated for step in together]).any(dim=0)
    assert success.tolist() == [True, True, False]


def test_it_keeps_the_contract_of_a_chunk_env(env: SimulatedEnv, expert: Tensor) -> None:
    assert isinstance(env, ChunkEnv)
    video, steps = play(env, [2, 0, 1], expert)
    assert video.shape == (3, 1 + 2 * MAX_CHUNKS, 32, 32, 3) and video.dtype == torch.uint8
    finished = torch.zeros(3, dtype=torch.bool)
    for i, step in enumerate(steps):
        assert (step.steps[finished] == 0).all() and not (step.terminated | step.truncated)[finished].any()
        before = video[:, 2 * i]
        assert torch.equal(step.frames[finished], before[finished].unsqueeze(1).expand_as(step.frames[finished]))
        assert (step.steps[~finished & ~step.terminated] == CHUNK).all()
        finished = finished | step.terminated | step.truncated
    assert steps[-1].truncated.tolist() == [True, False, False] and finished.all()
    assert len({tuple(frame.flatten().tolist()) for frame in video[:, 0]}) == 3, "starts differ"
    assert (video[0, 0] != video[0, 4]).any(), "the arm moves"


def test_the_expert_counts_actions_as_the_clock_does(env: SimulatedEnv, expert: Tensor) -> None:
    taken = [len(actions) for _, actions, _ in env.play_expert(SEEDS[:2], noise=0.0, frame_stride=1)]
    _, steps = play(env, [0, 1], expert)
    assert sum(step.steps for step in steps).tolist() == taken  # type: ignore[union-attr]


def test_noise_on_the_expert_is_keyed_by_the_start(env: SimulatedEnv) -> None:
    (_, one, _), (_, two, _) = env.play_expert(SEEDS[:2], noise=0.3, frame_stride=4)
    ((_, again, _),) = env.play_expert(SEEDS[1:2], noise=0.3, frame_stride=4)
    assert np.array_equal(two, again) and not np.array_equal(one[:5], two[:5])
    assert np.abs(one).max() <= 1 and one.dtype == np.float32


def test_real_episodes_are_counted_once_however_often_they_are_played(env: SimulatedEnv, expert: Tensor) -> None:
    ledger = env._ledger
    assert ledger is not None
    ledger.path.unlink(missing_ok=True)
    env.purpose = Purpose("test", "base", 0.0, 0)
    for _ in range(2):
        play(env, [0, 1, 2], expert)
    assert ledger.count() == {"test": 3, "played_again": 3}
    rows = ledger.episodes()
    assert [row["success"] for row in rows[:3]] == [True, True, False]
    assert {row["start"] for row in rows} == set(SEEDS) and rows[2]["steps"] == CHUNK * MAX_CHUNKS
    env.purpose = Purpose("test", "improved", 0.0, 0)
    play(env, [0], expert)
    assert ledger.count()["test"] == 4, "another policy's episode from the same start is another episode"


def test_actions_that_are_no_numbers_are_refused_with_their_rows(env: SimulatedEnv) -> None:
    env.reset(simulator_starts(SEEDS, CONFIG.instructions))
    chunk = torch.zeros(3, CHUNK, 4)
    chunk[1, 2, 0], chunk[2, 0, 3] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"rows \[1, 2\]"):
        env.step(chunk)


def test_an_error_in_a_simulator_process_arrives_with_its_traceback_and_the_process_lives(env: SimulatedEnv) -> None:
    with pytest.raises(RuntimeError) as caught:
        env._workers.each("no such command", [()])
    assert "simulator process 0" in caught.value.__notes__[0] and "Traceback" in caught.value.__notes__[0]
    assert env.reset(simulator_starts(SEEDS[:1], CONFIG.instructions)).frame.shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MetaWorldConfig(task="drawer-opne-v3"), "drawer-open-v3"),
        (MetaWorldConfig(task="reach"), "did you mean"),
        (MetaWorldConfig(image_size=40), "multiple of 16 in 16..512, not 40"),
        (MetaWorldConfig(image_size=8), "not 8"),
        (MetaWorldConfig(action_repeat=0), "at least 1, not 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_fix(config: MetaWorldConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedEnv(config, chunk_size=4, max_chunks=1, frame_stride=1, ledger=None, num_workers=1)


def test_the_frame_stride_must_divide_the_chunk() -> None:
    with pytest.raises(ValueError, match="frame_stride 3 must divide the chunk size 4"):
        SimulatedEnv(CONFIG, chunk_size=4, max_chunks=1, frame_stride=3, ledger=None, num_workers=1)


def test_instructions_are_the_tasks_words() -> None:
    assert CONFIG.instructions == ("drawer open",)
    assert MetaWorldConfig(task="button-press-topdown-v3").instructions == ("button press topdown",)


def test_a_ledger_survives_a_torn_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    assert ledger.episodes() == [] and ledger.count() == {}
    ledger.record([{"purpose": "audit", "start": 1}, {"purpose": "test", "start": 1}])
    with open(ledger.path, "a") as file:
        file.write(json.dumps({"purpose": "audit", "start": 2})[:-3])
    ledger.record([{"purpose": "audit", "start": 2}, {"purpose": "audit", "start": 1}])
    assert ledger.count() == {"audit": 2, "test": 1, "played_again": 1}


class _Dies(MetaWorldConfig):
    def build(self) -> NoReturn:
        os._exit(1)


def test_a_process_that_dies_says_where_to_look() -> None:
    workers = LocalWorkers(_Dies(), 1)
    try:
        with pytest.raises(RuntimeError, match=r"exit code 1\); its own message is above.*__name__ == '__main__'"):
            workers.scatter("reset", {0: 1})
    finally:
        workers.close()
