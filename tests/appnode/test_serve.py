"""`bareku-serve`: WSGI and ASGI apps straight on the link of a real frontend."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.appnode import request_set
from tests.appnode.request_set import Browser, ask
from tests.frontend.rig import Frontend, route, until

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
MIB = 2**20


class Serve:
    """A `bareku-serve` process."""

    def __init__(self, app: str, *arguments: str, folder: Path, **environ: str) -> None:
        self.log_path = folder / "app.log"
        self.log_path.touch()
        self.errors = folder / "serve.log"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "appnode.serve", f"apps:{app}", *arguments],
                cwd=HERE,
                stderr=errors,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{HERE.parents[1]}:{HERE}",
                    "BAREKU_APP": "shop",
                    "BAREKU_RELEASE": "1",
                    "BAREKU_PROCESS": "web.1",
                    "APP_LOG": str(self.log_path),
                    **environ,
                },
            )

    def log(self) -> list[str]:
        return self.log_path.read_text().splitlines()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    folder = tmp_path_factory.mktemp("front")
    frontend = Frontend(folder, [route(token="s3cret")]).start()
    yield frontend
    frontend.close()


@pytest.fixture(params=["wsgi", "asgi"])
def served(request: Any, frontend: Frontend, tmp_path: Path) -> Iterator[Serve]:
    environ = {"BAREKU_LINK": frontend.link, "BAREKU_LINK_TOKEN": "s3cret"}
    serve = Serve(request.param, folder=tmp_path, **environ)
    frontend.wait_handlers(1)
    serve.kind = request.param  # type: ignore[attr-defined]
    yield serve
    serve.stop()
    frontend.wait_handlers(0)


def test_request_set_is_answered(served: Serve, frontend: Frontend) -> None:
    request_set.check_plain(frontend.port)
    request_set.check_large(frontend.port)
    request_set.check_connections(frontend.port)
    request_set.check_failures(frontend.port)
    request_set.check_bad_header(frontend.port)


def test_uploads_stream_into_the_app(served: Serve, frontend: Frontend) -> None:
    data = os.urandom(3 * MIB)
    assert ask(frontend.port, "/echo", "POST", data)[:2] == (200, data)
    pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    assert ask(frontend.port, "/echo", "POST", iter(pieces))[:2] == (200, data)


def test_large_bodies_take_little_memory(served: Serve, frontend: Frontend) -> None:
    process = psutil.Process(served.process.pid)
    ask(frontend.port, "/hello")
    before = process.memory_info().rss
    count = 64 * MIB
    body = (bytes(MIB) for _ in range(count // MIB))
    assert ask(frontend.port, "/count", "POST", body)[1] == str(count).encode()
    assert process.memory_info().rss - before < 16 * MIB


def test_first_pieces_arrive_before_the_last(served: Serve, frontend: Frontend) -> None:
    with socket.create_connection(("127.0.0.1", frontend.port), 10) as sock:
        began = time.monotonic()
        sock.sendall(b"GET /drip?n=5&s=0.2 HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while b"piece00" not in got:
            got += sock.recv(65536)
        assert time.monotonic() - began < 0.6
        assert b"piece02" not in got


def test_app_hears_when_the_client_goes(served: Serve, frontend: Frontend) -> None:
    with socket.create_connection(("127.0.0.1", frontend.port), 10) as sock:
        path = b"/drip?n=100&s=0.05" if served.kind == "wsgi" else b"/wait"  # type: ignore[attr-defined]
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
        until(served.log, "request")
    last = "closed" if served.kind == "wsgi" else "disconnected"  # type: ignore[attr-defined]
    until(lambda: served.log()[-1] == last, "disconnect")


def test_requests_in_flight_are_answered_after_term(served: Serve, frontend: Frontend) -> None:
    with socket.create_connection(("127.0.0.1", frontend.port), 10) as sock:
        sock.sendall(b"GET /sleep?s=0.7 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(served.log, "request")
        assert served.stop() == 0
        got = b""
        while not got.endswith(b"slept"):
            piece = sock.recv(65536)
            assert piece, got
            got += piece


def test_websockets(frontend: Frontend, tmp_path: Path) -> None:
    environ = {"BAREKU_LINK": frontend.link, "BAREKU_LINK_TOKEN": "s3cret"}
    serve = Serve("asgi", folder=tmp_path, **environ)
    try:
        frontend.wait_handlers(1)
        request_set.check_websocket(frontend.port)
        with contextlib.closing(Browser(frontend.port, "/no")) as browser:
            assert b" 403 " in browser.head
        with contextlib.closing(Browser(frontend.port, protocols="chat, other")) as browser:
            assert b"ec-WebSocket-Protocol: chat\r\n" in browser.head + b"\r\n"
        until(lambda: "gone 1006" in serve.log(), "disconnect")
        with contextlib.closing(Browser(frontend.port)) as browser:
            browser.sock.sendall(b"\x81\x01x")  # not masked
            assert browser.frame()[1][:2] == b"\x03\xea"
    finally:
        assert serve.stop() == 0
    assert [line for line in serve.log() if line.startswith("lifespan")] == [
        "lifespan.startup",
        "lifespan.shutdown",
    ]
    frontend.wait_handlers(0)


def test_ready_file_is_made_when_a_frontend_has_said_welcome(
    frontend: Frontend, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    environ = {"BAREKU_LINK": frontend.link, "DIPROC_READY": str(ready)}
    wrong = Serve("wsgi", folder=tmp_path, BAREKU_TOKEN="wrong", **environ)
    try:
        until(lambda: b"frontend reached" in wrong.errors.read_bytes(), "connection")
        assert not until_or_not(ready.exists, 1.0)
    finally:
        wrong.stop()
    right = Serve("wsgi", folder=tmp_path, BAREKU_TOKEN="s3cret", **environ)
    try:
        until(ready.exists, "ready file")
        assert ask(frontend.port, "/hello")[0] == 200
    finally:
        right.stop()
    frontend.wait_handlers(0)


def until_or_not(question: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it comes true within that time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if question():
            return True
        time.sleep(0.01)
    return False


def test_many_at_once(served: Serve, frontend: Frontend) -> None:
    """More requests than the app takes at once wait at the frontend."""
    socks = [socket.create_connection(("127.0.0.1", frontend.port), 20) for _ in range(30)]
    for sock in socks:
        sock.sendall(b"GET /sleep?s=0.05 HTTP/1.1\r\nHost: a\r\n\r\n")
    for sock in socks:
        got = b""
        while not got.endswith(b"slept"):
            piece = sock.recv(65536)
            assert piece, got
            got += piece
        sock.close()


@pytest.mark.parametrize(
    ("arguments", "environ", "error"),
    [
        (["nosuch:app"], {"BAREKU_LINK": "tcp://127.0.0.1:1"}, "there is no module 'nosuch'"),
        (["apps:nosuch"], {"BAREKU_LINK": "tcp://127.0.0.1:1"}, "apps has no 'nosuch'"),
        (["apps:wsgi"], {}, "no frontend is known"),
        (
            ["apps:wsgi"],
            {"BAREKU_LINK": "tcp://127.0.0.1:1", "BAREKU_RELEASE": "x"},
            "must be a number",
        ),
    ],
)
def test_what_cannot_be_served_is_told(
    arguments: list[str], environ: dict[str, str], error: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appnode.serve", *arguments],
        cwd=HERE, capture_output=True, text=True, timeout=20, check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), **environ},
    )  # fmt: skip
    assert done.returncode == 1
    assert error in done.stderr
