"""HTTP/1.1 requests as RFC 9112 has them: heads, their checks, chunked bodies. Pure.

Every request that two readers could frame differently is refused. A block of header fields is
read twice, by the strict patterns here and by llhttp, and both must accept it; the result is
kept for the next request with the same block (a browser or a proxy repeats its own for hours).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from frontend.mongrel2 import encode_pair

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# no possessive quantifiers here: CPython before 3.11.5 loses its place after a failed group
FIELD = re.compile(rb"(" + TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Z-]{1,20}) "
    rb"(/[A-Za-z0-9._~!$&'()*+,;=:@/%-]*)"
    rb"(?:\?([A-Za-z0-9._~!$&'()*+,;=:@/?%{}|^`\[\]-]*))?"
    rb"(?:#[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*)?"  # no target has a fragment: dropped
    rb" HTTP/1\.([01])"
)
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_LOOSE_LINE = re.compile(rb"(" + TOKEN + rb") ([^ \x00-\x20\x7f]+) HTTP/([0-9])\.([0-9])")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)")
_HOST = re.compile(
    rb"([A-Za-z0-9_=~-]{1,63}(?:\.[A-Za-z0-9_=~-]{1,63})*\.?|\[[0-9A-Fa-f:.]{2,45}\])"
    rb"(?::([0-9]{0,5}))?"
)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,128}")
MAX_BLOCK_KEPT = 4096  # bytes; larger blocks are read anew each time
MAX_BLOCKS_KEPT = 1024
MAX_HEAD_KEPT = 1024
MAX_HEADS_KEPT = 1024

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
     "upgrade", "http2-settings", "proxy-authenticate", "proxy-authorization"}
)  # fmt: skip
OURS = frozenset(
    {"forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-host",
     "x-real-ip", "x-request-id", "proxy"}
)  # fmt: skip
OUR_PREFIXES = ("x-bareku-", "x-mongrel2-")
SINGLE = frozenset({"host", "content-length", "transfer-encoding", "content-type"})
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PROPFIND", b"REPORT"})


class HttpError(Exception):
    """A request that gets `status` and the end of its connection."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a request may be."""

    head_bytes: int = 32_768
    line_bytes: int = 8_192
    fields: int = 100


class Block:
    """The header fields of a request, checked and prepared for the handlers.

    `fields` are the client's own, lower case, in order, without what is ours to say; `pairs` the
    same without hop-by-hop fields as the inside of a tnetstring dictionary.
    """

    __slots__ = (
        "all_pairs", "close", "expects", "fields", "forwarded_for", "forwarded_proto", "host", "is_chunked", "is_upgrade",
        "keep_alive", "length", "log_tail", "pairs", "referer", "request_id", "upgrade", "upgrade_pairs",
        "user_agent", "websocket_key",
    )  # fmt: skip

    def __init__(self) -> None:
        self.fields: dict[str, str | list[str]] = {}
        self.pairs = b""
        self.all_pairs = b""  # for Mongrel2's handlers, by whoever speaks to them
        self.upgrade_pairs = b""
        self.log_tail = ""  # for the access log
        self.host: str | None = None
        self.length: int | None = None
        self.is_chunked = False
        self.close = False
        self.keep_alive = False
        self.expects = ""
        self.upgrade = ""
        self.is_upgrade = False
        self.websocket_key = ""
        self.request_id = ""
        self.forwarded_for = ""
        self.forwarded_proto = ""
        self.referer = ""
        self.user_agent = ""


