"""What the connections of one listening socket share, and what handlers are told of them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Protocol

from frontend.exchange import Exchange, Request
from frontend.http import Block, HttpError, Limits
from frontend.mongrel2 import encode_pair
from frontend.pages import Pages
from frontend.wheel import Wheel


class Journal(Protocol):
    """Who is told of finished requests."""

    def finished(self, request: Request, status: int) -> None: ...

    def rejected(self, remote: str, error: HttpError) -> None: ...


class Visitor(Protocol):
    """A connection, as the server ends it."""

    def end(self) -> None: ...

    def kill(self) -> None: ...


class Listener:
    """What the connections of one listening socket share."""

    def __init__(
        self, exchange: Exchange, wheel: Wheel, journal: Journal, *, scheme: str, port: int
    ) -> None:
        bounds = exchange.config.limits
        self.exchange = exchange
        self.wheel = wheel
        self.journal = journal
        self.clock = exchange.clock
        self.timeouts = exchange.config.timeouts
        self.limits = Limits(bounds.head_bytes, bounds.line_bytes, bounds.fields)
        self.body_bytes = bounds.body_bytes
        self.scheme = scheme
        self.port = port
        self.connections: set[Visitor] = set()
        self.id_prefix = ""
        self.pages = Pages(None)
        self.id_field = exchange.config.request_id
        self.id_start = f"{self.id_field}: ".encode()
        self.ids = 0
        self.trusted = [ip_network(text) for text in exchange.config.trusted_proxies]
        self._lines: dict[str, bytes] = {}

    def trusts(self, remote: str) -> bool:
        """Whether this address may say for whom it speaks."""
        if not self.trusted:
            return False
        address = ip_address(remote.partition("%")[0])
        return any(address in network for network in self.trusted)

    def lines(self, remote: str) -> bytes:
        """`facts` as tnetstring pairs; the same object for all connections of an address."""
        lines = self._lines.get(remote)
        if lines is None:
            if len(self._lines) >= 1000:
                self._lines.clear()
            known = facts(remote, self.scheme, self.port).items()
            lines = self._lines[remote] = b"".join(encode_pair(*item) for item in known)
        return lines


def facts(remote: str, scheme: str, port: int) -> dict[str, str]:
    """What handlers are told of the client's connection."""
    node = f'"[{remote}]"' if ":" in remote else remote
    return {
        "REMOTE_ADDR": remote,
        "URL_SCHEME": scheme,
        "x-forwarded-for": remote,
        "x-forwarded-proto": scheme,
        "x-forwarded-port": str(port),
        "forwarded": f"for={node};proto={scheme}",
    }


def behind(remote: str, scheme: str, port: int, block: Block) -> dict[str, str]:
    """The same when the client is a proxy that is trusted: its own words, continued."""
    known = facts(remote, block.forwarded_proto or scheme, port)
    if block.forwarded_for:
        known["x-forwarded-for"] = f"{block.forwarded_for}, {remote}"
    known["x-forwarded-proto"] = known["URL_SCHEME"]
    return known
