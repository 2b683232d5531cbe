"""``wmpo log``: metrics files become curves, each point once."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from commands import refused

from wmpo.cli import main
from wmpo.report.mirror import Mirror, Point, points
from wmpo.report.run import RunFolder, StageLog


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As the stages write it."""
    path = tmp_path / "run"
    for folder, stage, rows in (
        (path, "sft", [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}]),
        (path / "round-2", "world-model", [
            {"step": 5, "loss": 0.5}, {"step": 5, "distance": [0.1, 0.2], "tokenizer_distance": [0.1, 0.1]},
        ]),
        (path / "round-2", "improve", [{"iteration": 1, "real_success": 0.5, "kind": "x", "ok": True, "none": None}]),
    ):  # fmt: skip
        log = StageLog(RunFolder(folder), stage, quiet=True)
        for row in rows:
            log.write(**row)
    (path / "config.json").write_text('{"recipe": "tiny"}')
    return path


EXPECTED = [
    Point("sft", "loss", 10, 2.0),
    Point("sft", "loss", 20, 1.0),
    Point("round-2/improve", "real_success", 1, 0.5),
    Point("round-2/world-model", "loss", 5, 0.5),
    Point("round-2/world-model", "distance", 5, 0.2),
    Point("round-2/world-model", "tokenizer_distance", 5, 0.1),
]


class Kept:
    def __init__(self, interrupt: int = 0) -> None:
        self.points: list[Point] = []
        self.closed, self.flushed, self.interrupt = False, 0, interrupt

    def write(self, point: Point) -> None:
        self.points.append(point)

    def flush(self) -> None:
        self.flushed += 1
        if self.flushed == self.interrupt:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


def test_every_number_is_a_point_of_its_stage_and_round(run: Path) -> None:
    assert list(points(run)) == EXPECTED
    record = {key: {"success": 0.25} for key in ("greedy", "best")}
    (run / "results.json").write_text(json.dumps({"base": record, "improved": record}))
    assert list(points(run))[-1] == Point("real_success", "improved_best", 0, 0.25)


def test_a_resumed_training_is_not_told_twice(run: Path) -> None:
    mirror, kept = Mirror(run), Kept()
    assert mirror.copy(kept, follow=False) == len(EXPECTED) and kept.points == EXPECTED and kept.closed
    log = StageLog(RunFolder(run), "sft", quiet=True)
    log.resume("step", 20)
    log.write(step=20, loss=1.0)
    log.write(step=30, loss=0.5)
    with open(log.path, "a") as file:
        file.write('{"step": 40, "lo')  # torn
    assert list(mirror.new()) == [Point("sft", "loss", 30, 0.5)]


def test_following_ends_with_an_interruption_and_keeps_what_was_written(run: Path) -> None:
    kept = Kept(interrupt=3)
    assert Mirror(run).copy(kept, follow=True, seconds=0) == len(EXPECTED)
    assert kept.closed and kept.points == EXPECTED


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    assert "config.json" in refused("log", "nowhere", cwd=tmp_path)
    assert "tensorboard" in refused("log", "nowhere", "--to", "mlflow", cwd=tmp_path)


def test_what_is_not_installed_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for where in ("tensorboard", "wandb"):
        assert "pip install 'wmpo[log]'" in refused("log", run, "--to", where, cwd=run)


def test_tensorboard_reads_what_was_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time replaces the first
        main(["log", str(run)])
    assert "6 numbers for tensorboard" in capsys.readouterr().out
    found = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {f"{p.group}/{p.name}" for p in EXPECTED}
    assert [(event.step, event.value) for event in found.Scalars("sft/loss")] == [(10, 2.0), (20, 1.0)]


@pytest.mark.external
def test_weights_and_biases_offline(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(run))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(run))
    main(["log", str(run), "--to", "wandb", "--project", "mine"])
    (record,) = run.glob("wandb/offline-run-*/run-*.wandb")
    wanted, end = (b"sft/loss", b"round-2/world-model/distance", b"mine"), time.monotonic() + 30
    while not all(each in record.read_bytes() for each in wanted):  # its own process writes, until this one ends
        assert time.monotonic() < end
        time.sleep(0.1)
