"""Apps, connectors and a frontend's side of the link, all real and all on 127.0.0.1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bareku.files import write_json
from frontend import link, mongrel2
from frontend.link import Kind

HERE = Path(__file__).parent
DEADLINE_S = 10.0


def wait_for(what: Callable[[], Any], why: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `what` returns something true, and return it."""
    end = time.monotonic() + deadline_s
    while not (found := what()):
        assert time.monotonic() < end, f"waited in vain for {why or what}"
        time.sleep(0.005)
    return found


class App:
    """An app process; `entry` is what the worker says of it."""

    def __init__(self, folder: Path, port: int = 0, name: str = "web.1") -> None:
        self.log_path = folder / f"app-{name}.log"
        self.folder = folder / f"dir-{name}"
        self.folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "app.py"), str(self.log_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PORT": str(port)},
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        kind, _, index = name.partition(".")
        self.entry: dict[str, Any] = {
            "id": f"shop.v1.{name}",
            "gen": "0a1b2c3d4e5f",
            "app": "shop",
            "type": kind,
            "index": int(index),
            "release": 1,
            "token": "s3cret",
            "state": "running",
            "ready": True,
            "pid": self.process.pid,
            "port": self.port,
            "dir": str(self.folder),
        }

    def log(self) -> list[str]:
        return self.log_path.read_text().splitlines()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Frontend:
    """The frontend's side of the link, driven by the test; speaks while it is asked to wait."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:*") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(endpoint)
        self.endpoint = self.socket.last_endpoint.decode()
        self.accepts = True
        self.peer = b""
        self.hellos: dict[int, dict[str, Any]] = {}
        self.seen: list[tuple[bytes, int, tuple[int, ...], bytes]] = []
        self._number = 1_000_000

    def pump(self, timeout_s: float = 0.0) -> None:
        """Take what has come; say welcome and echo."""
        if not self.socket.poll(int(timeout_s * 1000)):
            return
        while self.socket.poll(0):
            peer, head, payload = self.socket.recv_multipart()
            decoded = link.decode_head(head)
            assert decoded is not None, head
            kind, handler, fields = decoded
            if kind == Kind.HELLO:
                self.peer = peer
                if self.accepts:
                    self.hellos[handler] = json.loads(payload)
                    self.send(Kind.WELCOME, handler, payload=b'{"ident":"me","frontend":"front1"}')
                else:
                    self.send(Kind.REJECT, handler, payload=b'{"error":"no such release"}')
            elif kind == Kind.BEAT:
                self.send(Kind.ECHO if handler in self.hellos else Kind.REJECT, handler)
            elif kind == Kind.GOODBYE:
                self.hellos.pop(handler, None)
                self.send(Kind.FAREWELL, handler)
            self.seen.append((kind, handler, fields, payload))

    def send(self, kind: Kind, handler: int, *fields: int, payload: bytes = b"") -> None:
        self.socket.send_multipart([self.peer, link.encode_head(kind, handler, *fields), payload])

    def wait(self, kind: Kind, handler: int | None = None, deadline_s: float = DEADLINE_S) -> Any:
        """The first message of that kind, taken out: `(handler, fields, payload)`."""
        end = time.monotonic() + deadline_s
        while True:
            for message in self.seen:
                if message[0] == kind and handler in (None, message[1]):
                    self.seen.remove(message)
                    return message[1:]
            assert time.monotonic() < end, f"no {kind.name}; there is {self.seen[-20:]}"
            self.pump(0.05)

    def handler(self, process: str = "web.1") -> int:
        """The handler number of a process that said hello."""
        end = time.monotonic() + DEADLINE_S
        while True:
            for number, hello in self.hellos.items():
                if hello["process"] == process:
                    return number
            assert time.monotonic() < end, f"no hello of {process}: {self.hellos}"
            self.pump(0.05)

    def request(
        self,
        target: str,
        *,
        method: str = "GET",
        headers: mongrel2.Headers | None = None,
        body: bytes = b"",
        more: bool = False,
        version: str = "HTTP/1.1",
        handler: int | None = None,
    ) -> int:
        """Send a request; its number."""
        self._number += 1
        path, _, query = target.partition("?")
        server: mongrel2.Headers = {"REMOTE_ADDR": "127.0.0.1", "METHOD": method, "QUERY": query}
        server |= {"URI": target, "VERSION": version, "PATH": path, "host": "shop.localhost"}
        message = mongrel2.encode_request(b"me", self._number, path, server | (headers or {}), body)
        number = self.handler() if handler is None else handler
        self.send(Kind.REQUEST, number, link.MORE if more else 0, payload=message)
        return self._number

    def reply(self, number: int, *, credit: bool = True, deadline_s: float = DEADLINE_S) -> bytes:
        """All bytes of the reply to a request; fails when it was refused or failed."""
        out, spent = b"", 0
        end = time.monotonic() + deadline_s
        while True:
            outcome, data = self.outcome(number, max(0.0, end - time.monotonic()))
            assert outcome in ("reply", "end"), (outcome, data, out[:300])
            out += data
            spent += len(data)
            if outcome == "end":
                return out
            if credit and spent >= 65536:
                self.send(Kind.CREDIT, 0, number, spent)
                spent = 0

    def outcome(self, number: int, deadline_s: float = DEADLINE_S) -> tuple[str, Any]:
        """The next word about a request: reply, end, refuse, fail (with its status)."""
        end = time.monotonic() + deadline_s
        while True:
            for message in self.seen:
                kind, _, fields, payload = message
                found: tuple[str, Any] | None = None
                if kind == Kind.REPLY:
                    reply = mongrel2.decode_reply(payload)
                    if reply.ids == (number,):
                        found = ("end" if fields[0] & link.END else "reply", reply.body)
                elif kind == Kind.REFUSE and fields == (number,):
                    found = ("refuse", None)
                elif kind == Kind.FAIL and fields[0] == number:
                    found = ("fail", fields[1])
                if found:
                    self.seen.remove(message)
                    return found
            assert time.monotonic() < end, f"no word about {number}; there is {self.seen[-20:]}"
            self.pump(0.05)

    def get(self, target: str, **options: Any) -> bytes:
        return self.reply(self.request(target, **options))

    def close(self) -> None:
        self.socket.close()
        self.context.term()


class Connector:
    """A `bareku-handler` process and the worker's status file that it reads."""

    def __init__(self, folder: Path, frontends: list[str], **settings: Any) -> None:
        self.folder = folder
        self.worker_path = folder / "worker.json"
        self.config_path = folder / "handler.yml"
        self.config_path.write_text(
            json.dumps(
                {
                    "node": "web1",
                    "frontends": frontends,
                    "worker": str(self.worker_path),
                    "run": str(folder / "run"),
                    **settings,
                }
            )
        )
        self.errors = (folder / "handler.log").open("a")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "appnode.connector", "--config", str(self.config_path)],
            stderr=self.errors,
        )

    def runs(self, *entries: dict[str, Any]) -> None:
        """Say which processes the worker runs."""
        document = {"format": 1, "daemon": "worker", "node": "web1", "processes": list(entries)}
        write_json(self.worker_path, document)

    def status(self) -> Any:
        return json.loads((self.folder / "run" / "handler.json").read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.errors.close()


class Rig:
    """What a test needs, started on demand and ended after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ends: list[Callable[[], Any]] = []
        # without frontends nobody waits for their farewell
        self._first_ends: list[Callable[[], Any]] = []

    def app(self, name: str = "web.1", port: int = 0) -> App:
        app = App(self.folder, port, name)
        self._ends.append(app.kill)
        return app

    def frontend(self, endpoint: str = "tcp://127.0.0.1:*") -> Frontend:
        frontend = Frontend(endpoint)
        self._first_ends.append(frontend.close)
        return frontend

    def connector(self, *frontends: Frontend, **settings: Any) -> Connector:
        connector = Connector(self.folder, [f.endpoint for f in frontends], **settings)
        self._ends.append(connector.stop)
        return connector

    def close(self) -> None:
        for end in [*self._first_ends, *reversed(self._ends)]:
            end()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend whose connector serves one app; shared by the tests of a module."""
    rig = Rig(tmp_path_factory.mktemp("shop"))
    app, frontend = rig.app(), rig.frontend()
    connector = rig.connector(frontend, timeouts={"first_byte_s": 1.0, "idle_s": 5.0}, capacity=200)
    connector.runs(app.entry)
    frontend.handler()
    frontend.app = app  # type: ignore[attr-defined]
    frontend.connector = connector  # type: ignore[attr-defined]
    yield frontend
    rig.close()
