"""``wmpo serve RUN``: the pages of a run in the browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from wmpo.cli_common import check_port, stopped_by_signals
from wmpo.serve.guard import is_loopback
from wmpo.serve.run import RunServer


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Shows a run in the browser, also while it goes on: curves, ledger, replays, and its dream to play."""

    run: tyro.conf.Positional[Path]
    "Folder of the run, such as runs/quickstart."
    port: int = 8000
    "Port to listen on; 0 takes a free one."
    host: str = "127.0.0.1"
    "Address to listen on. Another one than a loopback address lets other machines in: there is no password."


SETTINGS = Serve


def main(args: list[str]) -> None:
    """Serves until it is interrupted. Raises ValueError for wrong input, like every command."""
    settings = tyro.cli(Serve, args=[a for a in args if a != "--debug"], prog="wmpo serve")
    check_port(settings.port)
    with RunServer(settings.run, settings.host, settings.port) as server:
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"{settings.run}: http://{shown}:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        if not is_loopback(settings.host):
            print("warning: other machines can read this run and use this machine's time", flush=True)
        try:
            with stopped_by_signals():  # real episodes that were begun are still counted
                server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
