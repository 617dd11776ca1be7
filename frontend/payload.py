"""Requests as the handlers of both doors get them. Pure."""

from __future__ import annotations

from frontend.exchange import Request
from frontend.http import Block, Head
from frontend.mongrel2 import (
    Headers,
    Protocol,
    encode_pair,
    encode_request,
    join_request,
    wrap_pairs,
)
from frontend.router import Target
from frontend.websocket import accept_value

WITHOUT = frozenset({"transfer-encoding", "te", "trailer", "expect"})  # the frontend has done these


def _pairs(method: bytes, head: Head, target: Target, fields: bytes) -> bytes:
    """What head and route say; QUERY stands before PATH for uWSGI's sake."""
    path, query = head.path, head.query
    size = len(path)
    if query is None:
        uri = b"3:URI,%d:%b," % (size, path)
    else:
        long = size + 1 + len(query)
        uri = b"5:QUERY,%d:%b,3:URI,%d:%b?%b," % (len(query), query, long, path, query)
    return b"6:METHOD,%d:%b,7:PATTERN,%b%b7:VERSION,8:HTTP/1.%b,4:PATH,%d:%b,%b" % (
        len(method),
        method,
        target.pattern,
        uri,
        b"0" if head.is_http10 else b"1",
        size,
        path,
        fields,
    )


def link_payload(request: Request) -> bytes:
    """Headers and body of a request message on the link."""
    head, body = request.head, request.body
    kept = head.kept.get("link")
    if kept is None or kept[0] is not request.target:
        fields = head.block.pairs + (head.block.upgrade_pairs if head.is_upgrade else b"")
        pairs = _pairs(head.method, head, request.target, fields)
        kept = head.kept["link"] = (request.target, pairs)
    pairs = kept[1]
    lines = request.lines
    return b"%d:%b%b}%d:%b," % (len(lines) + len(pairs), lines, pairs, len(body), body)


def request_message(ident: bytes, number: int, request: Request, protocol: Protocol) -> bytes:
    """A whole message for a Mongrel2 handler."""
    head = request.head
    if head.is_upgrade and head.block.websocket_key:
        accept = accept_value(head.block.websocket_key).encode()
        return _message(ident, number, request, protocol, b"WEBSOCKET_HANDSHAKE", accept)
    if protocol == "json" or head.block.is_chunked:
        return _message(ident, number, request, protocol, head.method, request.body)
    kept = head.kept.get("pair")
    if kept is None or kept[0] is not request.target:
        pairs = _pairs(head.method, head, request.target, fields_pairs(head.block))
        kept = head.kept["pair"] = (request.target, pairs)
    headers = wrap_pairs(request.lines + kept[1])
    return join_request(ident, number, head.path, headers, request.body)


def _message(
    ident: bytes, number: int, request: Request, protocol: Protocol, method: bytes, body: bytes
) -> bytes:
    headers = headers_of(request, method.decode())
    path = request.head.path.decode("latin-1")
    return encode_request(ident, number, path, headers, body, protocol=protocol)


def fields_pairs(block: Block) -> bytes:
    """The client's fields as pairs, made once for each block."""
    if not block.all_pairs:
        block.all_pairs = b"".join(
            encode_pair(name, value) for name, value in block.fields.items() if name not in WITHOUT
        )
    return block.all_pairs


def headers_of(request: Request, method: str) -> Headers:
    """The headers of a request for a Mongrel2 handler, as a dictionary."""
    head = request.head
    headers: Headers = {**request.client.said, "x-request-id": request.id}
    if head.query is not None:
        headers["QUERY"] = head.query.decode("latin-1")
    headers["PATH"] = head.path.decode("latin-1")
    headers.update((n, v) for n, v in head.block.fields.items() if n not in WITHOUT)
    if head.host is not None and head.block.host is None:
        headers["host"] = head.host
    if head.block.is_chunked:
        headers["content-length"] = str(len(request.body))
    headers["METHOD"] = method
    headers["VERSION"] = "HTTP/1.0" if head.is_http10 else "HTTP/1.1"
    headers["URI"] = head.uri.decode("latin-1")
    headers["PATTERN"] = request.target.route.prefix
    return headers


def websocket_message(
    ident: bytes, number: int, request: Request, flags: int, payload: bytes, protocol: Protocol
) -> bytes:
    """One WebSocket message of a client: the handshake's headers, and the frame's flags."""
    headers = headers_of(request, "WEBSOCKET")
    headers["FLAGS"] = f"0x{flags:02X}"
    path = request.head.path.decode("latin-1")
    return encode_request(ident, number, path, headers, payload, protocol=protocol)
