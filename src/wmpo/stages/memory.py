"""Whether stages fit into the GPU, asked before anything is loaded: what ``wmpo plan`` counts against what is free."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection

import torch

from wmpo.config import Experiment
from wmpo.execution.backend import ExecutionConfig
from wmpo.stages.plan import Hardware, plan, remedy


def check_memory(experiment: Experiment, stages: Collection[str]) -> None:
    """Raises ValueError, naming stage, need and flags, when a stage's weights, gradients and moments alone exceed what
    is free of this process's GPU. Activations are counted too high (attention is taken as kept whole), so with them it
    is only told. Networks that cannot be counted are not looked at, nor are Ray's actors: which GPU each will get, and
    what is free there, is not known to this process.
    """
    if not torch.cuda.is_available() or experiment.execution.backend == "ray":
        return
    with torch.random.fork_rng(devices=[]):  # networks are built to be counted, which must change no later draw
        try:
            found = plan(experiment, _hardware(experiment.execution))
        except ValueError:
            return
    free = torch.cuda.mem_get_info()[0]
    for stage in found.stages:
        if stage.name not in stages or stage.memory.total <= free:
            continue
        least, helps = stage.memory.total - stage.memory.activations, remedy(stage.name)
        if least > free:
            raise ValueError(
                f"{stage.name} needs {least / 1e9:.1f} GB on a GPU beside its activations, as wmpo plan counts, but "
                f"{free / 1e9:.1f} GB are free; what helps: {helps}"
            )
        print(
            f"{stage.name} may need {stage.memory.total / 1e9:.1f} GB on a GPU, as wmpo plan counts, and "
            f"{free / 1e9:.1f} GB are free; if memory runs out: {helps}",
            file=sys.stderr,
        )


def _hardware(execution: ExecutionConfig) -> Hardware:
    """The GPUs of this run."""
    if execution.backend == "torchrun":
        return Hardware(gpus=int(os.environ["WORLD_SIZE"]), gpus_per_machine=int(os.environ["LOCAL_WORLD_SIZE"]))
    gpus = execution.size if execution.backend == "processes" else 1
    return Hardware(gpus=gpus, gpus_per_machine=gpus)