class Head:
    """A request's head; the same object may serve many requests. `kept` is the doors'."""

    __slots__ = (
        "block", "host", "is_http10", "is_plain", "is_upgrade", "keeps_alive", "kept", "log_line",
        "method", "path", "query",
    )  # fmt: skip

    def __init__(
        self, method: bytes, path: bytes, query: bytes | None, is_http10: bool, block: Block
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.is_http10 = is_http10
        self.block = block
        self.host = block.host
        self.log_line = ""  # for the access log
        self.kept: dict[str, tuple[object, bytes]] = {}
        self.is_upgrade = block.is_upgrade and not is_http10 and method == b"GET"
        # whether the connection stays open after the answer (RFC 9112 §9.3)
        self.keeps_alive = not block.close and (not is_http10 or block.keep_alive)
        self.is_plain = (
            self.keeps_alive and not is_http10 and not block.is_upgrade and method != b"HEAD"
        )

    @property
    def uri(self) -> bytes:
        return self.path if self.query is None else b"%b?%b" % (self.path, self.query)


_blocks: dict[bytes, Block] = {}
_heads: dict[bytes, Head] = {}  # polls, probes and reloads repeat whole heads


def check_start(data: bytes | bytearray, start: int, limits: Limits) -> None:
    """Refuse a head that is not complete yet as soon as nothing can save it.

    `start` is where the bytes not looked at before begin. Raises HttpError.
    """
    if data and not (0x21 <= data[0] <= 0x7E):
        raise HttpError(400, "not HTTP")
    if _BARE.search(data, max(0, start - 1)):
        raise HttpError(400, "bare CR or LF")
    if len(data) > limits.line_bytes and data.find(b"\r\n", 0, limits.line_bytes + 2) < 0:
        raise HttpError(414, "request line too long")
    if len(data) > limits.head_bytes:
        raise HttpError(431, "head too long")


def parse_head(data: bytes, end: int, limits: Limits) -> Head:
    """The head of `data[:end]`, which CR LF CR LF follows. Raises HttpError."""
    if end > MAX_HEAD_KEPT or end > limits.head_bytes:
        return _parse(data, end, limits)
    start = data[:end]
    head = _heads.get(start)
    if head is None:
        head = _parse(data, end, limits)
        if len(_heads) >= MAX_HEADS_KEPT:
            del _heads[next(iter(_heads))]
        _heads[start] = head
    return head


def _parse(data: bytes, end: int, limits: Limits) -> Head:
    stop = data.find(b"\r\n", 0, end + 2)
    block = _blocks.get(data[stop + 2 : end + 2])
    line = _LINE.fullmatch(data, 0, stop)
    if (
        block is None
        or line is None
        or end > limits.head_bytes
        or stop > limits.line_bytes
        or (b"%" in line[0] and _BAD_PERCENT.search(line[0]))
    ):
        return _parse_slowly(data, end, stop, limits)
    method, path, query, minor = line.groups()
    return _checked(Head(method, path, query, minor == b"0", block))


def _parse_slowly(data: bytes, end: int, stop: int, limits: Limits) -> Head:
    check_start(data[: end + 4], 0, limits)
    if stop > limits.line_bytes:
        raise HttpError(414, "request line too long")
    authority, method, path, query, is_http10 = _request_line(data[:stop])
    head = Head(method, path, query, is_http10, parse_block(data[stop + 2 : end + 2], limits))
    if authority is not None:
        host = parse_host(authority)
        if head.host is not None and head.host != host:
            raise HttpError(400, "Host differs from the target's")
        head.host = host
    return _checked(head)


def _request_line(line: bytes) -> tuple[bytes | None, bytes, bytes, bytes | None, bool]:
    """`(authority, method, path, query, is_http10)`"""
    loose = _LOOSE_LINE.fullmatch(line)
    if loose is None:
        raise HttpError(400, "bad request line")
    method, target, major, minor = loose.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise HttpError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if method in (b"CONNECT", b"TRACE"):
        raise HttpError(501, "method not supported")
    if method == b"OPTIONS" and target == b"*":
        return None, method, b"*", None, minor == b"0"
    authority = None
    if absolute := _ABSOLUTE.fullmatch(target):
        authority, target = absolute.groups()
        if not target.startswith(b"/"):
            target = b"/" + target
    strict = _LINE.fullmatch(b"%b %b HTTP/1.%b" % (method, target, minor))
    if strict is None or _BAD_PERCENT.search(target):
        raise HttpError(400, "bad method or target")
    return authority, method, strict[2], strict[3], minor == b"0"


def _checked(head: Head) -> Head:
    """What depends on more than the block (RFC 9112 §3.2, §6)."""
    block = head.block
    if head.is_http10:
        if block.is_chunked:
            raise HttpError(400, "Transfer-Encoding in HTTP/1.0")
        if block.length is None and head.method in (b"POST", b"PUT", b"PATCH"):
            raise HttpError(411, "Content-Length is missing")
    elif block.host is None:
        raise HttpError(400, "Host is missing")
    elif block.expects and block.expects != "100-continue":
        raise HttpError(417, "only 100-continue is known")
    return head


def parse_block(raw: bytes, limits: Limits) -> Block:
    """The header fields, each line with its CR LF. Raises HttpError."""
    if block := _blocks.get(raw):
        return block
    fields: list[tuple[str, str]] = []
    at = 0
    while at < len(raw):
        line = FIELD.match(raw, at)
        if line is None:
            raise HttpError(400, "bad header field")
        fields.append((line[1].decode("latin-1").lower(), line[2].decode("latin-1").strip(" \t")))
        at = line.end()
        if len(fields) > limits.fields:
            raise HttpError(431, "too many header fields")
    block = _read(fields)
    _ask_llhttp(raw)
    if len(raw) <= MAX_BLOCK_KEPT:
        if len(_blocks) >= MAX_BLOCKS_KEPT:
            del _blocks[next(iter(_blocks))]
        _blocks[raw] = block
    return block


class _Ears:
    """llhttp's callbacks; nothing is of interest."""


def _ask_llhttp(raw: bytes) -> None:
    parser = httptools.HttpRequestParser(_Ears())
    try:
        parser.feed_data(b"POST / HTTP/1.1\r\n" + raw + b"\r\n")
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as exc:
        raise HttpError(400, "bad header field") from exc


def _read(fields: list[tuple[str, str]]) -> Block:
    block = Block()
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(name, []).append(value)
    for name in SINGLE & found.keys():
        if len(found[name]) > 1:
            raise HttpError(400, f"more than one {name}")
    if "host" in found:
        block.host = parse_host(found["host"][0].encode("latin-1"))
    _read_framing(block, found)
    tokens = _tokens(found.get("connection", []))
    block.close = "close" in tokens
    block.keep_alive = "keep-alive" in tokens
    block.expects = ",".join(found.get("expect", [])).lower()
    block.upgrade = ",".join(found.get("upgrade", []))
    block.is_upgrade = (
        "upgrade" in tokens
        and bool(block.upgrade)
        and block.upgrade.lower() not in ("h2c", "tls/1.0")
        and not block.length
        and not block.is_chunked
    )
    if block.upgrade.lower() == "websocket" and "sec-websocket-version" in found:
        block.websocket_key = ",".join(found.get("sec-websocket-key", []))
    request_id = found.get("x-request-id", [""])[0]
    block.request_id = request_id if _REQUEST_ID.fullmatch(request_id) else ""
    block.forwarded_for = ", ".join(found.get("x-forwarded-for", []))
    proto = found.get("x-forwarded-proto", [""])[0].lower()
    block.forwarded_proto = proto if proto in ("http", "https") else ""
    block.referer = found.get("referer", [""])[0]
    block.user_agent = found.get("user-agent", [""])[0]
    _prepare(block, found, tokens)
    return block


def _read_framing(block: Block, found: dict[str, list[str]]) -> None:
    """How long the body is (RFC 9112 §6); what is ambiguous is refused."""
    if "transfer-encoding" in found:
        coding = found["transfer-encoding"][0].lower()
        if "content-length" in found:
            raise HttpError(400, "Content-Length beside Transfer-Encoding")
        if coding != "chunked":
            is_list = re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[a-z0-9-]+)*", coding)
            known = is_list and coding.count("chunked") <= 1 and "\t" not in coding
            raise HttpError(501 if known else 400, "unknown transfer coding")
        block.is_chunked = True
    elif "content-length" in found:
        text = found["content-length"][0].encode("latin-1")
        if not _LENGTH.fullmatch(text):
            raise HttpError(400, "bad Content-Length")
        block.length = int(text)


