"""The frontend's configuration file as a type; docs/reference/frontend.md lists every key."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Size = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]


class Door(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One PUSH and SUB pair for Mongrel2 handlers; the names are those of Mongrel2's `Handler`.

    `pair`: one process, a window, retries. `shared`: any number of processes behind one pair, as
    Mongrel2 has it, hence at most once. `release` null follows the one that the routes name.
    """

    app: str
    send_spec: str
    recv_spec: str
    release: int | None = None
    process: str = ""
    token: str = ""
    send_ident: str = ""
    recv_ident: str | None = None
    protocol: Literal["json", "tnetstring"] = "json"
    kind: Literal["pair", "shared"] = "pair"
    window: Positive = 1
    content_length: Annotated[int, Meta(ge=0, le=65_536)] = 20_480  # of a request body


class Timeouts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long each part of a request may take, in seconds."""

    head_s: Seconds = 10.0
    body_s: Seconds = 30.0
    hold_s: Seconds = 30.0
    first_byte_s: Seconds = 60.0
    stream_s: Seconds = 300.0
    write_s: Seconds = 60.0
    idle_s: Seconds = 75.0
    tunnel_s: Seconds = 3600.0
    drain_s: Seconds = 30.0


class Bounds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much there may be of everything."""

    head_bytes: Positive = 32_768
    line_bytes: Positive = 8_192
    fields: Positive = 100
    body_bytes: Size = 0  # 0: any
    connections: Positive = 16_384
    held_requests: Size = 1_000
    held_bytes: Size = 67_108_864
    attempts: Positive = 3


class Tls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where TLS is spoken, and the folder of `<host>.crt` and `<host>.key`."""

    listen: str | list[str]
    certificates: str


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`frontend.yml`."""

    name: str = "%H"
    listen: str | list[str] = "127.0.0.1:8080"
    tls: Tls | None = None
    link: str = "tcp://127.0.0.1:31125"
    link_curve: dict[str, str] = {}
    curve_key: str | None = None
    curve_master: str | None = None
    run: str = "/run/bareku"
    routes: str = "/var/lib/bareku/frontend/routes.json"
    master_updates: str | None = None
    master_stats: str | None = None
    status: str | None = None
    access_log: str | None = None
    access_format: Literal["combined", "json"] = "combined"
    request_id: str = "X-Request-Id"
    trusted_proxies: list[str] = []
    pages: str | None = None
    mongrel2: list[Door] = []
    limits: Bounds = Bounds()
    timeouts: Timeouts = Timeouts()
