"""Who may ask: by default only pages of this server itself, opened on the same machine.

A web page of somebody else can make a browser send requests to loopback addresses, and by DNS rebinding even under its
own name. So every request must come from a loopback address, to a host name that cannot be rebound, and from no other
origin.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from email.message import Message as Headers
from urllib.parse import urlsplit

from wmpo.serve.messages import Refused


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on that host; ValueErrors of no address are no."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


@dataclass(frozen=True, slots=True)
class Guard:
    """``host`` is the one that the server was told to listen on. If it is no loopback address, other machines may ask
    too, under that name or under any address; names of anybody else's choice are refused even then."""

    host: str

    def check(self, client: str, headers: Headers) -> None:
        """Raises :class:`Refused` (403) with the reason."""
        alone = is_loopback(self.host)
        if alone and not is_loopback(client):
            raise Refused("this server answers its own machine only; see --host", 403)
        asked = headers.get_all("Host") or []
        name = _name(asked[0]) if len(asked) == 1 else ""
        if not (is_loopback(name) or (not alone and (name == self.host or _address(name) is not None))):
            raise Refused("open this server under its address, such as http://127.0.0.1:8000/", 403)
        origins, sites = headers.get_all("Origin") or [], headers.get_all("Sec-Fetch-Site") or []
        foreign = [origin for origin in origins if origin != f"http://{asked[0]}"]
        if foreign or any(site not in ("same-origin", "none") for site in sites):
            raise Refused("this request comes from another site; type the address of this server instead", 403)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _name(host: str) -> str:
    """Without its port; empty for what is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
