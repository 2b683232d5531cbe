"""Pretraining over many tasks, as small as it gets: it records, trains, and goes on from the weights it left."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from wmpo.checkpoint import load_tensors
from wmpo.config import Experiment, PretrainConfig
from wmpo.recipes import recipe
from wmpo.report.run import RunFolder
from wmpo.stages import pretrain as stage
from wmpo.stages.job import Job
from wmpo.stages.pretrain import pretrain
from wmpo.stages.pretrained import check_pretrained
from wmpo.train.fit import FitConfig
from wmpo.train.tokenizer import TokenizerTraining

FIT = FitConfig(num_steps=2, batch_size=4, checkpoint_seconds=0.0)


def small(pretrained: str, learning_rate: float) -> Experiment:
    tiny = recipe("tiny")
    fit = dataclasses.replace(FIT, learning_rate=learning_rate)
    training = dataclasses.replace(tiny.world_model_training, fit=fit, check_every=2)
    return dataclasses.replace(
        tiny,
        world_model=dataclasses.replace(tiny.world_model, pretrained=pretrained),
        pretrain=PretrainConfig(
            num_episodes=2, num_steps=8, tokenizer=TokenizerTraining(fit=FIT), world_model=training
        ),
    )  # fmt: skip


def test_pretrained_weights_fit_a_run_and_pretraining_goes_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "all_tasks", lambda: ["reach-v3", "coffee-button-v3", "drawer-open-v3"])
    with Job(RunFolder(tmp_path / "first"), small("none", 1e-3), 0, quiet=True) as job:
        pretrain(job)
    path = tmp_path / "first" / "models" / "pretrained.safetensors"
    made, header = load_tensors(path)
    assert header["tasks"] == ["coffee-button-v3", "reach-v3"], "the excluded task is never played"
    going_on = small(str(path), 0.0)
    check_pretrained(going_on)
    with Job(RunFolder(tmp_path / "second"), going_on, 0, quiet=True) as job:
        pretrain(job)
    again, about = load_tensors(tmp_path / "second" / "models" / "pretrained.safetensors")
    recipe_of = "2 episodes of play of 8 actions in each of 2 tasks, 2 steps of 4"
    assert header["made"].count(recipe_of) == 1 and about["made"].startswith(
        header["made"] + ". Then wmpo pretrain at "
    )
    assert all(made[name].equal(again[name]) for name in made), "it goes on from the weights that are named"
    assert not (tmp_path / "second" / "models" / "tokenizer.safetensors").exists(), "with their tokenizer"


@pytest.mark.parametrize(
    ("pretrained", "excluded", "message"),
    [
        ("meta-world", (), "was pretrained with other settings"),
        ("nothing", (), "'nothing' is neither a file nor one of"),
        ("none", ("drawer-opn-v3",), "unknown Meta-World task 'drawer-opn-v3'; did you mean drawer-open-v3"),
    ],
)
def test_what_cannot_be_pretrained_is_refused_before_anything_is_recorded(
    pretrained: str, excluded: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    experiment = small(pretrained, 1e-3)
    experiment = dataclasses.replace(experiment, pretrain=dataclasses.replace(experiment.pretrain, excluded=excluded))
    with Job(RunFolder(tmp_path), experiment, 0, quiet=True) as job, pytest.raises(ValueError, match=message):
        pretrain(job)
    assert not (tmp_path / "data").exists()
