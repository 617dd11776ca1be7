"""CPU time per request of the connector and of the native handlers, on one machine.

A driver speaks the frontend's side of the link; the app behind the connector is a plain uvloop
server, as cheap as Python allows, so that the connector is what is measured.
usage: script/bench connector [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop
import zmq

from bareku.files import write_json
from frontend import link, mongrel2
from frontend.link import Kind

HEADERS: mongrel2.Headers = {
    "REMOTE_ADDR": "127.0.0.1",
    "METHOD": "GET",
    "URL_SCHEME": "http",
    "PATTERN": "/",
    "URI": "/",
    "VERSION": "HTTP/1.1",
    "PATH": "/",
    "host": "shop.localhost",
    "user-agent": "bench/1.0",
    "accept": "*/*",
    "x-forwarded-for": "127.0.0.1",
    "x-forwarded-proto": "http",
    "x-forwarded-port": "80",
    "x-request-id": "0123456789abcdef",
}
TOP = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


class Hello(asyncio.Protocol):
    """Answers every request with 13 bytes."""

    ANSWER = (
        b"HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\nServer: hello\r\n"
        b"Content-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world\n"
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.ANSWER)  # type: ignore[attr-defined]


async def hello() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Hello, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Driver:
    """The frontend's side: keeps `window` requests in flight."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self.socket.last_endpoint.decode()
        self.peer, self.handler = b"", 0
        self._number = 1000

    def greet(self) -> None:
        """Wait for the hello."""
        while True:
            if not self.socket.poll(20_000):
                raise SystemExit("no hello came")
            self.peer, head, _ = self.socket.recv_multipart()
            kind, self.handler, _ = link.decode_head(head) or (b"", 0, ())
            if kind == Kind.HELLO:
                self._say(Kind.WELCOME, b'{"frontend":"bench"}')
                return

    def _say(self, kind: Kind, payload: bytes = b"", *fields: int) -> None:
        head = link.encode_head(kind, self.handler, *fields)
        self.socket.send_multipart([self.peer, head, payload])

    def run(self, count: int, window: int) -> list[float]:
        """`count` requests; the seconds each took."""
        headers = mongrel2.encode_tnetstring(HEADERS)
        request = link.encode_head(Kind.REQUEST, self.handler, 0)
        sock, took, started, sent = self.socket, [], {}, 0
        while len(took) < count:
            while sent < count and sent - len(took) < window:
                self._number += 1
                sent += 1
                message = mongrel2.join_request(b"bench", self._number, b"/", headers, b"")
                started[self._number] = time.perf_counter()
                sock.send_multipart([self.peer, request, message])
            frames = sock.recv_multipart()
            kind, _, fields = link.decode_head(frames[1]) or (b"", 0, ())
            if kind == Kind.BEAT:
                self._say(Kind.ECHO)
            elif kind == Kind.HELLO:  # said again after a pause of ours
                self._say(Kind.WELCOME, b'{"frontend":"bench"}')
            elif kind == Kind.REPLY:
                number = int(frames[2][6 : frames[2].index(b",")].partition(b":")[2])
                took.append(time.perf_counter() - started.pop(number))
            elif kind not in (Kind.CAPACITY,):
                raise SystemExit(f"unexpected {kind!r} {fields}")
        return took


def measure(name: str, driver: Driver, pid: int, count: int) -> dict[str, float]:
    """CPU µs per request at 64 in flight, and the median round trip of one at a time."""
    driver.run(count // 5, 64)
    before, began = cpu_s(pid), time.perf_counter()
    driver.run(count, 64)
    elapsed = time.perf_counter() - began
    spent = cpu_s(pid) - before
    single = sorted(driver.run(count // 20, 1))
    return {
        f"{name}_us": round(spent / count * 1e6, 1),
        f"{name}_per_s": round(count / elapsed),
        f"{name}_round_trip_us": round(single[len(single) // 2] * 1e6, 1),
    }


def connector(folder: Path, count: int) -> dict[str, float]:
    app = subprocess.Popen([sys.executable, "-P", __file__, "app"], stdout=subprocess.PIPE)
    assert app.stdout is not None
    port = int(app.stdout.readline())
    driver = Driver()
    write_json(
        folder / "worker.json",
        {
            "node": "n",
            "processes": [
                {
                    "id": "shop.v1.web.1", "gen": "g", "app": "shop", "type": "web", "index": 1,
                    "release": 1, "state": "running", "ready": True, "pid": app.pid, "port": port,
                }
            ],
        },
    )  # fmt: skip
    conf = {"node": "n", "frontends": [driver.endpoint], "worker": f"{folder}/worker.json"}
    (folder / "handler.yml").write_text(json.dumps({**conf, "run": str(folder)}))
    began = time.perf_counter()
    daemon = subprocess.Popen(
        [sys.executable, "-P", "-m", "appnode.connector", "--config", str(folder / "handler.yml")],
        stderr=subprocess.DEVNULL,
    )
    try:
        driver.greet()
        start_s = time.perf_counter() - began
        figures = measure("connector", driver, daemon.pid, count)
        return {**figures, "connector_start_s": round(start_s, 2)}
    finally:
        for process in (daemon, app):
            process.kill()
            process.wait()


WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world\\n"]
"""
ASGI = """
async def app(scope, receive, send):
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello, world\\n"})
"""


def native(folder: Path, name: str, code: str, count: int) -> dict[str, float]:
    """An app straight on the link."""
    (folder / f"{name}_app.py").write_text(code)
    driver = Driver()
    environ = {**os.environ, "BAREKU_APP": "shop", "PYTHONPATH": f"{TOP}:{folder}"}
    serve = subprocess.Popen(
        [sys.executable, "-P", "-m", "appnode.serve", f"{name}_app:app",
         "--link", driver.endpoint, "--threads", "64"],
        stderr=subprocess.DEVNULL, env=environ,
    )  # fmt: skip
    try:
        driver.greet()
        return measure(name, driver, serve.pid, count)
    finally:
        serve.kill()
        serve.wait()


def main() -> None:
    if sys.argv[1:2] == ["app"]:
        uvloop.run(hello())
        return
    count = 5_000 if "--quick" in sys.argv else 50_000
    with tempfile.TemporaryDirectory() as folder:
        figures = connector(Path(folder), count)
        figures |= native(Path(folder), "wsgi", WSGI, count // 2)
        figures |= native(Path(folder), "asgi", ASGI, count // 2)
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name:32} {value:>10}\n")


if __name__ == "__main__":
    main()
