"""A real frontend process and real handlers for it; each test has its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml
import zmq

from frontend.link import END, WINDOW, Hello, Kind, decode_head, encode_head
from frontend.mongrel2 import Request, decode_request, encode_reply

DEADLINE_S = 15.0


def until(question: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """The first true answer to `question`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


def route(app: str = "shop", release: int = 1, **fields: Any) -> dict[str, Any]:
    return {"host": "*", "prefix": "/", "app": app, "release": release, "token": "", **fields}


class Frontend:
    """`bareku-frontend` in a folder."""

    def __init__(self, folder: Path, routes: list[dict[str, Any]], **config: Any) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.routes_file = folder / "routes.json"
        self.version = 0
        self.route(*routes)
        self.config = {
            "name": "front1",
            "listen": "127.0.0.1:0",
            "link": "tcp://127.0.0.1:0",
            "run": str(folder / "run"),
            "routes": str(self.routes_file),
            "access_log": str(folder / "access.log"),
            **config,
        }
        (folder / "frontend.yml").write_text(yaml.safe_dump(self.config))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **popen: Any) -> Frontend:
        status = self.folder / "run" / "frontend.json"
        status.unlink(missing_ok=True)
        with (self.folder / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "frontend.server", "--config", str(self.folder / "frontend.yml"),
                 *(["-v"] if os.environ.get("BAREKU_TEST_VERBOSE") else [])],
                stderr=stderr, **popen,
            )  # fmt: skip
        until(lambda: self.process.poll() is not None or self.is_up(), "frontend up")
        assert self.process.poll() is None, self.log()
        return self

    def is_up(self) -> bool:
        status = self.status()
        return status.get("health") in ("ok", "degraded") and bool(status.get("listen"))

    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def status(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "run" / "frontend.json").read_text())
        except FileNotFoundError:
            return {}

    @property
    def port(self) -> int:
        return int(self.status()["listen"][0].rpartition(":")[2])

    @property
    def link(self) -> str:
        return f"tcp://{self.status()['link']}"

    def route(self, *routes: dict[str, Any], version: int | None = None) -> None:
        """Write the table as an operator would."""
        self.version = version or self.version + 1
        document = {
            "p": 1, "cluster": "bareku", "frontend": "front1", "epoch": 1,
            "version": self.version, "routes": list(routes),
        }  # fmt: skip
        temporary = self.routes_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(document))
        temporary.replace(self.routes_file)

    def reroute(self, *routes: dict[str, Any]) -> None:
        self.route(*routes)
        until(lambda: self.status().get("have") == self.version, "table used")

    def handlers(self, app: str = "shop", release: int = 1) -> int:
        return self.status().get("handlers", {}).get(app, {}).get(str(release), 0)

    def wait_handlers(self, count: int, app: str = "shop", release: int = 1) -> None:
        until(lambda: self.handlers(app, release) == count, f"{count} handlers of {app} v{release}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    # clients

    def get(
        self, path: str = "/", method: str = "GET", body: Any = None, timeout: float = DEADLINE_S,
        **headers: str,
    ) -> tuple[int, bytes]:  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(
                method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}
            )
            response = connection.getresponse()
            return response.status, response.read()

    def connect(self, timeout: float = DEADLINE_S) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def raw(self, data: bytes, timeout: float = 5.0) -> bytes:
        """Everything the frontend says to these bytes until it closes or is silent."""
        with self.connect(timeout) as sock:
            sock.sendall(data)
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return data


