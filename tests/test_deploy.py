"""One call loads a policy, one call acts: from a run, from a file, and without a simulator."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import SENTENCE, finished_run
from PIL import Image

import wmpo
from wmpo.checkpoint import write_json
from wmpo.cli import main
from wmpo.data.episode import Episode
from wmpo.data.lerobot import read_episodes
from wmpo.rollout.run import run_episodes
from wmpo.stages import models
from wmpo.stages.guards import imagined_starts
from wmpo.stages.job import Job, existing_job
from wmpo.stages.rounds import collected_datasets, imagined_env, policy_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deploy") / "run"
    finished_run(path)
    return path


def played(job: Job) -> list[Episode]:
    return [episode for root in collected_datasets(job) for episode in read_episodes(root)]


def picture(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_it_acts_as_in_the_rollouts(run: Path) -> None:
    job = finished_run(run.parent / "again")
    starts = imagined_starts(played(job))
    rollouts = run_episodes(imagined_env(job, 2), policy_of(job, 3), starts, temperature=0.0, seed=0)
    policy = wmpo.load_policy(job.root.path)
    codec = policy_of(job, 3).codec
    assert starts.frames is not None and len(starts) > 1
    for i in range(len(starts)):
        found = policy.act(starts.frames[i, 0].numpy(), starts.instruction[i])
        assert found.shape == (4, 4) and found.dtype == np.float32
        assert np.array_equal(found, codec.decode(rollouts.tokens[i, 0]).numpy())
        assert ((found >= policy.low) & (found <= policy.high)).all()


def test_the_last_complete_round_or_any_file(run: Path) -> None:
    image = picture(0)
    acts = {
        name: wmpo.load_policy(run / name).act(image)
        for name in (
            "",
            "round-2/models/improved.safetensors",
            "models/improved.safetensors",
            "models/base.safetensors",
        )
    }
    latest, named, first, base = acts.values()
    assert np.array_equal(latest, named)
    assert not np.array_equal(latest, first) and not np.array_equal(first, base)


def test_the_policy_that_evaluate_handed_in(run: Path) -> None:
    image = picture(0)
    base = wmpo.load_policy(run / "models/base.safetensors").act(image)
    latest = wmpo.load_policy(run / "round-2/models/improved.safetensors").act(image)
    for handed_in, expected in (("base", base), ("improved", latest)):
        existing_job(run).root.complete("evaluate", 1.0, {"handed_in": handed_in})
        assert np.array_equal(wmpo.load_policy(run).act(image), expected)
    (run / "stages" / "evaluate.json").unlink()


def test_sentences_and_pictures(run: Path) -> None:
    policy, image = wmpo.load_policy(str(run)), picture(1)
    assert policy.instructions == (SENTENCE,) and np.array_equal(policy.act(image), policy.act(image, SENTENCE))
    assert not all(np.array_equal(policy.act(picture(i), "other words"), policy.act(picture(i))) for i in range(8))
    large = picture(2, 48, 60)
    small = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(policy.act(large), policy.act(small))
    assert np.array_equal(policy.act(image[:, ::-1]), policy.act(image[:, ::-1].copy()))  # a view with other strides
    before = image.copy()
    policy.act(image)
    assert np.array_equal(before, image)


@pytest.mark.parametrize(
    "image",
    [picture(0) / 255, picture(0)[..., 0], picture(0)[None], picture(0)[:0], np.zeros((3, 32, 32), "u1")],
    ids=["float", "grey", "batch", "empty", "channels first"],
)
def test_what_is_no_picture_is_refused(run: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[h, w, 3\]"):
        wmpo.load_policy(run).act(image)


def test_what_holds_no_policy_is_refused(run: Path, tmp_path: Path) -> None:
    finished_run(tmp_path / "young", rounds=0)
    (tmp_path / "text.safetensors").write_text("no weights")
    for path, says in (
        (tmp_path / "young", "finish improve"),
        (tmp_path, "no run"),
        (tmp_path / "nothing.safetensors", "does not exist"),
        (tmp_path / "text.safetensors", "damaged"),
        (run / "models/reward.safetensors", "not a policy"),
    ):
        with pytest.raises(ValueError, match=says):
            wmpo.load_policy(path)
    assert wmpo.load_policy(tmp_path / "young/models/base.safetensors").act(picture(0)).shape == (4, 4)


def test_an_exported_folder_is_all_that_is_needed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results = {who: {"best": {"success": rate, "n": 64, "decoding": "greedy"}}
               for who, rate in (("base", 0.25), ("improved", 0.75))}  # fmt: skip
    shutil.copytree(run, "copy")
    write_json(Path("copy/results.json"), results)
    main(["data", "export", "copy", "--to", "mine", "--what", "policy"])
    assert capsys.readouterr().out == 'mine: wmpo.load_policy("mine").act(image)\n'
    assert sorted(path.name for path in Path("mine").iterdir()) == ["README.md", "policy.safetensors"]
    Path("mine").rename("moved")
    assert np.array_equal(wmpo.load_policy("moved").act(picture(1)), wmpo.load_policy(run).act(picture(1)))
    card = Path("moved/README.md").read_text()
    assert "real success on 64 test starts: 75.0 % (greedy); base 25.0 % (greedy)" in card and "run copy" in card
    assert "no action is below -1, -2, 0, 5 or above 1, 2, 0.5, 6" in card
    for target in ("moved", "moved/README.md"):
        with pytest.raises(SystemExit):
            main(["data", "export", "copy", "--to", target, "--what", "policy"])
        assert "is not an empty folder; choose another --to" in capsys.readouterr().err


def test_no_simulator_is_needed(run: Path) -> None:
    program = f"""
import sys
for name in ("metaworld", "mujoco", "gymnasium", "h5py"):
    sys.modules[name] = None  # as if it were not installed
import numpy, wmpo
print(wmpo.load_policy({str(run)!r}).act(numpy.zeros((32, 32, 3), dtype="uint8")).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(4, 4)", done.stderr


def test_the_example_of_an_own_policy(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples/own_policy.py"
    assert len(path.read_text().splitlines()) <= 50
    runpy.run_path(str(path), run_name="__main__")
    first, second = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[:2])
    assert second < first


def test_an_own_policy_plays_in_the_dream(run: Path) -> None:
    example = runpy.run_path(str(ROOT / "examples/own_policy.py"))
    job = finished_run(run.parent / "own")
    codec = models.load_policy(job.root, "base").codec
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, codec.num_tokens * codec.num_bins))
    policy = example["OwnPolicy"](network, codec)
    rollouts = run_episodes(imagined_env(job, 2), policy, imagined_starts(played(job)), temperature=1.0, seed=0)
    assert (rollouts.num_steps > 0).all()
