"""As much of Ray as :mod:`wmpo.execution.ray_backend` uses, in this process: actors that can be told to die."""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable
from typing import Any


class RayTaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__("a long traceback of another process")
        self.cause = cause


class RayActorError(Exception):
    pass


class GetTimeoutError(Exception):
    pass


class Reference:
    """Of a result, or of what went wrong; values travel as bytes."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self._bytes, self.error = pickle.dumps(value), error

    def value(self) -> Any:
        if self.error is not None:
            raise self.error
        return pickle.loads(self._bytes)


class Actor:
    """Calls of a dead one end with RayActorError; it dies when it is to play once ``runs_left`` is 0."""

    def __init__(self, kind: type, options: dict[str, float]) -> None:
        self._object, self.options, self.dead, self.runs_left = kind(), options, False, -1

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(remote=lambda *arguments: self._call(name, arguments))

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Reference:
        if name in ("run", "answer"):
            self.dead |= self.runs_left == 0
            self.runs_left -= 1
        if self.dead:
            return Reference(error=RayActorError("the actor died"))
        if name == "__ray_ready__":
            return Reference(True)
        given = [a.value() if isinstance(a, Reference) else pickle.loads(pickle.dumps(a)) for a in arguments]
        try:
            return Reference(getattr(self._object, name)(*given))
        except Exception as error:
            return Reference(error=RayTaskError(error))


def module(resources: dict[str, float]) -> Any:
    """To be put into ``sys.modules``; ``actors`` of it holds all that were made."""
    ray: Any = types.ModuleType("ray")
    ray.actors = []
    ray.exceptions = types.SimpleNamespace(
        RayTaskError=RayTaskError, RayActorError=RayActorError, GetTimeoutError=GetTimeoutError
    )

    def remote(**options: float) -> Callable[[type], Any]:
        def started(kind: type) -> Actor:
            ray.actors.append(Actor(kind, options))
            return ray.actors[-1]

        return lambda kind: types.SimpleNamespace(remote=lambda: started(kind))

    def get(wanted: Any, timeout: float | None = None) -> Any:
        return [each.value() for each in wanted] if isinstance(wanted, list) else wanted.value()

    ray.remote, ray.get, ray.put = remote, get, Reference
    ray.wait = lambda waiting, num_returns: (waiting[-1:], waiting[:-1])  # not in the order of asking
    ray.kill = lambda actor: setattr(actor, "dead", True)
    ray.is_initialized = lambda: True
    ray.cluster_resources = lambda: resources
    return ray
