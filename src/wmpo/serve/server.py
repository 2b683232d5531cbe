"""A small HTTP server for this machine's browser: who may ask, how a message is read, what is never sent."""

from __future__ import annotations

import json
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import SplitResult, urlsplit

from wmpo.report.style import CSS
from wmpo.serve.files import File
from wmpo.serve.guard import Guard
from wmpo.serve.messages import LARGEST, Message, Refused, read_message

PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content policy: nothing from elsewhere, and no script that is not one of ours."""
MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


@dataclass(frozen=True, slots=True)
class Ask:
    """What a message may ask: its fields, and who answers, with a record."""

    fields: tuple[str, ...]
    answer: Callable[[Message], Any]


class PageServer(ThreadingHTTPServer):
    """One page with its style and scripts (names of files beside this one), and what it may ask.

    Raises ValueError when the address cannot be used. ``port`` 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, page: str, scripts: tuple[str, ...], asks: Mapping[str, Ask], host: str, port: int) -> None:
        self.static = {"/": page} | {f"/{name}": name for name in ("page.css", *scripts)}
        self.asks, self.guard = asks, Guard(host)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            other = "--host" if isinstance(error, socket.gaierror) else "--port"
            raise ValueError(f"cannot listen on {host}, port {port} ({error}); choose another {other}") from error

    def server_bind(self) -> None:
        """Without asking a name server who we are."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.guard.host, int(self.server_address[1])

    def find(self, address: SplitResult) -> File:
        """What else can be read. Raises :class:`Refused` for an address that is none."""
        raise Refused("there is no such page", 404)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "wmpo", ""
    timeout = 20  # seconds for which a silent client keeps its thread

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, find: Callable[[], File]) -> None:
        """Whatever goes wrong, the browser gets one sentence and the server goes on."""
        try:
            self._send(200, find())
        except Refused as error:
            self._refuse(error.status, str(error))
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # nobody listens any more
        except ValueError as error:  # a damaged file of the run; the sentence names it
            self._refuse(409, str(error))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._refuse(500, f"the server failed ({type(error).__name__}); its terminal says more")

    def _get(self) -> File:
        self.server.guard.check(self.client_address[0], self.headers)
        address = urlsplit(self.path)
        if address.path in self.server.static:
            return _static(self.server.static[address.path])
        return self.server.find(address)

    def _post(self) -> File:
        body = self._body()
        self.server.guard.check(self.client_address[0], self.headers)
        ask = self.server.asks.get(self.path)
        if ask is None:
            raise Refused("there is nothing to ask under this address", 404)
        if self.headers.get_content_type() != "application/json":  # a form of another site cannot have this type
            raise Refused("a message has the type application/json", 415)
        return as_json(ask.answer(read_message(body, ask.fields)))

    def _body(self) -> bytes:
        """Read before anything is judged: a connection that is closed with bytes unread is reset, and then the browser
        does not get the reason."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 10):
            raise Refused("a message says its length in bytes", 411)
        body = self.rfile.read(min(int(length), 64 * LARGEST))
        if int(length) > LARGEST:
            raise Refused(f"a message has at most {LARGEST} bytes", 413)
        return body

    def _refuse(self, status: int, sentence: str) -> None:
        content = json.dumps({"error": sentence}).encode()
        self._send(status, File(content, "application/json", PAGE))

    def _send(self, status: int, file: File) -> None:
        try:
            self.send_response(status)
            for name, value in (
                ("Content-Type", file.kind), ("Content-Length", str(len(file.content))),
                ("Content-Security-Policy", file.policy), ("X-Content-Type-Options", "nosniff"),
                ("Cross-Origin-Resource-Policy", "same-origin"), ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
            ):  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(file.content)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: broken request lines and unknown methods."""
        self._refuse(
            code, "this is no request that a browser sends" if code < 500 else "only GET and POST are answered"
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a page asks every few seconds."""


def as_json(answer: Any) -> File:
    """A record as the browser gets it."""
    return File(json.dumps(asdict(answer), allow_nan=False).encode(), "application/json", PAGE)


def _static(name: str) -> File:
    text = files("wmpo.serve").joinpath(name).read_text(encoding="utf-8")
    text = CSS + text if name.endswith(".css") else text
    return File(text.encode(), f"{MEDIA[Path(name).suffix]}; charset=utf-8", PAGE)
