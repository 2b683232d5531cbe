"""``wmpo serve``: the pages of one run's folder, and what is answered under which address."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

from wmpo.serve.files import File, run_file
from wmpo.serve.live import Live
from wmpo.serve.messages import Message
from wmpo.serve.server import Ask, PageServer, as_json
from wmpo.serve.session import WORLDS, Acting
from wmpo.serve.studio import Studio

POLICIES = ("base", "improved")
DRAWS = 2**31
"""Numbers that key the noise of dreams."""


class RunServer(PageServer):
    """Raises ValueError when ``path`` is no run or the address cannot be used. ``port`` 0 takes a free one."""

    def __init__(self, path: Path, host: str, port: int) -> None:
        self.path, self.studio, self.live = path, Studio(path), Live(path)
        super().__init__("page.html", ("draw.js", "play.js", "watch.js"), _asks(self.studio), host, port)

    def find(self, address: SplitResult) -> File:
        if address.path == "/api/live":
            return as_json(self.live.view(address.query[:20]))
        if address.path.startswith("/run/"):
            return run_file(self.path, address.path.removeprefix("/run/"))
        return super().find(address)

    def server_close(self) -> None:
        super().server_close()
        self.studio.close()


def _asks(studio: Studio) -> Mapping[str, Ask]:
    def step(message: Message) -> Any:
        acting = Acting(
            driver=message.choice("driver", ("keys", *POLICIES)),
            temperature=message.number("temperature", 0, 10),
            move=message.numbers("move", 3, -1, 1),
            gripper=message.number("gripper", -1, 1),
        )
        return studio.step(message.text("session"), acting, message.choice("world", WORLDS))

    def siblings(message: Message) -> Any:
        policy, temperature = message.choice("policy", POLICIES), message.number("temperature", 0, 10)
        return studio.siblings(_place(message), policy, temperature, message.integer("draw", 0, DRAWS))

    return {
        "/api/about": Ask((), lambda _: studio.about()),
        "/api/replay": Ask(("episode",), lambda m: studio.replay(_place(m))),
        "/api/siblings": Ask(("episode", "policy", "temperature", "draw"), siblings),
        "/api/begin": Ask(("episode", "draw"), lambda m: studio.begin(_place(m), m.integer("draw", 0, DRAWS))),
        "/api/step": Ask(("session", "driver", "temperature", "move", "gripper", "world"), step),
        "/api/real": Ask(("session",), lambda m: studio.step(m.text("session"), None, "both")),
    }


def _place(message: Message) -> int:
    return message.integer("episode", 0, 10**6)
