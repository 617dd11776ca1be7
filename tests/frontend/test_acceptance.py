"""What a real Mongrel2 loses, mixes up or breaks off, and this frontend must not."""

from __future__ import annotations

import collections
import concurrent.futures
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from frontend import mongrel2
from frontend.link import Kind
from frontend.mongrel2 import Request
from tests.frontend.rig import Frontend, Handler, ok, until

pytestmark = pytest.mark.slow

Start = Callable[..., Frontend]
Serve = Callable[..., Handler]
HANDLER = Path(__file__).parent / "handler.py"
PHP = Path(__file__).parent / "data" / "handler.php"
IDENT = "34f9ceee-cd52-4b7f-b197-88bf2f0ec378"


def pair_door(process: str = "web.1", **fields: Any) -> dict[str, Any]:
    ends = {"send_spec": "tcp://127.0.0.1:0", "recv_spec": "tcp://127.0.0.1:0"}
    return {"app": "shop", "process": process, **ends, **fields}


class Processes:
    """Handler processes that can be killed and started again."""

    def __init__(self, frontend: Frontend, log: Path, kind: str, work_s: float) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._frontend = frontend
        self._log = log
        self._kind = kind
        self._work_s = work_s

    def start(self, name: str) -> None:
        if self._kind == "link":
            ends = [self._frontend.link]
        else:
            pairs = {pair["process"]: pair for pair in self._frontend.status()["mongrel2"]}
            ends = [pairs[name]["send"], pairs[name]["recv"]]
        argv = [sys.executable, str(HANDLER), self._kind, *ends, name, str(self._work_s)]
        self.running[name] = subprocess.Popen([*argv, str(self._log)])

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        for name in list(self.running):
            self.kill(name)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    made: list[Processes] = []

    def make(frontend: Frontend, kind: str, work_s: float) -> Processes:
        made.append(Processes(frontend, tmp_path / "executed", kind, work_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("kind", ["link", "pair"])
def test_four_kills_at_95_percent_load_lose_nothing_and_repeat_no_post(
    kind: str, start: Start, processes: Callable[..., Processes], tmp_path: Path
) -> None:
    names = ["web.1", "web.2"]
    doors = [pair_door(name) for name in names] if kind == "pair" else []
    frontend = start(mongrel2=doors)
    handlers = processes(frontend, kind, 0.016)
    for name in names:
        handlers.start(name)
    frontend.wait_handlers(2)
    port, statuses = frontend.port, collections.Counter[tuple[str, int]]()

    def visit(number: int) -> None:
        time.sleep(max(0.0, began + number / 100 - time.monotonic()))
        method = "POST" if number % 5 == 0 else "GET"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request(method, f"/{number}", b"x" if method == "POST" else None)
            status = connection.getresponse().status
        except OSError:
            status = 0
        finally:
            connection.close()
        statuses[method, status] += 1

    began = time.monotonic() + 0.2
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        visits = [pool.submit(visit, number) for number in range(700)]
        for turn in range(4):
            time.sleep(max(0.0, began + 1 + turn * 1.5 - time.monotonic()))
            handlers.kill(names[turn % 2])
            handlers.start(names[turn % 2])
        for done in visits:
            done.result()
    assert statuses["GET", 200] == 560, statuses
    assert statuses["POST", 200] + statuses["POST", 502] == 140, statuses
    assert statuses["POST", 502] <= 4  # one for each kill at the most
    executed = collections.Counter((tmp_path / "executed").read_text().splitlines())
    posts = {line: count for line, count in executed.items() if line.startswith("POST")}
    assert set(posts.values()) == {1}


def test_rolling_replacement_under_load_loses_nothing(start: Start, serve: Serve) -> None:
    frontend = start()
    current = serve(frontend, process="old")
    answers: list[tuple[int, bytes]] = []
    end = threading.Event()

    def visit() -> None:
        while not end.is_set():
            answers.append(frontend.get("/", "POST", b"x"))

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()

    for turn in range(6):
        fresh = serve(frontend, process=f"new.{turn}")
        current.later(Kind.GOODBYE)
        until(lambda leaving=current: leaving.said_farewell, "farewell")
        current.stop()
        current = fresh
    end.set()
    for visitor in visitors:
        visitor.join()
    assert {status for status, _ in answers} == {200}


class Classic:
    """A classic Mongrel2 handler in a thread: PUB first, replies at once."""

    def __init__(self, pair: dict[str, Any], app: Callable[[Request], list[bytes]]) -> None:
        self._pair = pair
        self._app = app
        self._end = threading.Event()
        self.requests: list[Request] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        pull, pub = context.socket(zmq.PULL), context.socket(zmq.PUB)
        pull.connect(self._pair["send"])
        pub.connect(self._pair["recv"])
        while not self._end.is_set():
            if pull.poll(5):
                request = mongrel2.decode_request(pull.recv())
                self.requests.append(request)
                if not request.is_disconnect:
                    for reply in self._app(request):
                        pub.send(mongrel2.encode_reply(request.ident, [request.id], reply))
        context.destroy(linger=0)

    def stop(self) -> None:
        self._end.set()
        self.thread.join()


def test_first_reply_of_a_classic_handler_is_never_lost(start: Start) -> None:
    frontend = start(mongrel2=[pair_door()])
    pair = frontend.status()["mongrel2"][0]
    for turn in range(30):
        answers: list[tuple[int, bytes]] = []
        visitor = threading.Thread(target=lambda: answers.append(frontend.get(timeout=5)))  # noqa: B023
        visitor.start()
        classic = Classic(pair, lambda _: [ok(b"first")])
        visitor.join()
        classic.stop()
        assert answers == [(200, b"first")], turn


@pytest.mark.parametrize("messages", [17, 64, 300])
def test_burst_of_small_messages_arrives_whole(start: Start, messages: int) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {messages * 10}\r\n\r\n".encode()
    parts = [head, *[b"0123456789"] * messages]
    frontend = start(mongrel2=[pair_door()])
    classic = Classic(frontend.status()["mongrel2"][0], lambda _: parts)
    try:
        for _ in range(20):
            assert frontend.get() == (200, b"0123456789" * messages)
    finally:
        classic.stop()


def test_slow_worker_gets_less(start: Start, serve: Serve) -> None:
    def working(seconds: float) -> Callable[[Handler, Request], bytes]:
        def work(_: Handler, request: Request) -> bytes:
            time.sleep(seconds)
            return ok(b"x")

        return work

    frontend = start()
    serve(frontend, working(0.01), process="quick", capacity=1)
    serve(frontend, working(0.2), process="slow", capacity=1)
    frontend.wait_handlers(2)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        statuses = list(pool.map(lambda _: frontend.get()[0], range(60)))
    assert statuses == [200] * 60
    assert time.monotonic() - began < 2.5  # 0.57 s of work; Mongrel2 needs 6


def test_late_reply_after_a_restart_reaches_nobody(start: Start) -> None:
    """The same ident and pair before and after, as a classic configuration has it."""
    door = pair_door(send_ident=IDENT, recv_ident="")
    frontend = start(mongrel2=[door])
    pair = frontend.status()["mongrel2"][0]
    context: zmq.Context[Any] = zmq.Context()
    try:
        pull, pub = context.socket(zmq.PULL), context.socket(zmq.PUB)
        pull.connect(pair["send"])
        pub.connect(pair["recv"])
        alice = threading.Thread(
            target=lambda: frontend.raw(b"GET /alice HTTP/1.1\r\nHost: a\r\n\r\n")
        )
        alice.start()
        first = mongrel2.decode_request(pull.recv())
        frontend.stop(9)
        alice.join()
        door.update(send_spec=pair["send"], recv_spec=pair["recv"])
        (frontend.folder / "frontend.yml").write_text(
            json.dumps({**frontend.config, "mongrel2": [door]})
        )
        frontend.start()
        frontend.wait_handlers(1)
        bob: list[tuple[int, bytes]] = []
        visitor = threading.Thread(target=lambda: bob.append(frontend.get("/bob")))
        visitor.start()
        second = mongrel2.decode_request(pull.recv())
        pub.send(mongrel2.encode_reply(first.ident, [first.id], ok(b"ALICE-SECRET")))
        pub.send(mongrel2.encode_reply(first.ident, list(range(1, 129)), ok(b"SPRAY")))
        pub.send(mongrel2.encode_reply(second.ident, [second.id], ok(b"bob's")))
        visitor.join()
        assert bob == [(200, b"bob's")]
    finally:
        context.destroy(linger=0)


def test_idle_connections_cost_little_memory(start: Start, serve: Serve) -> None:
    frontend = start()
    serve(frontend)

    def rss() -> int:
        assert frontend.process is not None
        return int(Path(f"/proc/{frontend.process.pid}/statm").read_text().split()[1]) * 4096

    def visited() -> Any:
        sock = frontend.connect()
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1000)
        return sock

    socks = [visited() for _ in range(100)]
    before = rss()
    socks += [visited() for _ in range(500)]
    grown = (rss() - before) / 500
    for sock in socks:
        sock.close()
    assert grown < 6 * 1024  # Mongrel2: 70 KiB


SMUGGLED = [
    b"Content-Length: 4\r\nTransfer-Encoding: chunked",
    b"Content-Length: 99999999999",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Content-Length: 0\r\nContent-Length: 40",
    b"Content-Length: 4\nX: y",
]


def test_smuggled_requests_reach_no_handler(start: Start, serve: Serve) -> None:
    frontend = start(timeouts={"body_s": 0.5})
    handler = serve(frontend)
    hidden = b"0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    for fields in SMUGGLED:
        answer = frontend.raw(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n" + hidden)
        assert answer[9:12] in (b"400", b"501", b"408"), fields
        assert answer.count(b"HTTP/1.1 ") == 1
    assert not handler.requests


# the same handlers behind a real Mongrel2 and behind us

ASKED: list[tuple[str, str, bytes | None, dict[str, str]]] = [
    ("GET", "/", None, {}),
    ("GET", "/a/b%20c?x=1&y=%2f", None, {"X-Test": 'quo"te\\'}),
    ("POST", "/form", b"a=1&b=2", {"Content-Type": "application/x-www-form-urlencoded"}),
    ("PUT", "/put", b'{"k": "v"}', {"X-Test": "z"}),
    ("DELETE", "/d?", None, {}),
]


def answers_of(port: int) -> list[Any]:
    found = []
    for method, target, body, headers in ASKED:
        connection = http.client.HTTPConnection("localhost", port, timeout=10)
        connection.request(method, target, body, {"Host": "localhost", **headers})
        response = connection.getresponse()
        found.append((response.status, json.loads(response.read())))
        connection.close()
    return found


class RealMongrel2:
    """mongrel2-core in a folder, one handler pair."""

    def __init__(self, folder: Path, protocol: str) -> None:
        for name in ("run", "logs", "tmp"):
            (folder / name).mkdir(parents=True)
        with zmq.Context() as context, context.socket(zmq.PUSH) as sock:
            ports = [sock.bind_to_random_port("tcp://127.0.0.1") for _ in range(3)]
        self.port = ports[0]
        self.ends = [f"tcp://127.0.0.1:{port}" for port in ports[1:]]
        (folder / "m2.conf").write_text(
            f"h = Handler(send_spec='{self.ends[0]}', send_ident='{IDENT}',\n"
            f"  recv_spec='{self.ends[1]}', recv_ident='', protocol='{protocol}')\n"
            f'main = Server(uuid="{IDENT}", access_log="/logs/a", error_log="/logs/e",\n'
            f'  chroot="{folder}", default_host="localhost", name="t", pid_file="/run/p",\n'
            f'  port={self.port}, hosts=[Host(name="localhost", routes={{"/": h}})])\n'
            'settings = {"server.daemonize": 0}\nservers = [main]\n'
        )
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        load = ["m2sh", "load", "-config", "m2.conf", "-db", "config.sqlite"]
        subprocess.run(load, cwd=folder, check=True, **quiet)
        self.process = subprocess.Popen(["mongrel2", "config.sqlite", IDENT], cwd=folder, **quiet)


@pytest.mark.parametrize(
    ("protocol", "language"), [("json", "python"), ("tnetstring", "python"), ("json", "php")]
)
def test_handler_answers_the_same_behind_mongrel2_and_behind_us(
    start: Start, tmp_path: Path, protocol: str, language: str
) -> None:
    real = RealMongrel2(tmp_path / "real", protocol)
    frontend = start(mongrel2=[pair_door(protocol=protocol)])
    pair = frontend.status()["mongrel2"][0]
    started = [real.process]
    try:
        for ends in (real.ends, [pair["send"], pair["recv"]]):
            if language == "php":
                argv = ["php", str(PHP), *ends]
            else:
                argv = [
                    sys.executable,
                    str(HANDLER),
                    "pair",
                    *ends,
                    "h",
                    "0",
                    str(tmp_path / "log"),
                ]
            started.append(subprocess.Popen(argv))
        frontend.wait_handlers(1)
        ours = answers_of(frontend.port)
        time.sleep(0.3)  # the real one has no way to say that it is ready
        theirs = answers_of(real.port)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert ours == theirs
    assert [status for status, _ in ours] == [200] * len(ASKED)


def test_second_process_cannot_join_a_pair(start: Start) -> None:
    frontend = start(mongrel2=[pair_door(send_ident=IDENT, recv_ident="")])
    pair = frontend.status()["mongrel2"][0]
    first = Classic(pair, lambda _: [ok(b"first")])
    frontend.wait_handlers(1)
    thief = Classic(pair, lambda _: [ok(b"PWNED")])
    try:
        until(lambda: "second process refused" in frontend.log(), "refused")
        assert {frontend.get() for _ in range(20)} == {(200, b"first")}
        assert not thief.requests
        first.stop()  # the next one takes over
        until(lambda: frontend.get(timeout=20) == (200, b"PWNED"), "next process")
    finally:
        first.stop()
        thief.stop()


def test_shared_pair_deals_to_any_number_of_processes(start: Start) -> None:
    frontend = start(mongrel2=[pair_door(kind="shared")])
    pair = frontend.status()["mongrel2"][0]
    classics = [Classic(pair, lambda _, n=n: [ok(b"%d" % n)]) for n in range(3)]  # type: ignore[misc]
    try:
        until(
            lambda: {frontend.get()[1] for _ in range(6)} == {b"0", b"1", b"2"}, "all three serve"
        )
    finally:
        for classic in classics:
            classic.stop()


def test_body_too_large_for_a_pair_is_413(start: Start) -> None:
    frontend = start(mongrel2=[pair_door()])
    classic = Classic(frontend.status()["mongrel2"][0], lambda r: [ok(b"%d" % len(r.body))])
    try:
        assert frontend.get("/", "POST", bytes(20_480)) == (200, b"20480")
        assert frontend.get("/", "POST", bytes(20_481))[0] == 413
        assert (
            frontend.raw(
                b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 99999\r\n\r\n"
                + bytes(99999)
            )[9:12]
            == b"413"
        )
        assert frontend.get() == (200, b"0")
    finally:
        classic.stop()


def test_long_poll_lives_by_keep_alive_messages_and_dies_without(start: Start) -> None:
    frontend = start(mongrel2=[pair_door(window=2)], timeouts={"first_byte_s": 1, "stream_s": 1})
    pair = frontend.status()["mongrel2"][0]
    context: zmq.Context[Any] = zmq.Context()
    try:
        pull, pub = context.socket(zmq.PULL), context.socket(zmq.PUB)
        pull.connect(pair["send"])
        pub.connect(pair["recv"])
        answers: dict[str, tuple[int, bytes]] = {}
        visitors = [
            threading.Thread(target=lambda path=path: answers.update({path: frontend.get(path)}))
            for path in ("/kept", "/left")
        ]
        for visitor in visitors:
            visitor.start()
        asked = {r.path: r for r in (mongrel2.decode_request(pull.recv()) for _ in visitors)}
        kept = asked["/kept"]
        for _ in range(5):
            time.sleep(0.5)
            pub.send(mongrel2.encode_control(kept.ident, [kept.id], b"ctl", {b"keep-alive": b""}))
        pub.send(mongrel2.encode_reply(kept.ident, [kept.id], ok(b"at last")))
        for visitor in visitors:
            visitor.join()
        assert answers["/kept"] == (200, b"at last")
        assert answers["/left"][0] == 504
        assert mongrel2.decode_request(pull.recv()).is_disconnect  # it is told
    finally:
        context.destroy(linger=0)
