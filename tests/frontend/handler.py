"""Handlers as processes of their own, for tests that kill them.

usage: handler.py link ENDPOINT NAME WORK_S LOG  |  handler.py pair SEND RECV NAME WORK_S LOG
Each appends the method and path of what it executes to LOG before it answers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

import msgspec
import zmq

from frontend.link import END, Hello, Kind, encode_head
from frontend.mongrel2 import Request, decode_request, encode_reply


def executor(name: str, work_s: float, log: str) -> Callable[[Request], bytes]:
    """What the app does with a request."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def execute(request: Request) -> bytes:
        os.write(fd, f"{request.header('METHOD')} {request.path}\n".encode())
        time.sleep(work_s)
        told = {
            "method": request.header("METHOD"), "path": request.path,
            "query": request.header("QUERY"), "x": request.headers.get("x-test"),
            "body": request.body.decode("latin-1"), "host": request.header("host"),
        }  # fmt: skip
        body = json.dumps(told).encode()
        head = f"HTTP/1.1 200 OK\r\nX-Process: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    return execute


def serve_link(endpoint: str, name: str, execute: Callable[[Request], bytes]) -> None:
    sock = zmq.Context().socket(zmq.DEALER)
    sock.connect(endpoint)
    hello = msgspec.json.encode(Hello("shop", 1, name, "node1", 1))
    sock.send_multipart([encode_head(Kind.HELLO, 1), hello])
    ident, beat_at = b"", time.monotonic()
    while True:
        if time.monotonic() >= beat_at:
            beat_at = time.monotonic() + 1
            sock.send_multipart([encode_head(Kind.BEAT, 1), b""])
        if not sock.poll(200):
            continue
        head, payload = sock.recv_multipart()
        if head[:1] == Kind.WELCOME:
            ident = json.loads(payload)["ident"].encode()
        elif head[:1] == Kind.REQUEST:
            request = decode_request(payload)
            reply = encode_reply(ident, [request.id], execute(request))
            sock.send_multipart([encode_head(Kind.REPLY, 1, END), reply])


def serve_pair(send: str, recv: str, execute: Callable[[Request], bytes]) -> None:
    context = zmq.Context()
    pull, pub = context.socket(zmq.PULL), context.socket(zmq.PUB)
    pull.connect(send)
    pub.connect(recv)
    while True:
        request = decode_request(pull.recv())
        if not request.is_disconnect:
            pub.send(encode_reply(request.ident, [request.id], execute(request)))


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "link":
        endpoint, name, work_s, log = words
        serve_link(endpoint, name, executor(name, float(work_s), log))
    else:
        send, recv, name, work_s, log = words
        serve_pair(send, recv, executor(name, float(work_s), log))
