"""Bad clients and bad handlers: the right verdict, bounded memory, honest clients served."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from frontend.link import Kind, encode_head
from frontend.mongrel2 import Request, encode_reply
from tests.frontend.rig import Frontend, Handler, ok, read_all, read_response, until

pytestmark = pytest.mark.slow

Start = Callable[..., Frontend]
Serve = Callable[..., Handler]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def rss(frontend: Frontend) -> int:
    assert frontend.process is not None
    return int(Path(f"/proc/{frontend.process.pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (bytes(4000), b"400"),
        (b"GET /" + b"a" * 100_000, b"414"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 1000 + b"\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"\r\n" * 100, b"400"),
    ],
    ids=[
        "tls",
        "http2",
        "zeros",
        "long-line",
        "long-head",
        "many-fields",
        "bad-chunk",
        "empty-lines",
    ],
)
def test_bad_client_gets_its_verdict_and_the_next_one_an_answer(
    data: bytes, status: bytes, start: Start, serve: Serve
) -> None:
    frontend = start()
    handler = serve(frontend)
    answer = frontend.raw(data)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:100]
    assert b"Connection: close" in answer
    assert not handler.requests
    assert frontend.get()[0] == 200


def test_bad_chunk_after_the_request_was_sent_cancels_it(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend, lambda *_: None)
    with frontend.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b"%x\r\n%b\r\n" % (70_000, bytes(70_000)))
        until(lambda: handler.requests, "request with its first part")
        sock.sendall(b"nonsense\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    until(lambda: handler.cancelled, "cancel")


def test_honest_byte_by_byte_client_is_served(start: Start, serve: Serve) -> None:
    frontend = start()
    serve(frontend, lambda _, request: ok(request.body))
    with frontend.connect() as sock:
        for byte in b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello":
            sock.sendall(bytes([byte]))
        assert read_response(sock)[1] == b"hello"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nx",
    ],
    ids=["head", "body"],
)
def test_slow_sender_is_told_408_however_it_trickles(
    data: bytes, start: Start, serve: Serve
) -> None:
    frontend = start(timeouts={"head_s": 0.7, "body_s": 0.7, "idle_s": 30})
    handler = serve(frontend)
    began = time.monotonic()
    with frontend.connect() as sock:
        sock.sendall(data)
        sock.settimeout(0.2)
        answer = b""
        while not answer and time.monotonic() < began + 5:
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(1000)
            if not answer:
                with contextlib.suppress(OSError):
                    sock.sendall(b"y")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.6 < time.monotonic() - began < 4
    assert not handler.requests


def test_large_upload_may_take_longer_than_an_answer(start: Start, serve: Serve) -> None:
    frontend = start(timeouts={"first_byte_s": 0.8, "body_s": 0.8})
    handler = serve(frontend, lambda *_: None)
    size = 64 * 1024 + 40_000
    with frontend.connect() as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
        sock.sendall(bytes(64 * 1024))
        until(lambda: handler.requests, "request with its first part")
        number = handler.requests[0].id
        handler.later(Kind.GRANT, number, size)
        for _ in range(10):
            time.sleep(0.25)
            sock.sendall(bytes(4000))
        until(lambda: number in handler.ended, "everything")
        handler.reply_later(number, ok(b"thanks"))
        assert read_response(sock)[1] == b"thanks"
    with frontend.connect() as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
        sock.sendall(bytes(70_000))
        assert read_all(sock).startswith(b"HTTP/1.1 408 ")
    until(lambda: len(handler.cancelled) == 1, "cancel")


def test_body_byte_by_byte_costs_little(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend)
    assert frontend.process is not None
    stat = Path(f"/proc/{frontend.process.pid}/stat")

    def cpu_s() -> float:
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    size, before = 30_000, cpu_s()
    with frontend.connect(60) as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size):
            sock.send(b"x")
        assert read_response(sock)[1] == b"web.1"
    assert len(handler.requests[0].body) == size
    assert cpu_s() - before < 3  # a list copied with each byte would take longer


def test_idle_connection_is_closed_without_a_word(start: Start, serve: Serve) -> None:
    frontend = start(timeouts={"idle_s": 0.5})
    serve(frontend)
    with frontend.connect() as sock:
        sock.sendall(GET)
        read_response(sock)
        assert sock.recv(1000) == b""


def test_slow_reader_holds_up_only_itself_and_is_cut_off(start: Start, serve: Serve) -> None:
    size = 60 * 2**20

    def big(handler: Handler, request: Request) -> bytes | None:
        if request.path != "/big":
            return ok(b"quick")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
        handler.reply(request.id, head + bytes(2**18 - len(head)), end=False)
        return None

    frontend = start(timeouts={"write_s": 1})
    handler = serve(frontend, big)
    before = rss(frontend)
    with frontend.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(GET.replace(b"/ ", b"/big "))
        until(lambda: handler.requests, "request")
        number = handler.requests[0].id
        # a handler that does not care for credit
        for _ in range(40):
            handler.reply_later(number, bytes(2**18), end=False)
        for _ in range(20):
            assert frontend.get("/quick") == (200, b"quick")
        until(lambda: handler.cancelled == [number], "the slow one is cut off")
    assert rss(frontend) - before < 48 * 2**20


def test_ten_thousand_connections_leave_room_for_an_honest_one(start: Start, serve: Serve) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000
    if hard < wanted + 200:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks = []
    try:
        frontend = start()
        serve(frontend)
        before = rss(frontend)
        address = ("127.0.0.1", frontend.port)
        for number in range(wanted):
            sock = socket.create_connection(address, 10)
            socks.append(sock)
            if number % 2:
                sock.sendall(b"GET / HTTP/1.1\r\nHost")  # for ever incomplete
        began = time.monotonic()
        assert frontend.get()[0] == 200
        assert time.monotonic() - began < 3
        assert rss(frontend) - before < wanted * 6 * 1024
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_connections_are_told_503(start: Start, serve: Serve) -> None:
    frontend = start(limits={"connections": 3})
    serve(frontend)
    held = [frontend.connect() for _ in range(3)]
    until(lambda: frontend.status()["connections"] == 3, "three")
    answer = frontend.raw(GET)
    assert answer.startswith(b"HTTP/1.1 503 ")
    for sock in held:
        sock.close()
    until(lambda: frontend.get()[0] == 200, "room again")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(48),
        b"\xff" + bytes(8) + b"\x7f\x03",
        b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48) + b"\x02" + struct.pack(">Q", 2**62),
        b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48) + b"\x04\x05READY",
        os.urandom(500),
    ],
    ids=["http", "curve", "half", "huge", "half-ready", "noise"],
)
def test_garbage_on_the_link_stalls_nobody(data: bytes, start: Start, serve: Serve) -> None:
    frontend = start()
    serve(frontend)
    host, _, port = frontend.status()["link"].rpartition(":")
    with socket.create_connection((host, int(port)), 5) as sock:
        sock.sendall(data)
        assert frontend.get() == (200, b"web.1")


def test_bad_frames_of_a_handler_are_counted_and_dropped(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend)
    ident = handler.welcome["ident"].encode()
    reply = encode_head(Kind.REPLY, 1, 1)
    for head, payload in [
        (b"", b""), (b"?", b"x"), (b"P\x00", b"x"), (reply, b""), (reply, b"other 1:1, x"),
        (reply, ident + b" 1:, x"), (reply, ident + b" 99:" + b"9" * 99 + b", x"),
        (encode_head(Kind.HELLO, 2), b"{"), (encode_head(Kind.REPLY, 7, 1), b"x"),
        (encode_head(Kind.REFUSE, 1, 5), b""), (encode_head(Kind.GRANT, 1, 5, 5), b""),
        (encode_head(Kind.FAIL, 1, 5, 200), b""), (encode_head(Kind.WELCOME, 1), b""),
        (reply, encode_reply(ident, [123456], ok(b"nobody's"))),
    ]:  # fmt: skip
        handler.outbox.append((head, payload))
    until(lambda: not handler.outbox, "all sent")
    for _ in range(3):
        assert frontend.get() == (200, b"web.1")
    until(lambda: frontend.status()["counters"]["bad_frames"] >= 5, "counted")
    assert frontend.status()["counters"]["stray_replies"] >= 2


def test_endless_reply_uses_no_memory(start: Start, serve: Serve) -> None:
    frontend = start()
    handler = serve(frontend, lambda *_: None)
    before, received = rss(frontend), 0
    with frontend.connect() as sock:
        sock.sendall(GET)
        until(lambda: handler.requests, "request")
        number = handler.requests[0].id
        end = threading.Event()

        def pour() -> None:
            handler.reply_later(number, b"HTTP/1.1 200 OK\r\n\r\n", end=False)
            sent = 0
            while not end.is_set():
                if sent - handler.credits.get(number, 0) < 200_000:
                    handler.reply_later(number, bytes(60_000), end=False)
                    sent += 60_000
                else:
                    time.sleep(0.001)

        pouring = threading.Thread(target=pour)
        pouring.start()
        while received < 80 * 2**20:
            received += len(sock.recv(2**20))
        end.set()
        pouring.join()
    assert rss(frontend) - before < 16 * 2**20
    until(lambda: handler.cancelled, "cancel")
