"""Ray actors sample, simulate and learn what one process does; samplers and simulators that die are replaced. Slow
tests need the extra ``ray``."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fake_ray
import numpy as np
import pytest
import torch
from miniatures import BINS, BanditEnv, TablePolicy, some_starts
from torch import nn

from wmpo.division import WHOLE, Division
from wmpo.envs.disrupt import NONE, Disruption
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.processes import LocalWorkers, Workers
from wmpo.execution.backend import ExecutionConfig, trainer, workers
from wmpo.execution.local import LocalSampler
from wmpo.execution.ray_backend import RaySampler, RayTrainer
from wmpo.execution.ray_cluster import ClusterConfig, connect, ranks
from wmpo.execution.ray_simulators import RayWorkers
from wmpo.policy.codec import ActionCodec
from wmpo.protocols import Learner, Sampler
from wmpo.report.run import RunFolder, StageLog
from wmpo.rl.grpo import GRPOConfig
from wmpo.rollout.groups import GroupConfig
from wmpo.train.fit import FitConfig, Part, Training, fit
from wmpo.train.wmpo import ImproveConfig, improve
from wmpo.types import ChunkStep

CODEC = ActionCodec((0.0, 0.0), (BINS - 1.0, BINS - 1.0), 2, BINS)
CONFIG = ImproveConfig(
    num_iterations=2,
    groups=GroupConfig(num_groups=6, group_size=6, max_rounds=2),
    grpo=GRPOConfig(learning_rate=0.05, num_minibatches=2),
)


class SlowBandit(BanditEnv):
    """Takes a while, and says in a file which process is at it."""

    def __init__(self, folder: str, seconds: float) -> None:
        super().__init__(2, 3)
        self.folder, self.seconds = folder, seconds

    def step(self, chunk: torch.Tensor) -> ChunkStep:
        (Path(self.folder) / str(os.getpid())).touch()
        time.sleep(self.seconds)
        return super().step(chunk)


@dataclass(frozen=True)
class Spec:
    folder: str
    seconds: float = 0.0
    damaged: bool = False

    def policy(self) -> TablePolicy:
        return TablePolicy(CODEC, torch.zeros(CODEC.num_tokens, BINS))

    def sampler(self) -> LocalSampler:
        if self.damaged:
            raise ValueError("/runs/mine is not there on gpu-7; all machines must share this folder")
        return LocalSampler(SlowBandit(self.folder, self.seconds), self.policy())


def trained(path: Path, config: ExecutionConfig) -> tuple[torch.Tensor, str]:
    """Weights and metrics of a small improvement."""
    folder, spec = RunFolder(path), Spec(str(path))
    path.mkdir()
    own = spec.policy()
    with workers(config, spec, spec.sampler(), own, CONFIG.grpo, temperature=CONFIG.temperature) as (sampler, learner):
        assert isinstance(sampler, Sampler) and isinstance(learner, Learner)
        improve(
            sampler, learner, some_starts(8), CONFIG, None,
            seed=0, checkpoint=folder.checkpoint("improve"), log=StageLog(folder, "improve", quiet=True),
        )  # fmt: skip
    return own.logits.detach(), (path / "metrics/improve.jsonl").read_text()


def test_a_backend_of_one_process_leaves_its_weights_in_the_given_policy(tmp_path: Path) -> None:
    logits, metrics = trained(tmp_path / "local", ExecutionConfig())
    assert logits.any() and len(metrics.splitlines()) == 2


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ClusterConfig(samplers=0), "samplers 0 and learners 1 must be at least 1"),
        (ClusterConfig(gpus_per_sampler=1.5), "gpus_per_sampler 1.5 must be a fraction of one GPU or a whole number"),
        (ClusterConfig(learner_gpus=2), "learner_gpus 2 must be at most 1.*as many --execution.cluster.learners"),
        (ClusterConfig(learners=2, learner_gpus=0.5), "learner_gpus 0.5 must be 1 .* where there are 2 learners"),
        (ClusterConfig(simulators=-1), "simulators -1 and max_restarts 10 at least 0"),
    ],
)
def test_clusters_that_cannot_be_are_refused(config: ClusterConfig, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config.validate()


TWO = ClusterConfig(samplers=2, gpus_per_sampler=0.25, learner_gpus=0.5)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    ray = fake_ray.module({"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_actors_do_what_one_process_does(fake: Any, tmp_path: Path) -> None:
    logits, metrics = trained(tmp_path / "local", ExecutionConfig())
    found, said = trained(tmp_path / "ray", ExecutionConfig(backend="ray", cluster=TWO))
    assert torch.equal(found, logits) and said == metrics
    assert [actor.options["num_gpus"] for actor in fake.actors] == [0.5, 0.25, 0.25]
    assert all(actor.dead for actor in fake.actors), "nothing stays behind"


def same_as_local(sampler: RaySampler, spec: Spec, count: int) -> None:
    local, weights = spec.sampler(), {"logits": torch.randn(4, BINS, generator=torch.Generator().manual_seed(0))}
    for each in (sampler, local):
        each.load(weights)
    found, expected = sampler.run(some_starts(count), 1.0, 3), local.run(some_starts(count), 1.0, 3)
    for name in ("tokens", "logprob", "executed", "success", "episode_id", "group"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_actors_that_die_are_replaced_and_their_episodes_played_again(fake: Any, tmp_path: Path) -> None:
    spec = Spec(str(tmp_path))
    sampler = RaySampler(TWO, spec)
    for actor in fake.actors:
        actor.runs_left = 0
    same_as_local(sampler, spec, 9)
    assert len(fake.actors) == 4 and [actor.dead for actor in fake.actors] == [True, True, False, False]
    same_as_local(sampler, spec, 1)
    for actor in sampler._pool.actors:
        actor.runs_left = 0
    with pytest.raises(RuntimeError, match="samplers died 1 times in one batch"):
        sampler._pool._most = 0
        sampler.run(some_starts(4), 1.0, 0)


def test_what_an_actor_cannot_do_is_said_in_its_own_words(fake: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^/runs/mine is not there on gpu-7; all machines must share this folder$"):
        RaySampler(TWO, Spec(str(tmp_path), damaged=True))
    with pytest.raises(
        ValueError, match=r"2 samplers, 1 learners and 0 simulators need 2.5 GPUs, but the Ray cluster has 1;"
    ):
        connect(replace(TWO, gpus_per_sampler=1.0))
    with pytest.raises(ValueError, match=r"execution.shards 2 must divide the 3 processes"):
        ExecutionConfig(backend="ray", cluster=replace(TWO, learners=3), shards=2).prepare()


@dataclass(frozen=True)
class Lesson:
    """A network that learns a line."""

    def network(self) -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(2, 1)

    def training(self, network: nn.Linear, division: Division) -> Training:
        def batch(step: int) -> Part:
            x = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
            return lambda rows: (network(x[rows]) - x[rows].sum(dim=1, keepdim=True)).square().mean()

        return Training(network, batch, FIT, division)


FIT = FitConfig(num_steps=12, batch_size=8, learning_rate=0.1, ema=0.5, checkpoint_seconds=0.0)


def learned(path: Path, config: ExecutionConfig, *, until: int = FIT.num_steps) -> tuple[dict[str, Any], list[float]]:
    """Weights after a supervised training that ends with its checkpoint, and its losses at the checks."""
    lesson, folder, seen = Lesson(), RunFolder(path), []
    network = lesson.network()

    def check(done: int, notes: dict[str, Any]) -> bool:
        seen.append(float(network.weight.sum()))
        if done == until < FIT.num_steps:
            raise KeyboardInterrupt
        return True

    with trainer(config, lesson, network, lambda: lesson.training(network, WHOLE)) as training:
        log = StageLog(folder, "sft", quiet=True)
        fit(training, FIT, checkpoint=folder.checkpoint("sft"), log=log, check=check, check_every=4)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, seen


def test_supervised_training_in_an_actor_is_that_of_one_process_and_goes_on(fake: Any, tmp_path: Path) -> None:
    ray = ExecutionConfig(backend="ray", cluster=TWO)
    expected, checks = learned(tmp_path / "local", ExecutionConfig())
    found, seen = learned(tmp_path / "ray", ray)
    assert seen == checks and all(torch.equal(found[name], expected[name]) for name in expected)
    assert fake.actors[0].options["num_gpus"] == TWO.learner_gpus and fake.actors[0].dead
    learned(tmp_path / "no_gpu", replace(ray, cluster=replace(TWO, learner_gpus=0.0)))
    assert len(fake.actors) == 1, "without a GPU for it the driver trains with all its cores"
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path / "again", ray, until=8)
    found, _ = learned(tmp_path / "again", ray)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(actor.dead for actor in fake.actors), "nothing stays behind"


def test_a_dead_trainer_is_said_with_what_to_do(fake: Any) -> None:
    training = RayTrainer(TWO, Lesson(), Lesson().network())
    fake.actors[0].dead = True
    with pytest.raises(RuntimeError, match=r"the learner died .*goes on from its last checkpoint"):
        training.step(0)


class Counter:
    """A simulator whose state is the sum of its seed and its actions, and what it shows."""

    def __init__(self, config: MetaWorldConfig) -> None:
        self.config, self.state = config, 0

    def reset(self, seed: int, disruption: Disruption = NONE) -> None:
        self.state = seed

    def step(self, action: np.ndarray) -> bool:
        self.state += int(action[0])
        return self.state > 100

    def push(self, offset: np.ndarray) -> None: ...

    def expert_action(self) -> np.ndarray:
        return np.ones(1)

    def snapshot(self) -> int:
        return self.state

    def restore(self, state: int) -> None:
        self.state = state

    def render(self, disruption: Disruption = NONE) -> np.ndarray:
        return np.full((2, 2, 3), self.state, np.uint8)

    def close(self) -> None: ...


class CountedConfig(MetaWorldConfig):
    def build(self) -> Counter:
        return Counter(self)


def counted(workers: Workers, deaths: dict[int, list[Any]]) -> list[np.ndarray]:
    """What five rows show after their reset and in each of three chunks; before a chunk these actors may die."""
    shown = [workers.scatter("reset", {row: 10 * row for row in range(5)}, NONE)]
    for chunk in range(3):
        for actor in deaths.get(chunk, []):
            actor.runs_left = 0
        actions = {row: np.full((2, 1), row + chunk + 1.0) for row in range(5) if row != chunk}
        shown.append({row: frames for row, (frames, _) in workers.scatter("step", actions, 1, NONE, {}).items()})
    return [frames[row] for frames in shown for row in sorted(frames)]


def test_simulators_that_die_are_replaced_and_their_rows_played_again(fake: Any) -> None:
    cluster = replace(TWO, simulators=2)
    local, distant = LocalWorkers(CountedConfig(), 1), RayWorkers(cluster, CountedConfig())
    expected = counted(local, {})
    local.close()
    for found in (counted(distant, {}), counted(distant, {1: fake.actors[:2], 2: fake.actors[:1]})):
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(fake.actors) == 4 and [actor.dead for actor in fake.actors] == [True, True, False, False]
    with pytest.raises(KeyError, match="no such command"):
        distant.each("no such command", [(1,)])
    fake.actors[2].runs_left = 0
    with pytest.raises(RuntimeError, match="simulators died 1 times in one batch"):
        distant._pool._most = 0
        counted(distant, {})
    distant.close()
    assert all(actor.dead for actor in fake.actors), "nothing stays behind"


def test_ranks_of_a_machine_follow_each_other() -> None:
    assert ranks(["b", "a", "b", "a", "c"]) == [0, 2, 1, 3, 4]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterConfig]:
    ray = pytest.importorskip("ray", reason="needs the extra ray: pip install 'wmpo[ray]'")
    config = ClusterConfig(samplers=2)
    with pytest.MonkeyPatch.context() as patch:
        places = str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])
        patch.setenv("PYTHONPATH", os.pathsep.join(places))  # actors import this file too
        connect(replace(config, learners=2, simulators=2))
        yield config
        ray.shutdown()


@pytest.mark.slow
def test_two_samplers_and_a_learner_do_what_one_process_does(cluster: ClusterConfig, tmp_path: Path) -> None:
    logits, metrics = trained(tmp_path / "local", ExecutionConfig())
    found, said = trained(tmp_path / "ray", ExecutionConfig(backend="ray", cluster=cluster))
    assert torch.equal(found, logits) and said == metrics


@pytest.mark.slow
def test_an_actor_trains_what_one_process_does(cluster: ClusterConfig) -> None:
    own, lesson = Lesson().network(), Lesson()
    alone, training = lesson.training(own, WHOLE), RayTrainer(cluster, lesson, network := lesson.network())
    for number in range(FIT.num_steps):
        assert training.step(number) == alone.step(number)
    alone.finish(), training.finish()
    training.close()
    assert torch.equal(own.weight, network.weight)


@pytest.mark.slow
def test_two_learners_divide_what_one_process_does(cluster: ClusterConfig, tmp_path: Path) -> None:
    ray = ExecutionConfig(backend="ray", cluster=replace(cluster, samplers=1, learners=2))
    logits, metrics = trained(tmp_path / "local", ExecutionConfig())
    found, said = trained(tmp_path / "ray", ray)
    assert torch.allclose(found, logits, atol=1e-5) and logits.any()
    for mine, theirs in zip(said.splitlines(), metrics.splitlines(), strict=True):
        assert json.loads(mine) == pytest.approx(json.loads(theirs), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_a_training_that_two_learners_began_goes_on_in_one_process(cluster: ClusterConfig, tmp_path: Path) -> None:
    expected, checks = learned(tmp_path / "alone", ExecutionConfig())
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path / "again", ExecutionConfig(backend="ray", cluster=replace(cluster, learners=2)), until=8)
    resumed, seen = learned(tmp_path / "again", ExecutionConfig())
    assert seen == pytest.approx(checks[-len(seen) :], rel=1e-4)
    for name in expected:  # Adam makes a step of full size of a small gradient, and so of its rounding
        assert resumed[name].flatten().tolist() == pytest.approx(expected[name].flatten().tolist(), abs=2e-3)


@pytest.mark.slow
def test_a_learner_without_its_team_is_dead(cluster: ClusterConfig) -> None:
    import ray

    training = RayTrainer(replace(cluster, learners=2), Lesson(), Lesson().network())
    training.step(0)
    ray.kill(training._trainer._actors[1])
    with pytest.raises(RuntimeError, match=r"(the learner died|another process of this training has ended)"):
        training.step(1)
    training.close()
    with pytest.raises(ValueError, match=r"execution.shards 3 must divide the 2 processes"):
        RayTrainer(replace(cluster, learners=2), Lesson(), Lesson().network(), shards=3)


@pytest.mark.slow
def test_simulators_in_actors_show_what_those_of_this_machine_do(cluster: ClusterConfig) -> None:
    import ray

    local, distant = LocalWorkers(CountedConfig(), 1), RayWorkers(replace(cluster, simulators=2), CountedConfig())
    expected = counted(local, {})
    found = counted(distant, {})
    ray.kill(distant._pool.actors[1])
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    actions = {row: np.ones((2, 1)) for row in range(5)}
    again, there = (workers.scatter("step", actions, 1, NONE, {}) for workers in (local, distant))
    assert all(np.array_equal(again[row][0], there[row][0]) for row in actions)
    local.close(), distant.close()


@pytest.mark.slow
def test_a_sampler_that_is_killed_amid_its_episodes_loses_nothing(cluster: ClusterConfig, tmp_path: Path) -> None:
    spec = Spec(str(tmp_path), seconds=5.0)
    sampler = RaySampler(cluster, spec)
    killer = threading.Thread(target=_kill_the_first, args=(tmp_path,))
    killer.start()
    same_as_local(sampler, spec, 9)
    killer.join()
    assert len(list(tmp_path.iterdir())) > 3, "another process took over"
    sampler.close()


def _kill_the_first(folder: Path) -> None:
    while not (playing := [int(path.name) for path in folder.iterdir()]):
        time.sleep(0.05)
    assert playing[0] != os.getpid()
    os.kill(playing[0], signal.SIGKILL)


@pytest.mark.slow
def test_what_cannot_be_had_is_said_before_anything_is_played(cluster: ClusterConfig, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"2 samplers, 1 learners and 0 simulators need 2.5 GPUs, but the Ray cluster has 0"
    ):
        connect(replace(cluster, gpus_per_sampler=1.0, learner_gpus=0.5))
    with pytest.raises(ValueError, match=r"not there on gpu-7") as refused:
        RaySampler(cluster, Spec(str(tmp_path), damaged=True))
    assert "Traceback" not in str(refused.value)
