"""Stages whose training is shared by several processes. In a file of its own: they start their own team, and a process
is in one at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from finished_run import finished_run
from test_divided import FIT, assert_close

from wmpo.checkpoint import load_tensors
from wmpo.execution.backend import ExecutionConfig
from wmpo.stages import learn
from wmpo.stages.job import Job


@pytest.mark.slow
def test_whole_stages_train_on_two_ranks(tmp_path: Path) -> None:
    """Other processes build networks and data from the run's folder."""
    for name in ("local", "processes"):
        job = finished_run(tmp_path / name)
        job.round = 2
        for stage in ("demos", "sft", "collect", "tokenizer", "world-model"):
            job.place(stage).complete(stage, 1.0, {"begins_with": 2} if stage == "collect" else {})
        gentle = replace(FIT, num_steps=3, batch_size=4, micro_batch=1)
        small = job.experiment
        job.experiment = replace(
            small,
            execution=ExecutionConfig(backend=name, processes=2),  # type: ignore[arg-type]
            collect=replace(small.collect, num_episodes=3, num_held_out=2, every_round=True),
            clone=replace(small.clone, sft=replace(small.clone.sft, fit=gentle)),
            world_model_training=replace(small.world_model_training, fit=gentle, refresh_share=1.0),
            reward_training=replace(small.reward_training, fit=gentle),
        )
        run(job)
    models = [f"round-2/models/{name}.safetensors" for name in ("cloned", "world_model", "reward")]
    for path in models:
        one, two = (load_tensors(tmp_path / name / path)[0] for name in ("local", "processes"))
        assert_close(two, one, atol=1e-5)
    for stage in ("clone", "world-model", "reward"):
        lines = [(tmp_path / n / f"round-2/metrics/{stage}.jsonl").read_text() for n in ("local", "processes")]
        assert lines[0].count("loss") == lines[1].count("loss") == 1, "only rank 0 writes"


def run(job: Job) -> None:
    learn.clone_successes(job)
    learn.world_model(job)
    learn.reward(job)
