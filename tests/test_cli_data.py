"""wmpo data import, inspect and export as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_run import finished_run, recorded
from PIL import Image
from test_lerobot import assert_same

from wmpo.cli import main
from wmpo.data.importing import Conversion, import_dataset
from wmpo.data.lerobot import read_episodes
from wmpo.data.source import Keys


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What a refused command says; it must end with 2."""
    with pytest.raises(SystemExit) as caught:
        main(["data", *args])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return said.err + said.out


def test_import_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.rlds(Path("source"), (5, 4, 6))
    naming = ["--action", foreign.RLDS_ACTION]
    main(["data", "import", "source", "--to", "new", "--fps", "5", "--image-size", "8", *naming])
    assert "new: 3 episodes, 1 solved, 12 actions at 5 fps, from RLDS records" in capsys.readouterr().out
    assert json.loads(Path("new/meta/origin.json").read_text())["image_size"] == 8
    assert read_episodes(Path("new"))[0].frames.shape == (5, 8, 8, 3)

    main(["data", "inspect", "new", "--json", "--sheet", "sheets/new.png"])
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["actions"], found["solved"], found["fps"]) == (3, 12, 1, 5)
    assert (found["shortest"], found["mean_length"], found["longest"]) == (3, 4, 5)
    actions = np.concatenate([foreign.actions(i, n)[:-1] for i, n in enumerate((5, 4, 6))])
    assert found["action_low"] == pytest.approx(actions.min(axis=0))
    assert found["action_mean"] == pytest.approx(actions.mean(axis=0), rel=1e-5)
    assert found["action_high"] == pytest.approx(actions.max(axis=0))
    assert found["instructions"] == {"push": 3} and found["policies"] == {"unknown": 3}
    assert Image.open("sheets/new.png").size[0] > 8 * 96

    main(["data", "inspect", "source", *naming])  # also before it is imported
    said = capsys.readouterr().out
    assert "1 of 3 (33 %)" in said and "'push' (3)" in said and Path("contact_sheet.png").exists()


def test_inspect_says_what_will_not_work(capsys: pytest.CaptureFixture[str]) -> None:
    foreign.rlds(Path("source"))
    import_dataset(Path("source"), Path("new"), Keys(action="steps/reward"), Conversion(fps=5, labels="failed"))
    foreign.lerobot_v21(Path("unlabelled"))
    for name, says in (("new", "no episode is solved"), ("unlabelled", "--labels")):
        main(["data", "inspect", name])
        assert says in capsys.readouterr().out
    import_dataset(Path("source"), Path("still"), Keys(action="steps/is_last"), Conversion(fps=5))
    main(["data", "inspect", "still"])
    assert "[0] never move" in capsys.readouterr().out


def test_a_sheet_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    foreign.lerobot_v21(Path("source"))
    assert "--sheet . is a folder; name a picture" in refused(capsys, "inspect", "source", "--sheet", ".")


def test_inspect_of_episodes_that_do_not_fit_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    root = foreign.lerobot_v21(Path("source"))
    table = pq.read_table(root / foreign.V21_DATA)
    short = pa.array([[0.0, 1.0]] * 4, type=pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", short), root / foreign.V21_DATA)
    assert "episode 1 has 2 action dimensions" in refused(capsys, "inspect", "source")


@pytest.mark.parametrize("what", ["collected", "demonstrations"])
def test_export_of_real_episodes_and_back_is_lossless(what: str) -> None:
    finished_run(Path("run"))
    main(["data", "export", "run", "--to", "out", "--what", what])
    main(["data", "import", "out", "--to", "back"])
    main(["data", "import", "back", "--to", "again"])
    expected = [recorded(10 * n + i, 8) for n in (1, 2) for i in range(3)]
    if what == "demonstrations":
        expected = [recorded(100 + i, 5, policy="expert") for i in range(2)]
    for name in ("out", "back", "again"):
        assert_same(read_episodes(Path(name)), expected)
    assert json.loads(Path("out/meta/origin.json").read_text())["imagined"] is False


@pytest.mark.parametrize("threshold", [-1e9, 1e9])
def test_export_of_imagined_episodes(threshold: float, capsys: pytest.CaptureFixture[str]) -> None:
    job = finished_run(Path("run"), threshold=threshold)
    main(["data", "export", "run", "--to", "out", "--what", "imagined", "--num-episodes", "8"])
    assert f"8 imagined episodes, {8 if threshold < 0 else 0} solved" in capsys.readouterr().out
    found = read_episodes(Path("out"))
    starts = [recorded(10 * n + i, 8) for n in (1, 2) for i in range(3)]
    steps = job.experiment.policy.chunk_size * (1 if threshold < 0 else job.experiment.max_chunks)
    stride = job.experiment.world_model.frame_stride
    for i, e in enumerate(found):
        assert np.array_equal(e.frames[0], starts[i % 6].frames[0]) and e.start == starts[i % 6].start
        assert len(e.actions) == steps and e.solved_at == (stride if threshold < 0 else -1)
        for f in range(steps):
            assert np.array_equal(e.frames[f], e.frames[f // stride * stride])  # held in between
        assert e.policy == "improved, imagined"
    assert not np.array_equal(found[0].actions, found[6].actions)  # the same start, other noise
    origin = json.loads(Path("out/meta/origin.json").read_text())
    assert origin["imagined"] is True and (origin["round"], origin["frame_stride"]) == (2, stride)
    main(["data", "export", "run", "--to", "more", "--what", "imagined", "--num-episodes", "8"])
    assert_same(read_episodes(Path("more")), found)


def test_the_last_complete_round_dreams() -> None:
    finished_run(Path("run"), rounds=1)
    main(["data", "export", "run", "--to", "out", "--what", "imagined", "--num-episodes", "1"])
    assert json.loads(Path("out/meta/origin.json").read_text())["round"] == 1


def test_runs_without_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(Path("run"), rounds=0)
    assert "wmpo collect" in refused(capsys, "export", "run", "--to", "out")
    assert "wmpo run" in refused(capsys, "export", "run", "--to", "out", "--what", "imagined")
    assert "no run" in refused(capsys, "export", ".", "--to", "out")
    assert not Path("out").exists() and not list(Path().glob(".*"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "import SOURCE"),
        (["improt"], "import"),
        (["import"], "PATH"),
        (["import", "nothing", "--to", "x"], "nothing"),
        (["import", "source", "--to", "x"], "steps/action/world_vector"),
        (["import", "source", "--to", "x", "--image-size", "0"], "--image-size"),
        (["import", "source", "--to", "x", "--fps", "-3"], "--fps"),
        (["import", "source", "--to", "source", "--action", foreign.RLDS_ACTION, "--fps", "3"], "--to"),
        (["import", "source", "--to", "x", "--labels", "a.csv", "--action", foreign.RLDS_ACTION, "--fps=3"], "a.csv"),
        (["inspect", "nothing"], "nothing"),
        (["export", "run", "--to", "x", "--what", "dreams"], "imagined"),
        (["export", "run", "--to", "x", "--num-episodes", "0"], "--num-episodes"),
        (["export", "run", "--to", "x", "--temperature", "nan"], "--temperature"),
    ],
)  # fmt: skip
def test_wrong_input_is_explained(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.rlds(Path("source"))
    assert says in refused(capsys, *args)


def test_a_target_that_cannot_be_written_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    foreign.rlds(Path("source"))
    Path("file").write_text("")
    args = ["--fps", "3", "--action", foreign.RLDS_ACTION]
    assert "file" in refused(capsys, "import", "source", "--to", "file/new", *args)
