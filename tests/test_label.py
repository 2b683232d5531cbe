"""``wmpo label``: what is shown, what is written and when, and the page itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import foreign
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from commands import refused
from finished_run import recorded
from PIL import Image
from test_serve import ask, frames

from wmpo.data.importing import Conversion, import_dataset
from wmpo.data.lerobot import append_episodes, read_episodes
from wmpo.data.source import Keys
from wmpo.recipes import tiny
from wmpo.serve.label import SHEET, WIDEST, Labelling, LabelServer, films
from wmpo.serve.messages import Refused
from wmpo.serve.recordings import Recordings
from wmpo.stages.job import open_job


@contextmanager
def serving(path: Path, file: Path) -> Iterator[LabelServer]:
    with LabelServer(path, file, Keys(), 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three episodes of 4, 5 and 6 actions."""
    append_episodes(tmp_path / "mine", [recorded(i, 4 + i, size=8) for i in range(3)], fps=20)
    return tmp_path / "mine"


def test_labels_are_on_disk_at_once_and_import_reads_them(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    with serving(dataset, file) as server:
        assert not file.exists(), "looking writes nothing"
        for episode, success, when in ((0, 1, 3), (1, 1, 0), (2, 1, 2)):
            said = ask(server, "/api/mark", {"episode": episode, "success": success, "solved_at": when}).json
        assert said["marks"][:2] == [{"success": True, "solved_at": 3}, {"success": True, "solved_at": None}]
        assert file.read_text() == "episode,success,solved_at\n0,1,3\n1,1,\n2,1,2\n"
        assert ask(server, "/api/undo", {}).json["undone"] == 2
        assert file.read_text().endswith("\n1,1,\n")
    with serving(dataset, file) as server:  # begun again
        assert ask(server, "/api/progress", {}).json["marks"][2] is None
        ask(server, "/api/mark", {"episode": 2, "success": 0, "solved_at": 5})
        ask(server, "/api/mark", {"episode": 0, "success": 0, "solved_at": 0})  # changed one's mind
        assert ask(server, "/api/undo", {}).json["undone"] == 0
        ask(server, "/api/mark", {"episode": 0, "success": 1, "solved_at": 3})
    assert before == {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    import_dataset(dataset, tmp_path / "new", Keys(), Conversion(labels=str(file)))
    assert [episode.solved_at for episode in read_episodes(tmp_path / "new")] == [3, 5, -1]


def test_frames_are_those_of_the_episode(dataset: Path, tmp_path: Path) -> None:
    with serving(dataset, tmp_path / "labels.csv") as server:
        shown = ask(server, "/api/show", {"episode": 1}).json
        assert np.array_equal(frames(shown["films"][0]), recorded(1, 5, size=8).frames)
        assert shown["instruction"] == "press the button" and ask(server, "/").body.count(b"label.js") == 1
        ask(server, "/api/show", {"episode": 3}).refuses(404, "0..2")
        ask(server, "/api/mark", {"episode": 3, "success": 1, "solved_at": 0}).refuses(404, "0..2")
        ask(server, "/api/undo", {}).refuses(409, "no label")
        ask(server, "/api/progress", {}, Origin="http://evil.example").refuses(403)
        ask(server, "/run/meta/info.json").refuses(404)


def test_a_label_that_cannot_be_saved_is_said(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(dataset, tmp_path / "file/labels.csv") as server:
        ask(server, "/api/mark", {"episode": 0, "success": 1, "solved_at": 0}).refuses(507, "nothing was saved")
        assert ask(server, "/api/progress", {}).json["marks"] == [None] * 3


def test_large_pictures_become_smaller_and_come_in_pieces() -> None:
    found = films(np.zeros((52, 320, 480, 3), dtype=np.uint8))
    assert len(found) > 1 and sum(film.num_frames for film in found) == 52
    assert found[0].picture.startswith("data:image/jpeg") and found[0].num_frames * WIDEST * 320 / 480 <= SHEET


def test_any_order_and_any_format(tmp_path: Path) -> None:
    foreign.rlds(tmp_path / "rlds", (5, 4, 6))
    foreign.lerobot_v21(tmp_path / "old")
    for path, keys in ((tmp_path / "rlds", Keys(action=foreign.RLDS_ACTION)), (tmp_path / "old", Keys())):
        found = Recordings(path, keys)
        lengths = [len(found.episode(i).actions) for i in range(len(found))]
        assert len(lengths) == (3 if path.name == "rlds" else 2)
        assert [len(found.episode(i).actions) for i in reversed(range(len(found)))] == lengths[::-1]
        with pytest.raises(Refused, match="no episode"):
            found.episode(len(found))


def test_episodes_of_a_run_are_those_of_all_rounds(tmp_path: Path) -> None:
    job = open_job(tmp_path / "run", "tiny", tiny(), seed=0, quiet=True)
    for n in (1, 2):
        played = [recorded(10 * n + i, 8) for i in range(3)]
        append_episodes(job.folder_of(n).path / "data/collected", played, fps=job.fps)
    found = Labelling(tmp_path / "run", tmp_path / "labels.csv", Keys())
    numbers = [10 * n + i for n in (1, 2) for i in range(3)]
    for i in (*range(6), 4, 1, 3):
        assert np.array_equal(found.recordings.episode(i).frames, recorded(numbers[i], 8).frames), i
    assert found.progress().then.startswith(f"wmpo data export {tmp_path / 'run'} --to out; wmpo data import out ")


def test_wrong_input_is_explained(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("episode,success\n9,1\n")
    (tmp_path / "damaged.csv").write_text("episode,success\n0,maybe\n")
    assert "other.csv labels episodes [9]" in refused("label", dataset, "--to", "other.csv", cwd=tmp_path)
    assert "no label, as 3,1" in refused("label", dataset, "--to", "damaged.csv", cwd=tmp_path)
    assert "nowhere does not exist" in refused("label", "nowhere", cwd=tmp_path)
    assert "--port" in refused("label", dataset, "--port", "70000", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(dataset: Path, tmp_path: Path, width: int) -> None:
    browser, file = Browser(tmp_path / "profile"), tmp_path / "labels.csv"
    with serving(dataset, file) as server:
        try:
            browser.resize(width)
            browser.open(f"http://127.0.0.1:{server.server_port}/")
            when = "document.querySelector('#when')?.textContent"
            browser.until(f"{when} == 'step 4 of 4'")  # it has played to its end
            browser.press("ArrowLeft")
            browser.until(f"{when} == 'step 3 of 4'")
            browser.press("h")
            browser.until("document.querySelector('#where').textContent == 'episode 1'")
            browser.click("#failed")
            browser.until("document.querySelector('#where').textContent == 'episode 2'")
            assert file.read_text() == "episode,success,solved_at\n0,1,3\n1,0,\n"
            browser.press("u")
            browser.until("document.querySelector('#where').textContent == 'episode 1'")
            browser.press("n")
            browser.until(f"{when} == 'step 6 of 6'")
            browser.picture(tmp_path / f"label-{width}.png")
            browser.press("s")
            browser.until("document.querySelector('#where').textContent == 'episode 1'")  # the skipped one
            browser.until("document.querySelector('#sentence').textContent == 'press the button'")
            browser.press("s")
            browser.until("!document.querySelector('#done').hidden")
            assert file.read_text() == "episode,success,solved_at\n0,1,3\n2,1,\n1,1,\n"
            assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
            browser.picture(tmp_path / f"done-{width}.png")
            assert np.asarray(Image.open(tmp_path / f"done-{width}.png")).std() > 10 and not browser.errors
        finally:
            browser.close()
