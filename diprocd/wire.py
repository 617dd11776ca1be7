"""What master, client and frontend say to each other: topics, headers, stats. Pure.

Every publication is a whole document with its `(epoch, version)`, so a lost, repeated or
late one needs no repair: the greatest wins. docs/reference/formats.md shows the frames.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from bareku.errors import BarekuError
from bareku.names import parse_app, parse_process_type, parse_slug
from diprocd.spec import PROTOCOL, NodeDocument, process_id

BEAT_TOPIC = b"hb/"
MAX_MESSAGE_BYTES = 64 * 2**20  # as large as a document on disk may be
MAX_SUBSCRIPTION_BYTES = 512


class Header(Struct, frozen=True):
    """Second frame of a published document."""

    t: Literal["desired", "routes"]
    epoch: int
    version: int
    sha256: str
    p: int = PROTOCOL


class Beat(Struct, frozen=True):
    """Header under BEAT_TOPIC. `silent` names those the master does not hear.

    A node that hears the beats and is named there must not renew its lease.
    """

    epoch: int
    seq: int
    t: Literal["hb"] = "hb"
    p: int = PROTOCOL
    silent: list[str] = []


class ProcessReport(Struct, frozen=True):
    """One process as its worker reports it; more fields may come."""

    id: str
    gen: str
    app: str = ""
    type: str = ""
    index: int = 0
    release: int = 0
    state: str = ""
    ready: bool = False
    pid: int | None = None
    port: int | None = None
    uptime_s: float | None = None
    restarts: int = 0
    fails: int = 0
    crash_loop: bool = False
    exit: dict[str, Any] | None = None
    error: str | None = None
    log: str = ""
    dir: str = ""
    rss_bytes: int | None = None
    cpu_s: float | None = None
    isolation: dict[str, Any] = {}


class NodeStats(Struct, frozen=True, tag_field="t", tag="stats"):
    """What a client sends of its node, each few seconds and on change."""

    node: str
    client: str
    seq: int
    epoch: int
    have: int
    applied: int
    boot_id: str = ""
    sha256: str = ""
    error: str | None = None
    load: dict[str, float] = {}
    procs: list[ProcessReport] = []
    events: list[dict[str, Any]] = []
    isolation: dict[str, Any] = {}
    p: int = PROTOCOL


class FrontendStats(Struct, frozen=True, tag_field="t", tag="frontend"):
    """What a frontend sends: ready handlers and requests in flight by app and release."""

    frontend: str
    seq: int
    epoch: int
    have: int
    boot: str = ""
    handlers: dict[str, dict[str, int]] = {}
    inflight: dict[str, dict[str, int]] = {}
    sha256: str = ""
    p: int = PROTOCOL


T = TypeVar("T")

_stats_decoder = msgspec.json.Decoder(NodeStats | FrontendStats)


def node_topic(node: str) -> bytes:
    """`n/web1/`: the slash ends it, or `web1` would get the messages of `web10`."""
    return f"n/{node}/".encode()


def frontend_topic(frontend: str) -> bytes:
    """`f/front1/`"""
    return f"f/{frontend}/".encode()


def parse_topic(topic: bytes) -> tuple[str, str] | None:
    """`("n", "web1")` of `n/web1/`; None for anything else."""
    try:
        kind, name, rest = topic.decode().split("/")
    except ValueError:
        return None
    return (kind, name) if kind in {"n", "f"} and name and not rest else None


def digest(body: bytes) -> str:
    """The sha256 that the header names."""
    return hashlib.sha256(body).hexdigest()


def frames(topic: bytes, header: Header | Beat, body: bytes = b"") -> list[bytes]:
    """A publication."""
    return [topic, msgspec.json.encode(header), body]


def decode(data: bytes, kind: type[T], what: str) -> T:
    """A document of another daemon; BarekuError when it is not one of this protocol."""
    try:
        document = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise BarekuError(f"cannot use {what}: {exc}") from exc
    if getattr(document, "p", PROTOCOL) != PROTOCOL:
        raise BarekuError(f"cannot use {what}: it speaks another protocol")
    return document


def decode_stats(data: bytes) -> NodeStats | FrontendStats:
    """One frame of the stats socket; BarekuError when it is not one of this protocol."""
    try:
        stats: NodeStats | FrontendStats = _stats_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise BarekuError(f"cannot use stats: {exc}") from exc
    if stats.p != PROTOCOL:
        raise BarekuError("cannot use stats: they speak another protocol")
    return stats


def open_document(node: str, parts: list[bytes]) -> tuple[Header, NodeDocument]:
    """Header and document of a publication for `node`; BarekuError when any part is wrong."""
    if len(parts) != 3:
        raise BarekuError(f"cannot use a publication: it has {len(parts)} frames")
    topic, head, body = parts
    if topic != node_topic(node):
        raise BarekuError("cannot use a publication: it is for another node")
    header = decode(head, Header, "a publication's header")
    if header.t != "desired" or header.sha256 != digest(body):
        raise BarekuError("cannot use a publication: its body is not what the header says")
    document = decode(body, NodeDocument, "a node document")
    check_document(document, node)
    if (document.epoch, document.version) != (header.epoch, header.version):
        raise BarekuError("cannot use a publication: header and body differ in version")
    return header, document


def check_document(document: NodeDocument, node: str | None) -> None:
    """BarekuError when it is another node's or is empty without saying so."""
    if node is not None and document.node != node:
        raise BarekuError(f"cannot use a node document: it is for {document.node}, not {node}")
    if bool(document.processes) == document.empty:
        raise BarekuError("cannot use a node document: `empty` and `processes` contradict")
    ids = {process.id for process in document.processes}
    if len(ids) != len(document.processes):
        raise BarekuError("cannot use a node document: it names a process twice")
    for one in document.processes:
        parse_app(one.app)
        parse_process_type(one.type)
        if one.slug is not None:
            parse_slug(one.slug)
        if not one.cmd or one.id != process_id(one.app, one.release, one.type, one.index):
            raise BarekuError(f"cannot use a node document: process {one.id[:80]!r} is malformed")
