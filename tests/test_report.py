"""The report: made from a folder of plain files, written here by hand, so that it depends on no other part."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from wmpo import report
from wmpo.report.headline import trust, verdict
from wmpo.report.reading import read_run
from wmpo.report.render import render
from wmpo.report.video import side_by_side, strip, write_video

STAGES = ("demos", "sft", "collect", "tokenizer", "world-model", "reward", "clone", "improve", "evaluate")
NASTY = "<script>alert('push & pull')</script>"


def moving_dot(length: int, size: int = 24, shift: int = 0) -> np.ndarray:
    """A video of a block that a dot pushes to the right."""
    frames = np.full((length, size, size, 3), (214, 206, 190), dtype=np.uint8)
    for i, frame in enumerate(frames):
        x = int(i * (size - 10) / max(length - 1, 1)) + shift
        frame[size // 2 : size // 2 + 5, x + 4 : x + 9] = (180, 60, 40)
        frame[size // 2 + 1 : size // 2 + 4, x : x + 3] = (40, 60, 70)
    return frames


def outcome(success: float, n: int = 256, **more: Any) -> dict[str, Any]:
    half = 1.96 * math.sqrt(success * (1 - success) / n)
    return {
        "success": success,
        "n": n,
        "interval": [success - half, success + half],
        "mean_success_steps": 41.5,
        **more,
    }


def audit(iteration: int, real: float, imagined: float, j: float, verdict: str = "goes on") -> dict[str, Any]:
    interval = [j - 0.3, min(j + 0.3, 1.0)]
    return {
        "iteration": iteration, "real": real, "imagined": imagined, "j": j, "j_interval": interval, "n": 16,
        "verdict": verdict,
    }  # fmt: skip


def results(points: float = 15.6, half: float = 8.2) -> dict[str, Any]:
    difference = {"points": points, "interval": [points - half, points + half]}
    rates = {"tpr": 0.95, "fpr": 0.04, "j": 0.91, "f1": 0.955, "n": 60, "positives": 27, "j_interval": [0.8, 0.98]}
    curve = {"roc": [[0, 0], [0.04, 0.95], [0.3, 0.99], [1, 1]], "reliability": [[0.1, 0.06, 30], [0.9, 0.93, 30]]}
    worse = {"tpr": 0.82, "fpr": 0.13, "j": 0.69, "f1": 0.83, "j_interval": [0.5, 0.83]}
    other = {"roc": [[0, 0], [0.05, 0.6], [0.13, 0.82], [1, 1]], "reliability": [[0.1, 0.2, 35], [0.9, 0.81, 25]]}
    base, best = outcome(0.355), outcome(0.355 + points / 100, decoding="T=0.7")
    return {
        "base": {"greedy": base, "sampled": outcome(0.31), "best": base | {"decoding": "greedy"}},
        "improved": {"greedy": outcome(0.48), "sampled": outcome(0.47), "best": best},
        "difference": {"greedy": difference, "sampled": {"points": 16.0, "interval": [8, 24]}, "best": difference},
        "imagined": {"base": 0.34, "improved": 0.71},
        "world_model": {
            "distance": [0.031 + 0.0016 * k for k in range(10)], "tokenizer_distance": 0.036, "ratio_last": 1.26,
            "stopped": "held-out distance did not fall in 3 checks",
        },
        "reward": {"threshold": 0.62, "real": rates | curve, "imagined": rates | worse | other},
        "audits": [audit(0, 0.33, 0.36, 0.7), audit(8, 0.48, 0.55, 0.61), audit(16, 0.44, 0.81, -0.12, "parted: stop")],
        "stopped": "imagined and real success parted at iteration 16",
        "kept_iteration": 8,
        "real_episodes": {"demonstrations": 24},
        "seconds": {stage: 20.0 * (i + 1) for i, stage in enumerate(STAGES)},
        "throughput": {
            "real_steps_per_second": 180.0, "imagined_steps_per_second": 432.0, "ratio": 2.4,
            "world_model_frames_per_second": 610.0,
            "share": {"policy": 0.14, "world_model": 0.55, "decode": 0.22, "reward": 0.09},
        },
        "seed": 0, "commit": "abc1234", "config": {},
    }  # fmt: skip


def metrics(stage: str) -> list[dict[str, Any]]:
    if stage == "improve":
        return [
            {
                "iteration": i, "imagined_success": 0.34 + 0.028 * i + 0.02 * math.sin(3 * i), "mean_length": 60 - i,
                "mixed_groups": 40 + i % 5, "kl": 0.002 + 0.0003 * i, "clip_fraction": 0.05 + 0.002 * i,
                "entropy": 2.1 - 0.03 * i, "seconds": 14.0 + i % 3,
            }
            for i in range(17)
        ]  # fmt: skip
    rows: list[dict[str, Any]] = [{"step": s, "loss": 0.1 + 2 * math.exp(-s / 200)} for s in range(0, 1001, 25)]
    if stage == "world-model":
        for step in (250, 500, 750, 1000):
            distance = [0.03 + 20 / (step + 400) * 0.01 * k for k in range(1, 11)]
            rows.append({"step": step, "distance": distance, "tokenizer_distance": 0.036})
    return rows


WARNED = audit(16, 0.62, 0.7, 0.4) | {"warning": "the verdicts may be chance; align longer"}

FEW_FAILED = audit(16, 0.97, 0.9, -0.1) | {"warning": "the verdicts may be chance: only 1 of 32 episodes failed"}


def write_second_round(path: Path) -> None:
    """To a finished run: two rounds of 16 iterations, the second one's figures unlike the first one's."""
    config = json.loads((path / "config.json").read_text())
    config["config"] |= {"num_rounds": 2, "num_iterations": 16}
    (path / "config.json").write_text(json.dumps(config))
    figures = {
        "collect": {"episodes": 42, "success": 0.625}, "world-model": {"ratio_last": 1.07},
        "reward": {"real": {"f1": 0.91}, "imagined": {"j": 0.44}}, "clone": {"successes": 24},
        "improve": {"audits": [FEW_FAILED, WARNED], "guards": {"verify": {"n": 32, "dropped": 5, "rightly": 3}}},
    }  # fmt: skip
    (path / "round-2/stages").mkdir(parents=True)
    for stage, summary in figures.items():
        (path / f"round-2/stages/{stage}.json").write_text(json.dumps({"seconds": 100.0, **summary}))
    write_lines(path / "round-2/metrics/improve.jsonl", metrics("improve")[1:])


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(path: Path, *, stages: int = len(STAGES), size: int = 24) -> Path:
    """A run's folder in which the first ``stages`` stages are complete."""
    path.mkdir(parents=True)
    env = {"task": "coffee-push-v3", "instruction": NASTY, "camera": {"distance": 0.82, "lookat": [0, 0.66, 0.06]}}
    config = {
        "recipe": "quickstart", "seed": 0, "commit": "abc1234", "version": "0.1.0", "machine": "2 cores, 8 GB",
        "config": {"env": env, "improve": {"group_size": 8, "clip_low": 0.2, "clip_high": 0.28, "note": "a < b"}},
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    for stage in STAGES[:stages]:
        (path / "stages").mkdir(exist_ok=True)
        (path / "stages" / f"{stage}.json").write_text(json.dumps({"seconds": 33.5}))
        if stage in ("sft", "tokenizer", "world-model", "reward", "improve"):
            write_lines(path / "metrics" / f"{stage}.jsonl", metrics(stage))
    counts = {"demonstrations": 24, "collection": 128, "validation": 32, "audit": 48, "test": 512}
    episodes = [
        {"purpose": purpose, "policy": "base", "temperature": 1.0, "seed": 0, "start": i, "episode": i,
         "success": purpose == "demonstrations" or i % 3 == 0, "steps": 40 + i % 30}
        for purpose, count in counts.items() for i in range(count)
    ]  # fmt: skip
    if stages:
        write_lines(path / "ledger.jsonl", episodes)
    if stages == len(STAGES):
        (path / "results.json").write_text(json.dumps(results()))
        write_videos(path / "videos", size)
    return path


def write_videos(folder: Path, size: int) -> None:
    real, imagined = moving_dot(30, size), moving_dot(30, size, shift=1)
    index = [
        {"file": "replay-0.mp4", "section": "replay", "caption": "a real success: the dream agrees"},
        {"file": "replay-1.mp4", "section": "replay", "caption": "a real failure: the dream sees a success"},
        {"file": "base-0.mp4", "section": "before-after", "caption": "base: fails, the object slips"},
        {"file": "improved-0.mp4", "section": "before-after", "caption": f"improved: {NASTY}"},
        {"file": "dream-0.mp4", "section": "imagined", "caption": "imagined at iteration 8"},
    ]
    for entry in index:
        pair = side_by_side(real, imagined) if entry["section"] == "replay" else real
        write_video(folder / entry["file"], pair, fps=10, scale=2)
    (folder / "index.json").write_text(json.dumps(index))
    strip([real, imagined], ["real", "imagined"], columns=8, scale=2).save(folder / "strip.png")


class Page(HTMLParser):
    """Collects what the tests ask for: visible text by section, elements, and what would be loaded from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: dict[str, str] = {"top": ""}
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.section = "top"
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        if tag == "section":
            self.section = values["id"] or ""
            self.text[self.section] = ""
        for name in ("src", "href", "xlink:href"):
            if not (values.get(name) or "#").startswith(("#", "data:")):
                self.loaded.append(values[name] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text[self.section] += data.replace("\u202f", " ").replace("\u00a0", " ")


def rendered(run: Path) -> Page:
    return Page(render(run).read_text())


def test_rounds_are_told_apart_and_added_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quickstart", stages=len(STAGES) - 1)
    write_second_round(run)
    page = rendered(run)
    assert "14 of 14 stages" not in page.text["top"] and "13 of 14 stages" in page.text["top"]
    assert page.text["audits"].count("may be chance") == 2 and page.text["audits"].count("align longer") == 1
    assert "Where there is a warning: align longer." in page.text["audits"], "the one before says no remedy"
    assert "verify" in page.text["audits"] and "5 of 32" in page.text["audits"] and "3 of 5" in page.text["audits"]
    assert "Guards" not in rendered(write_run(tmp_path / "unguarded")).text["audits"]
    for figure in ("42", "62.5 %", "1.07×", "0.91", "0.44", "24"):
        assert figure in page.text["rounds"]
    read = read_run(run)
    assert [row["iteration"] for row in read.metrics["improve"]][-1] == 32
    assert read.seconds["improve"] == 133.5 and read.audits == [FEW_FAILED, WARNED]
    assert "rounds" not in rendered(write_run(tmp_path / "single")).text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


def test_a_finished_run_is_told_whole(finished: Path) -> None:
    page = rendered(finished)
    assert not page.open and page.loaded == [], "well-formed, and nothing comes from elsewhere"
    assert "35.5 % → 51.1 %" in page.text["top"] and "+15.6 points" in page.text["top"]
    assert "+7.4 to +23.8" in page.text["top"]
    assert "152 episodes" in page.text["top"], "24 demonstrations + 128 collected"
    assert "is better in the real environment" in page.text["top"]
    assert "The dream lied at iteration 16" in page.text["top"]
    assert "greedy → T=0.7" in page.text["results"]
    assert "parted: stop" in page.text["audits"] and "8 · kept" in page.text["audits"]
    assert "did not fall in 3 checks" in page.text["dream"]
    assert "0.91" in page.text["classifier"] and "0.620" in page.text["classifier"]
    assert "744" in page.text["episodes"] and "collection" in page.text["episodes"]
    assert "env.camera.distance" in page.text["config"] and "abc1234" in page.text["config"]
    assert page.tags.count("video") == 5 and page.tags.count("img") == 1
    assert page.tags.count("svg") >= 8
    missing = [anchor for anchor, text in page.text.items() if "Stage" in text]
    assert missing == ["fidelity"] and "wmpo fidelity" in page.text["fidelity"], "which is no part of a run"


def test_the_report_needs_no_other_part_of_the_package() -> None:
    folder = Path(report.__file__).parent
    for name in ("render", "reading", "headline", "page", "plots", "style", "video", "comparison", "comparison_page"):
        imported = re.findall(r"(?:from|import) (wmpo\S*)", (folder / f"{name}.py").read_text())
        assert all(module.startswith("wmpo.report") for module in imported), name


def test_text_of_a_run_is_never_markup(finished: Path) -> None:
    page = rendered(finished)
    assert page.tags.count("script") == 1, "the page's own"
    assert NASTY in page.text["config"] and NASTY in page.text["videos"]
    assert "a < b" in page.text["config"]


def test_ids_are_unique_and_a_second_rendering_is_the_same(finished: Path) -> None:
    first = render(finished).read_bytes()
    ids = re.findall(rb'\bid="([^"]+)"', first)
    assert len(ids) == len(set(ids)), "plots that share an id draw each other's markers"
    assert render(finished).read_bytes() == first
    assert not list(finished.glob(".*")), "no temporary file stays"


@pytest.mark.parametrize("stages", (0, 2, 4, 7, 8))
def test_an_unfinished_run_says_what_is_missing(tmp_path: Path, stages: int) -> None:
    page = rendered(write_run(tmp_path / "mine", stages=stages))
    assert f"{stages} of 9 stages" in page.text["top"]
    command = STAGES[stages] if STAGES[stages] != "tokenizer" else "world-model"
    assert f"wmpo {command} quickstart --name mine" in page.text["top"]
    assert "wmpo evaluate quickstart --name mine" in page.text["results"]
    assert ("wmpo improve quickstart" in page.text["learning"]) == (stages < 8)
    assert ("wmpo world-model quickstart" in page.text["dream"]) == (stages < 5)


def test_an_empty_folder_and_no_folder(tmp_path: Path) -> None:
    assert "0 of 9 stages" in rendered(tmp_path).text["top"]
    with pytest.raises(ValueError, match="not the folder of a run"):
        render(tmp_path / "nowhere")


def test_torn_and_repeated_lines_are_not_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quickstart", stages=8)
    for path in (run / "ledger.jsonl", run / "metrics" / "improve.jsonl"):
        text = path.read_text()
        again = text.splitlines()[-1] + "\n" if path.name == "ledger.jsonl" else ""
        path.write_text(text + again + text.splitlines()[-1][:31])
    page = rendered(run)
    assert "744" in page.text["episodes"] and "1 more were identical repetitions" in page.text["episodes"]
    assert "Stage" not in page.text["learning"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quickstart", stages=2)
    (run / "stages" / "sft.json").write_text('{"seconds": ')
    with pytest.raises(ValueError, match=r"sft\.json is damaged"):
        render(run)


def test_figures_that_do_not_exist_become_dashes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quickstart")
    found = results()
    found["improved"]["greedy"]["mean_success_steps"] = None
    found["audits"][0] |= {"j": math.nan, "j_interval": None}
    found["reward"]["imagined"] |= {"tpr": math.nan, "j": None, "j_interval": None, "roc": None}
    del found["throughput"], found["world_model"]["stopped"]
    (run / "results.json").write_text(json.dumps(found))
    (run / "videos" / "base-0.mp4").unlink()
    page = rendered(run)
    assert "42 → –" in page.text["results"] and "–" in page.text["audits"]
    assert not re.search(r"\b(nan|None(?! of))\b", " ".join(page.text.values()))
    assert "base-0.mp4 is missing" in page.text["videos"]


@pytest.mark.parametrize(
    ("points", "half", "tone", "words"),
    [
        (15.6, 8.2, "good", "is better in the real environment"),
        (3.1, 8.2, "unsure", "zero lies inside the interval"),
        (-2.0, 8.2, "unsure", "does not show an improvement"),
        (-12.5, 8.2, "bad", "12.5 points fewer"),
    ],
)
def test_the_verdict_follows_the_interval(points: float, half: float, tone: str, words: str) -> None:
    found, sentence = verdict(results(points, half))
    assert found == tone and words in sentence


def test_the_verdict_says_when_the_base_policy_was_kept() -> None:
    solved = {"base": 21, "improved": 14, "n": 32}
    tone, sentence = verdict(results(0.0) | {"handed_in": "base", "validation": solved})
    assert tone == "unsure" and "of 32 validation starts the policy from imagination solves 14" in sentence
    tone, sentence = verdict(results(0.0) | {"kept_iteration": 0})
    assert tone == "unsure" and "base policy was kept" in sentence


def test_what_audits_say_about_the_dream() -> None:
    assert trust([])[0] == "unsure"
    assert trust([audit(4, 0.4, 0.45, 0.6), audit(8, 0.5, 0.5, 0.7)])[0] == "good"
    assert "interval still reaches zero" in trust([audit(4, 0.4, 0.45, 0.2)])[1]
    assert "too optimistic at iteration 8" in trust([audit(4, 0.4, 0.45, 0.6), audit(8, 0.3, 0.7, 0.4)])[1]
    tone, sentence = trust([audit(4, 0.4, 0.5, -0.1), audit(8, 0.3, 0.7, 0.0)])
    assert tone == "bad" and "iteration 4 and 8" in sentence
    assert "iteration 4:" in trust([audit(4, 0.4, 0.5, -0.1), audit(4, 0.4, 0.6, -0.1)])[1]
    tone, sentence = trust([audit(4, 0.4, 0.45, 0.6), audit(8, 0.97, 0.84, -0.16)])
    assert tone == "unsure" and "At iteration 8" in sentence and "lied" not in sentence, "hardly any failure to tell"
    tone, sentence = trust([audit(12, 0.97, 0.97, -0.03)])
    assert tone == "unsure" and "lied" not in sentence, "as many successes as there were"
    tone, sentence = trust([audit(12, 0.5, 0.4, -0.03)])
    assert tone == "bad" and "learns there is chance" in sentence, "half of them failed"


def test_videos_play_and_keep_their_frames(tmp_path: Path) -> None:
    frames = moving_dot(12, size=15)  # 15 x 1 is odd: H.264 wants even sides
    write_video(tmp_path / "new" / "dot.mp4", frames, fps=10, scale=1)
    write_video(tmp_path / "new" / "dot.mp4", frames, fps=10, scale=5)
    with av.open(str(tmp_path / "new" / "dot.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 12 and decoded[0].shape == (76, 76, 3)
    centres = np.stack(decoded)[:, 2:75:5, 2:75:5].astype(int)
    assert np.abs(centres - frames).mean() < 6, "each pixel became a 5 x 5 block"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["dot.mp4"], "no temporary file stays"


def test_a_video_that_is_none_is_refused(tmp_path: Path) -> None:
    for bad in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            write_video(tmp_path / "x.mp4", bad, fps=10)
    assert not list(tmp_path.iterdir())


def test_side_by_side_waits_for_the_longer_one() -> None:
    left, right = moving_dot(5), moving_dot(9)
    both = side_by_side(left, right)
    assert both.shape == (9, 24, 49, 3)
    assert (
        (both[:5, :, :24] == left).all() and (both[5:, :, :24] == left[-1]).all() and (both[:, :, 25:] == right).all()
    )
    with pytest.raises(ValueError, match="heights 24 and 16"):
        side_by_side(left, moving_dot(5, size=16))


def test_a_strip_shows_equally_spaced_frames() -> None:
    real, imagined = moving_dot(21), moving_dot(11)
    picture = np.asarray(strip([real, imagined], ["real", "imagined"], columns=5, scale=2))
    assert picture.shape[0] == 2 * 48 + 4
    tops = picture[:48, -(5 * 48 + 4 * 4) :, :3]
    for column, index in enumerate((0, 5, 10, 15, 20)):
        assert (tops[::2, column * 52 : column * 52 + 48 : 2] == real[index]).all()
    assert (picture[52::2, -48::2, :3] == imagined[-1]).all()
    with pytest.raises(ValueError, match="2 rows, 1 labels"):
        strip([real, imagined], ["real"], columns=5)
