"""A robot that is known from recorded episodes only: nothing can be played, so there is no environment to build."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wmpo.data.episode import check_views
from wmpo.envs.simulator import check_image_size
from wmpo.envs.tasks import check_different
from wmpo.envs.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class RecordedConfig:
    """What a run must know of such a robot. What is left open is read from the demonstrations
    (:func:`wmpo.stages.recorded.described`)."""

    task: str = ""
    "The task as a sentence; empty: that of the first demonstration."
    more_tasks: tuple[str, ...] = ()
    "Further sentences, which the success classifier tells apart then; without any it goes by the pictures alone."
    image_size: int = 0
    "Height and width of one camera's picture in pixels; 0: as recorded."
    views: tuple[str, ...] = ()
    "Names of the cameras in their order; empty: as recorded."
    action_dim: int = 0
    "A; 0: as recorded."
    rate: int = 0
    "Actions per second; 0: as recorded."

    @property
    def is_known(self) -> bool:
        return bool(self.task and self.image_size and self.views and self.action_dim and self.rate)

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task, *self.more_tasks)

    def with_task(self, task: str) -> RecordedConfig:
        return replace(self, task=task, more_tasks=())

    @property
    def instructions(self) -> tuple[str, ...]:
        return self.tasks

    def workspace(self) -> Workspace:
        """Recorded actions are those that were executed."""
        return Workspace.unlimited(self.action_dim)

    def validate(self) -> None:
        """Raises ValueError for what no recorded robot has, and before it is known."""
        if not self.is_known:
            raise ValueError("the robot is not known yet; name its datasets: --demos.recorded and --collect.recorded")
        check_different(self.tasks)
        check_image_size(self.image_size)
        check_views(self.views)
        for name, value in (("action_dim", self.action_dim), ("rate", self.rate)):
            if value < 1:
                raise ValueError(f"env.{name} must be at least 1, not {value}")
