"""``wmpo plan RECIPE --gpus N``: memory, operations and hours of a run that is not begun yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from wmpo.cli_common import Shared
from wmpo.recipes import recipe
from wmpo.stages.plan import Hardware, describe, plan
from wmpo.stages.recorded import described


@dataclass(frozen=True, kw_only=True)
class _Settings(Shared):
    hardware: Annotated[Hardware, tyro.conf.arg(name="")] = field(default_factory=Hardware)
    "What the run would be given."


def main(name: str, rest: list[str]) -> None:
    settings = tyro.cli(_Settings, args=rest, default=_Settings(experiment=recipe(name)), prog=f"wmpo plan {name}")
    print(describe(plan(described(settings.experiment), settings.hardware), settings.hardware))