def _tokens(values: list[str]) -> set[str]:
    return {token.strip(" \t").lower() for value in values for token in value.split(",")}


def _prepare(block: Block, found: dict[str, list[str]], tokens: set[str]) -> None:
    """The fields as handlers get them."""
    passed: dict[str, str | list[str]] = {}
    for name, values in found.items():
        if name in OURS or name.startswith(OUR_PREFIXES) or _shadows(name, found):
            continue
        passed[name] = values[0] if len(values) == 1 else values
    block.fields = passed
    hop = HOP_BY_HOP | (tokens - SINGLE)
    block.pairs = b"".join(
        encode_pair(name, value)
        for name, value in passed.items()
        if name not in hop and name != "expect"
    )
    if block.is_upgrade:
        block.upgrade_pairs = encode_pair("connection", "upgrade") + encode_pair(
            "upgrade", block.upgrade
        )


def _shadows(name: str, found: dict[str, list[str]]) -> bool:
    """True for `Content_Length` and the like: to WSGI and CGI the same as the true field."""
    if "_" not in name:
        return False
    true = name.replace("_", "-")
    return (
        true in found
        or true in SINGLE
        or true in HOP_BY_HOP
        or true in OURS
        or true.startswith(OUR_PREFIXES)
    )


def parse_host(text: bytes) -> str:
    """A Host field as the routes want it: lower case, without port and closing dot.

    Raises HttpError(400) for everything that is not a host name or address and a port.
    """
    match = _HOST.fullmatch(text)
    if match is None or len(text) > 262 or (match[2] and int(match[2]) > 65535):
        raise HttpError(400, "bad Host")
    return match[1].decode("ascii").lower().rstrip(".")


def phrase(status: int) -> str:
    """`Not Found` for 404."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def page(
    status: int,
    *,
    body: bytes | None = None,
    content_type: str = "text/plain; charset=utf-8",
    close: bool = False,
    is_head: bool = False,
    fields: str = "",
) -> bytes:
    """A whole response of our own; `fields` are further header lines, each with its CR LF."""
    text = f"{status} {phrase(status)}\n".encode() if body is None else body
    connection = "Connection: close\r\n" if close else ""
    head = (
        f"HTTP/1.1 {status} {phrase(status)}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(text)}\r\n{fields}{connection}\r\n"
    )
    return head.encode("latin-1") + (b"" if is_head else text)
