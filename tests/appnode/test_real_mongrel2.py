"""The same requests, the same handlers: behind a real Mongrel2 and behind bareku-frontend.

Over JSON and over tnetstring; by our native handlers, the connector, and plain handlers in Python
and PHP that know nothing of us.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.appnode import request_set
from tests.appnode.request_set import Browser, ask
from tests.frontend.rig import Frontend, route, until

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PATH = f"{HERE.parents[1]}:{HERE}"
UUID = "f400bf85-4538-4f7a-8908-67e313d515c2"
IDENT = "34f9ceee-cd52-4b7f-b197-88bf2f0ec378"
CONFIG = """
main = Server(uuid="{uuid}", access_log="/logs/access.log", error_log="/logs/error.log",
    chroot="{folder}", default_host="localhost", name="test", pid_file="/run/mongrel2.pid",
    port={port}, bind_addr="127.0.0.1", hosts=[Host(name="localhost", routes={{"/":
        Handler(send_spec="{send}", send_ident="{ident}", recv_spec="{recv}", recv_ident="",
                protocol="{protocol}")}})])
servers = [main]
settings = {{"server.daemonize": 0}}
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


class Server:
    """A Mongrel2 or one of ours, with one handler pair for `/`."""

    def __init__(self, kind: str, protocol: str, folder: Path) -> None:
        self.kind, self.protocol, self.folder = kind, protocol, folder
        self.port, send, recv = free_ports(3)
        self.send, self.recv = f"tcp://127.0.0.1:{send}", f"tcp://127.0.0.1:{recv}"
        self._frontend: Frontend | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.kind == "mongrel2":
            self._start_mongrel2()
        else:
            door = {"app": "shop", "send_spec": self.send, "recv_spec": self.recv}
            self._frontend = Frontend(
                self.folder / "front",
                [route()],
                listen=f"127.0.0.1:{self.port}",
                mongrel2=[{**door, "protocol": self.protocol, "window": 50}],
            ).start()

    def _start_mongrel2(self) -> None:
        for name in ("run", "logs"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "m2.conf").write_text(
            CONFIG.format(
                uuid=UUID, ident=IDENT, folder=self.folder, port=self.port, send=self.send,
                recv=self.recv, protocol=self.protocol,
            )
        )  # fmt: skip
        environ = {**os.environ, "LOGNAME": "test"}
        load = ["m2sh", "load", "-config", "m2.conf", "-db", "config.sqlite"]
        subprocess.run(load, cwd=self.folder, check=True, env=environ, capture_output=True)
        with (self.folder / "mongrel2.log").open("ab") as output:
            self._process = subprocess.Popen(
                ["mongrel2", "config.sqlite", UUID],
                cwd=self.folder, env=environ, stdout=output, stderr=output,
            )  # fmt: skip
        until(self._listens, "mongrel2 listens")

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self) -> None:
        if self._frontend is not None:
            self._frontend.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture(
    params=["mongrel2-json", "mongrel2-tnetstring", "frontend-json", "frontend-tnetstring"]
)
def server(request: Any, tmp_path: Path) -> Iterator[Server]:
    kind, _, protocol = request.param.partition("-")
    if kind == "mongrel2" and not shutil.which("mongrel2"):
        pytest.skip("there is no mongrel2 on this machine")
    server = Server(kind, protocol, tmp_path)
    server.start()
    yield server
    server.stop()


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts handler processes; they are gone when the test ends."""
    started = []

    def start_one(*command: str, **options: Any) -> subprocess.Popen[bytes]:
        with (tmp_path / "handler.log").open("ab") as errors:
            environ = {
                **os.environ,
                "PYTHONPATH": PATH,
                "BAREKU_APP": "shop",
                "BAREKU_RELEASE": "1",
            }
            process = subprocess.Popen(command, cwd=HERE, env=environ, stderr=errors, **options)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def serve(server: Server, start: Start, app: str) -> subprocess.Popen[bytes]:
    pair = ["--mongrel2", server.send, server.recv]
    return start(sys.executable, "-m", "appnode.serve", f"apps:{app}", *pair, "--threads", "20")


def connect(server: Server, start: Start, tmp_path: Path, port: int) -> subprocess.Popen[bytes]:
    process = {
        "id": "shop.v1.web.1", "gen": "g", "app": "shop", "type": "web", "index": 1, "release": 1,
        "state": "running", "ready": True, "pid": 1, "port": port,
    }  # fmt: skip
    worker = tmp_path / "worker.json"
    worker.write_text(json.dumps({"node": "web1", "processes": [process]}))
    pair = {"app": "shop", "send_spec": server.send, "recv_spec": server.recv}
    conf = {"node": "web1", "mongrel2": [pair], "worker": str(worker), "run": str(tmp_path / "c")}
    (tmp_path / "handler.yml").write_text(json.dumps(conf))
    return start(
        sys.executable, "-m", "appnode.connector", "--config", str(tmp_path / "handler.yml")
    )


def port_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def check_all(port: int) -> None:
    request_set.check_plain(port)
    request_set.check_large(port)
    request_set.check_connections(port)
    request_set.check_failures(port)


@pytest.mark.parametrize("app", ["wsgi", "asgi"])
def test_native_handlers_answer_the_request_set(server: Server, start: Start, app: str) -> None:
    serve(server, start, app)
    check_all(server.port)
    request_set.check_bad_header(server.port)
    if app == "asgi":
        request_set.check_websocket(server.port)


def test_connector_answers_the_request_set(server: Server, start: Start, tmp_path: Path) -> None:
    app = start(sys.executable, "port_app.py", stdout=subprocess.PIPE)
    connect(server, start, tmp_path, port_of(app))
    check_all(server.port)


def test_connector_passes_websockets(server: Server, start: Start, tmp_path: Path) -> None:
    app = start(sys.executable, "app.py", str(tmp_path / "app.log"), stdout=subprocess.PIPE)
    connect(server, start, tmp_path, port_of(app))
    with contextlib.closing(Browser(server.port, "/frames")) as browser:
        assert browser.is_open
        for size in (0, 5, 125, 126, 70_000):
            browser.send(0x82, bytes(size))
            assert browser.frame() == (0x82, bytes(size))
        for number in range(100):  # more messages than Mongrel2 would queue
            browser.send(0x81, b"%d" % number)
        assert [browser.frame()[1] for _ in range(100)] == [b"%d" % n for n in range(100)]


@pytest.mark.parametrize("language", ["python", "php"])
def test_plain_handlers_answer_simple_requests(server: Server, start: Start, language: str) -> None:
    if server.protocol != "json":
        pytest.skip("a plain handler speaks one protocol")
    if language == "php" and not shutil.which("php"):
        pytest.skip("there is no php on this machine")
    command = (
        [sys.executable, "handlers/plain.py"]
        if language == "python"
        else ["php", "handlers/plain.php"]
    )
    start(*command, server.send, server.recv)
    until(lambda: answers(server.port), "first answer")
    assert ask(server.port, "/say?a=b", x_test="yes")[1] == b"GET|a=b|yes|/say"
    for body in (b"", b"x", bytes(range(256)) * 40):
        assert ask(server.port, "/echo", "POST", body)[:2] == (200, body)
    assert ask(server.port, "/nowhere")[0] == 404
    for number in range(20):
        assert ask(server.port, f"/say?n={number}")[1] == b"GET|n=%d||/say" % number


def answers(port: int) -> bool:
    """Whether the handler's replies arrive by now: its PUB may be too early for the server."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
        sock.sendall(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return b"Hello, world" in sock.recv(65536)
    return False


def test_first_reply_of_a_starting_handler_is_not_lost(server: Server, start: Start) -> None:
    """A request waits before the handler is there; its answer must find the server subscribed."""
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), 15) as sock:
            sock.sendall(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
            process = serve(server, start, "wsgi")
            assert b"Hello, world" in sock.recv(65536)
        process.terminate()
        assert process.wait(15) == 0


def test_bursts_of_pieces_are_whole(server: Server, start: Start) -> None:
    """Mongrel2 cuts a connection with seventeen messages queued."""
    serve(server, start, "asgi")
    want = b"".join(b"piece%02d" % (n % 100) for n in range(64))
    for _ in range(20):
        assert ask(server.port, "/pieces?n=64")[:2] == (200, want)


def test_requests_in_flight_are_answered_after_term(server: Server, start: Start) -> None:
    process = serve(server, start, "asgi")
    with socket.create_connection(("127.0.0.1", server.port), 15) as sock:
        assert ask(server.port, "/hello")[0] == 200
        sock.sendall(b"GET /drip?n=20&s=0.05 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = sock.recv(65536)
        process.terminate()
        while b"piece19" not in got:
            piece = sock.recv(65536)
            assert piece, got
            got += piece
        assert process.wait(15) == 0


def test_server_that_restarts_is_found_again(server: Server, start: Start) -> None:
    serve(server, start, "wsgi")
    assert ask(server.port, "/hello")[0] == 200
    server.stop()
    server.start()
    assert ask(server.port, "/hello")[0] == 200


def test_upload_that_the_server_keeps_in_a_file_is_refused(server: Server, start: Start) -> None:
    """Whoever opened the named file would open any file that a client names."""
    serve(server, start, "wsgi")
    names = {"x_mongrel2_upload_start": "/etc/passwd", "x_mongrel2_upload_done": "/etc/passwd"}
    status, body, _ = ask(server.port, "/echo", "POST", b"x", **names)
    assert b"root" not in body
    # ours strips what a client says of uploads, Mongrel2 passes it on
    assert (status, body) == (200, b"x") if server.kind == "frontend" else status == 413
    assert ask(server.port, "/hello")[0] == 200
