"""The route table: host and path to an app's release. Pure; a new table replaces the old whole.

Hosts: exact, then `*.suffix` (longest first, on a label boundary), then `*`. Within a host the
longest prefix that ends on a path segment; a host without a fitting prefix falls back to the
next less specific one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

MAX_HOSTS_KEPT = 4096

Key = tuple[str, int]  # app, release


class Route(Struct, frozen=True):
    """Requests for `host` under `prefix` go to a release of an app."""

    host: str
    app: str
    release: int
    prefix: str = "/"
    token: str = ""

    @property
    def key(self) -> Key:
        return self.app, self.release


class RouteDocument(Struct, frozen=True, kw_only=True):
    """The whole route table of one frontend: the body of `f/<frontend>/` and `routes.json`."""

    frontend: str = ""
    epoch: int = 0
    version: int = 0
    routes: list[Route]
    p: int = 1
    cluster: str = "bareku"


class _Header(Struct, frozen=True):
    p: int
    t: str
    epoch: int
    version: int
    sha256: str


def decode_update(header: bytes, body: bytes, frontend: str) -> RouteDocument:
    """A route table as the master publishes it.

    Raises ValueError (msgspec's included) for what is not one, not ours or damaged on the way.
    """
    head = msgspec.json.decode(header, type=_Header)
    if head.p != 1 or head.t != "routes":
        raise ValueError(f"unknown message {head.t!r} of protocol {head.p}")
    if hashlib.sha256(body).hexdigest() != head.sha256:
        raise ValueError("the body does not have its sha256")
    document = decode_document(body)
    if (document.epoch, document.version) != (head.epoch, head.version):
        raise ValueError("header and body name different versions")
    if document.frontend != frontend:
        raise ValueError(f"meant for the frontend {document.frontend!r}")
    return document


def decode_document(body: bytes) -> RouteDocument:
    """`routes.json`. Raises ValueError."""
    document: Any = msgspec.json.decode(body, type=RouteDocument)
    for route in document.routes:
        if not route.prefix.startswith("/"):
            raise ValueError(f"the prefix {route.prefix!r} does not begin with '/'")
    return RouteDocument(**{name: getattr(document, name) for name in document.__struct_fields__})


@dataclass(frozen=True, slots=True)
class Target:
    """What a request matched."""

    route: Route
    key: Key
    pattern: bytes  # the prefix, as the value of PATTERN in a tnetstring
    inner: bytes  # the prefix with a closing slash
    log: str  # for the access log


class Table:
    """An immutable table; `find` is the question of every request."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        by_host: dict[str, list[Target]] = {}
        for route in routes:
            prefix = route.prefix.encode()
            pattern = b"%d:%b," % (len(prefix), prefix)
            log = f" app={route.app} release=v{route.release} "
            target = Target(route, route.key, pattern, prefix.rstrip(b"/") + b"/", log)
            by_host.setdefault(_folded(route.host), []).append(target)
        for targets in by_host.values():
            targets.sort(key=lambda target: len(target.inner), reverse=True)
        self._by_host = by_host
        self._kept: dict[str | None, tuple[Target, ...]] = {}
        self.tokens: dict[Key, str] = {route.key: route.token for route in routes}
        self.apps = {route.app for route in routes}

    def find(self, host: str | None, path: bytes) -> Target | None:
        """The route of a request; `host` as `http.parse_host` gives it, None without one."""
        targets = self._kept.get(host)
        if targets is None:
            targets = self._candidates(host)
        for target in targets:
            inner = target.inner
            if path.startswith(inner) or path == inner[:-1] or inner == b"/":
                return target
        return None

    def _candidates(self, host: str | None) -> tuple[Target, ...]:
        """Everything that may match the host, most specific first."""
        found = list(self._by_host.get(host, ())) if host else []
        suffix = host or ""
        while "." in suffix and not suffix.startswith("["):
            suffix = suffix.partition(".")[2]
            found += self._by_host.get(f"*.{suffix}", ())
        found += self._by_host.get("*", ())
        if len(self._kept) >= MAX_HOSTS_KEPT:
            self._kept.clear()
        self._kept[host] = tuple(found)
        return self._kept[host]


def _folded(host: str) -> str:
    return host.lower().rstrip(".")
