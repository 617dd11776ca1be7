"""The requests that every handler must answer alike, whatever server and door is before it."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import Any

from appnode import websocket

TIMEOUT_S = 15.0


def ask(
    port: int, target: str, method: str = "GET", body: Any = None, **headers: str
) -> tuple[int, bytes, Any]:
    """`(status, body, headers)` over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, fields)
        response = connection.getresponse()
        return response.status, response.read(), response.headers


def check_plain(port: int) -> None:
    """Status, headers and bodies of single requests."""
    assert ask(port, "/hello")[:2] == (200, b"Hello, world\n")
    assert ask(port, "/say?a=b&c=%20", x_test="yes")[1] == b"GET|a=b&c=%20|yes|/say"
    assert ask(port, "/say/%C3%A9%2F")[1] == b"GET|||/say/\xc3\xa9/"
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(port, "/say", method)[1].startswith(method.encode())
    for body in (b"", b"x", bytes(range(256)) * 40):
        assert ask(port, "/echo", "POST", body)[:2] == (200, body)
    status, body, _ = ask(port, "/empty")
    assert (status, body) == (204, b"")
    assert ask(port, "/nowhere")[0] == 404
    status, body, headers = ask(port, "/cookies", cookie="c=3; d=4")
    assert (status, body) == (200, b"c=3; d=4")
    assert headers.get_all("set-cookie") == ["a=1", "b=2"]
    status, body, headers = ask(port, "/hello", "HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", "13")


def check_large(port: int) -> None:
    """Replies of a megabyte and in many pieces."""
    status, body, _ = ask(port, "/big?n=1000000")
    assert (status, len(body), set(body)) == (200, 1_000_000, {120})
    for count in (1, 16, 40, 500):
        status, body, _ = ask(port, f"/pieces?n={count}")
        assert (status, body) == (200, b"".join(b"piece%02d" % (n % 100) for n in range(count)))


def check_connections(port: int) -> None:
    """Keep-alive, pipelining, HTTP/1.0, Connection: close."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        for number in range(20):
            connection.request("GET", f"/say?n={number}")
            assert connection.getresponse().read() == b"GET|n=%d||/say" % number
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock:
        for number in range(5):
            sock.sendall(b"GET /say?n=%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number)
        got = b""
        while got.count(b"/say") < 5:
            piece = sock.recv(65536)
            assert piece, got
            got += piece
        order = [got.index(b"GET|n=%d||" % number) for number in range(5)]
        assert order == sorted(order)
    for last in (
        b"GET /hello HTTP/1.0\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ):
        assert until_closed(port, last).endswith(b"\r\n\r\nHello, world\n")
    old = until_closed(port, b"GET /pieces?n=3 HTTP/1.0\r\n\r\n")
    assert b"ransfer-" not in old
    assert old.endswith(b"piece00piece01piece02"), old


def check_failures(port: int) -> None:
    """What an app does wrong stays its own."""
    assert ask(port, "/fail")[0] == 500
    with contextlib.suppress(http.client.IncompleteRead):
        status = ask(port, "/short")[0]
        assert status in (500, 502)
    assert ask(port, "/hello")[:2] == (200, b"Hello, world\n")


def check_bad_header(port: int) -> None:
    """An app that writes its own HTTP may say what looks like two headers; others may not."""
    assert ask(port, "/bad")[0] == 500


def until_closed(port: int, request: bytes) -> bytes:
    """All bytes until the server closes, which it must."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock:
        sock.sendall(request)
        got = b""
        while piece := sock.recv(65536):
            got += piece
        return got


class Browser:
    """A WebSocket client."""

    def __init__(self, port: int, path: str = "/ws", protocols: str = "") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        key = b"dGhlIHNhbXBsZSBub25jZQ=="
        self.sock.sendall(
            b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n"
            % (
                path.encode(),
                key,
                f"Sec-WebSocket-Protocol: {protocols}\r\n".encode() if protocols else b"",
            )
        )
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            piece = self.sock.recv(65536)
            assert piece, self._buffer
            self._buffer += piece
        self.head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.is_open = b" 101 " in self.head.split(b"\r\n")[0]
        if self.is_open:
            assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in self.head

    def send(self, first: int, data: bytes) -> None:
        self.sock.sendall(websocket.frame(first, data, b"\x01\x02\x03\x04"))

    def _need(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = self.sock.recv(65536)
            assert piece, "closed"
            self._buffer += piece
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def frame(self) -> tuple[int, bytes]:
        """The next frame: first byte and payload."""
        first, size = self._need(2)
        if size == 126:
            size = int.from_bytes(self._need(2), "big")
        elif size == 127:
            size = int.from_bytes(self._need(8), "big")
        return first, self._need(size)

    def close(self) -> None:
        self.sock.close()


def check_websocket(port: int) -> None:
    """Text, binary, fragments, ping, both ways to close."""
    with contextlib.closing(Browser(port)) as browser:
        assert browser.is_open
        browser.send(0x81, "grüße".encode())
        assert browser.frame() == (0x81, "grüße".encode())
        for size in (0, 125, 126, 65535, 65536, 200_000):
            browser.send(0x82, bytes(size))
            assert browser.frame() == (0x82, bytes(size))
        browser.send(0x01, b"in ")
        browser.send(0x89, b"ping")
        browser.send(0x80, b"parts")
        assert {browser.frame(), browser.frame()} == {(0x8A, b"ping"), (0x81, b"in parts")}
        browser.send(0x81, b"close")
        assert browser.frame() == (0x88, b"\x0f\xa0as asked")
    with contextlib.closing(Browser(port)) as browser:
        browser.send(0x88, b"\x03\xe8bye")
        assert browser.frame()[1][:2] == b"\x03\xe8"
        assert browser.sock.recv(10) == b""