def read_response(sock: socket.socket, have: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """`(head, body, what came after)` of one response with a Content-Length."""
    while b"\r\n\r\n" not in have:
        piece = sock.recv(65536)
        assert piece, f"closed after {have!r}"
        have += piece
    head, _, rest = have.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(rest) < length:
        piece = sock.recv(65536)
        assert piece, f"closed within the body after {rest!r}"
        rest += piece
    return head, rest[:length], rest[length:]


def ok(body: bytes, *, status: str = "200 OK", fields: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Handler:
    """A handler on the link: a DEALER in a thread, `app(handler, request)` in the same one.

    `app` returns the whole reply, or None when it said everything itself by `reply` and so on.
    """

    def __init__(
        self,
        link: str,
        app: Callable[[Handler, Request], bytes | None] | None = None,
        *,
        name: str = "shop",
        release: int = 1,
        process: str = "web.1",
        capacity: int = 10,
        token: str = "",
        beats: bool = True,
    ) -> None:
        self.hello = Hello(name, release, process, "node1", capacity, token)
        self._app = app or (lambda _, request: ok(process.encode()))
        self._beats = beats
        self._link = link
        self.outbox: list[tuple[bytes, bytes]] = []
        self._end = threading.Event()
        self.requests: list[Request] = []
        self.heads: list[tuple[bytes, tuple[int, ...]]] = []
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.cancelled: list[int] = []
        self.credits: dict[int, int] = {}
        self.welcome: dict[str, str] = {}
        self.rejected: list[str] = []
        self.said_farewell = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Handler:
        self.thread.start()
        until(lambda: self.welcome or self.rejected, "an answer to hello")
        return self

    def say(self, kind: Kind, *fields: int, payload: bytes = b"") -> None:
        """Only from the handler's own thread, or before it started."""
        self._socket.send_multipart([encode_head(kind, 1, *fields), payload])

    def later(self, kind: Kind, *fields: int, payload: bytes = b"") -> None:
        """From any thread; sent within some milliseconds."""
        self.outbox.append((encode_head(kind, 1, *fields), payload))

    def reply(self, number: int, data: bytes, *, end: bool = True) -> None:
        payload = encode_reply(self.welcome["ident"].encode(), [number], data)
        self.say(Kind.REPLY, END if end else 0, payload=payload)

    def reply_later(self, number: int, data: bytes, *, end: bool = True) -> None:
        payload = encode_reply(self.welcome["ident"].encode(), [number], data)
        self.later(Kind.REPLY, END if end else 0, payload=payload)

    def stop(self) -> None:
        """Vanish without a word."""
        self._end.set()
        self.thread.join()

    def _run(self) -> None:
        context = zmq.Context()
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(self._link)
        try:
            self.say(Kind.HELLO, payload=msgspec.json.encode(self.hello))
            beat_at = time.monotonic() + 1
            while not self._end.is_set():
                while self.outbox:
                    self._socket.send_multipart(list(self.outbox.pop(0)))
                if self._beats and time.monotonic() > beat_at:
                    beat_at += 1
                    self.say(Kind.BEAT)
                if self._socket.poll(5):
                    self._on_message(*self._socket.recv_multipart())
        finally:
            context.destroy(linger=0)

    def _on_message(self, head: bytes, payload: bytes) -> None:
        decoded = decode_head(head)
        assert decoded is not None, head
        kind, _, fields = decoded
        self.heads.append((kind, fields))
        if kind == Kind.WELCOME:
            self.welcome = json.loads(payload)
        elif kind == Kind.REJECT:
            self.rejected.append(json.loads(payload)["error"])
            if self.welcome:
                self.say(Kind.HELLO, payload=msgspec.json.encode(self.hello))
        elif kind == Kind.REQUEST:
            request = decode_request(payload)
            self.requests.append(request)
            self.bodies[request.id] = request.body
            if not fields[0]:
                self.ended.add(request.id)
            answer = self._app(self, request)
            if answer is not None:
                self.reply(request.id, answer)
        elif kind == Kind.BODY:
            self.bodies[fields[0]] += payload
            if fields[1] & END:
                self.ended.add(fields[0])
            self.on_body(fields[0], payload)
        elif kind == Kind.CANCEL:
            self.cancelled.append(fields[0])
        elif kind == Kind.CREDIT:
            self.credits[fields[0]] = self.credits.get(fields[0], 0) + fields[1]
        elif kind == Kind.FAREWELL:
            self.said_farewell = True

    def on_body(self, number: int, data: bytes) -> None:
        """For tests to replace."""


@contextlib.contextmanager
def running(*things: Any) -> Iterator[None]:
    """Stop handlers when the test ends."""
    try:
        yield
    finally:
        for thing in things:
            thing.stop()


__all__ = ["WINDOW", "Frontend", "Handler", "ok", "read_all", "read_response", "route", "until"]
