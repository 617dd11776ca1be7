"""Requests as the handlers of both doors get them. Pure."""

from __future__ import annotations

from frontend.exchange import Request
from frontend.http import Block
from frontend.mongrel2 import (
    Headers,
    Protocol,
    encode_json,
    encode_pair,
    encode_request,
    join_request,
    wrap_pairs,
)
from frontend.websocket import accept_value

WITHOUT = frozenset({"transfer-encoding", "te", "trailer", "expect"})  # the frontend has done these


def target_pairs(request: Request) -> bytes:
    """What the request line says; QUERY stands before PATH for uWSGI's sake."""
    head = request.head
    path, query = head.path, head.query
    size = len(path)
    if query is None:
        uri = b"3:URI,%d:%b," % (size, path)
    else:
        long = size + 1 + len(query)
        uri = b"5:QUERY,%d:%b,3:URI,%d:%b?%b," % (len(query), query, long, path, query)
    return b"%b7:PATTERN,%b%b7:VERSION,8:HTTP/1.%b,4:PATH,%d:%b," % (
        request.lines,
        request.target.pattern,
        uri,
        b"0" if head.is_http10 else b"1",
        size,
        path,
    )


def link_payload(request: Request) -> bytes:
    """Headers and body of a request message on the link."""
    head = request.head
    block = head.block
    pairs = b"6:METHOD,%d:%b,%b%b%b" % (
        len(head.method),
        head.method,
        target_pairs(request),
        block.pairs,
        block.upgrade_pairs if head.is_upgrade else b"",
    )
    body = request.body
    return b"%d:%b}%d:%b," % (len(pairs), pairs, len(body), body)


def request_message(ident: bytes, number: int, request: Request, protocol: Protocol) -> bytes:
    """A whole message for a Mongrel2 handler."""
    head = request.head
    method, body = head.method, request.body
    if head.is_upgrade and head.block.websocket_key:
        method, body = b"WEBSOCKET_HANDSHAKE", accept_value(head.block.websocket_key).encode()
    if protocol == "json":
        headers = encode_json(headers_of(request, method.decode()))
    else:
        pairs = (
            b"6:METHOD,%d:%b," % (len(method), method)
            + target_pairs(request)
            + fields_pairs(head.block)
        )
        if head.block.is_chunked:
            pairs += encode_pair("content-length", str(len(body)))
        headers = wrap_pairs(pairs)
    return join_request(ident, number, head.path, headers, body)


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
    headers: Headers = {
        "PATH": head.path.decode("latin-1"),
        **request.client.said,
        "x-request-id": request.id,
    }
    headers.update((n, v) for n, v in head.block.fields.items() if n not in WITHOUT)
    if head.host is not None and head.block.host is None:
        headers["host"] = head.host
    if head.block.is_chunked:
        headers["content-length"] = str(len(request.body))
    headers["METHOD"] = method
    headers["VERSION"] = "HTTP/1.0" if head.is_http10 else "HTTP/1.1"
    headers["URI"] = head.uri.decode("latin-1")
    if head.query is not None:
        headers["QUERY"] = head.query.decode("latin-1")
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
