"""``examples/ppo_in_the_dream.py``: its advantages by hand, and the whole of it on a finished miniature run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from finished_run import finished_run

from wmpo.envs.ledger import Ledger

EXAMPLE = Path(__file__).parents[1] / "examples/ppo_in_the_dream.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ppo_in_the_dream", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def test_success_has_no_future_and_a_time_limit_has_one(example: ModuleType) -> None:
    """Two rows of two steps: the first is solved by its first step, the second one's time is up after it."""
    no, yes, none = [False, False], [True, True], torch.zeros(2, 2)
    played = example.Played(
        frames=none, actions=none, logprob=none, reward=torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        value=torch.tensor([[0.5, 0.5], [0.25, 0.25]]), terminated=torch.tensor([[True, False], no]),
        ended=torch.tensor([yes, no]), real=torch.tensor([yes, no]), last_value=torch.full((2,), 4.0),
    )  # fmt: skip
    found = example.advantages(played, example.Settings(discount=0.8, trace=0.5))
    assert torch.allclose(found[0], torch.tensor([1 - 0.5, 0.8 * 0.25 - 0.5]))
    assert torch.allclose(found[1], torch.full((2,), 0.8 * 4 - 0.25))


@pytest.mark.slow
def test_it_learns_what_pays_and_meets_reality(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = finished_run(tmp_path / "run", threshold=-1e9)  # every frame is called solved
    sizes = {"num-updates": 2, "num-envs": 3, "clone-steps": 2, "num-audit": 2, "num-episodes": 3}
    example.main([str(tmp_path / "run"), *(f"--{name}={size}" for name, size in sizes.items())])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("clone 2/2  error "), said
    assert said[1].startswith("audit after update 0: "), said
    assert said[2] == "update   1  solved in the dream 18 of 18", said
    assert said[-1].startswith("solved in the simulator: ") and " of 3, " in said[-1]
    rows = Ledger(job.root.ledger).episodes()
    assert [(row["purpose"], row["policy"]) for row in rows] == [("example", "ppo")] * (2 + 2 * 3)
    assert len({row["start"] for row in rows}) == 2 + 3, "the last episodes begin where no audit did"


def test_an_agent_that_got_worse_is_not_kept(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits find 3, 5 and 4 real successes: the agent of the second one is returned."""
    agent, found = torch.nn.Linear(1, 1, bias=False), iter([3, 5, 4])

    class Player:
        def __init__(self, *_: object) -> None: ...

        def play(self, *_: object) -> SimpleNamespace:
            return SimpleNamespace(terminated=torch.zeros(1), ended=torch.ones(1))

    def audit(*_: object) -> torch.Tensor:
        return torch.ones(next(found))

    def update(agent: torch.nn.Linear, *_: object, **__: object) -> None:
        agent.weight.data += 1

    agent.weight.data.zero_()
    monkeypatch.setattr(example.gymnasium, "make_vec", lambda *_, **__: SimpleNamespace(close=lambda: None))
    for name, stand_in in {"Player": Player, "play_for_real": audit, "update": update}.items():
        monkeypatch.setattr(example, name, stand_in)
    job = SimpleNamespace(root=SimpleNamespace(path="run"))
    kept = example.practise(agent, job, None, example.Settings(num_updates=2, audit_every=1), 0)
    assert kept.weight.item() == 1 and agent.weight.item() == 2
