"""What operators see and switch: status, metrics, pause, maintenance, pages, logs, the master."""

from __future__ import annotations

import hashlib
import json
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import zmq

from frontend import mongrel2
from tests.frontend.rig import Frontend, Handler, ok, read_all, route, until

pytestmark = pytest.mark.slow

Start = Callable[..., Frontend]
Serve = Callable[..., Handler]


def ask(frontend: Frontend, line: str, body: bytes = b"") -> tuple[int, bytes]:
    """A request on the operator's socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(frontend.folder / "run" / "frontend.sock"))
        sock.sendall(
            f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        answer = read_all(sock)
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head[9:12]), rest


def test_paused_app_holds_its_requests_until_it_is_resumed(start: Start, serve: Serve) -> None:
    frontend = start(route("shop"), route("other", host="other.example"))
    serve(frontend)
    serve(frontend, name="other", process="other")
    assert ask(frontend, "POST /apps/shop/pause")[0] == 200
    answers: list[tuple[int, bytes]] = []
    thread = threading.Thread(target=lambda: answers.append(frontend.get()))
    thread.start()
    until(lambda: frontend.status()["held"] == 1, "held")
    assert frontend.get(Host="other.example") == (200, b"other")
    assert ask(frontend, "POST /apps/shop/resume")[0] == 200
    thread.join(5)
    assert answers == [(200, b"web.1")]


def test_maintenance_answers_503_with_the_apps_page_and_survives_a_restart(
    start: Start, serve: Serve, tmp_path: Any
) -> None:
    (tmp_path / "pages" / "shop").mkdir(parents=True)
    (tmp_path / "pages" / "shop" / "maintenance.html").write_text("<h1>Back soon</h1>")
    (tmp_path / "pages" / "404.html").write_text("<h1>Nothing here</h1>")
    frontend = start(route("shop", host="shop.example"), pages=str(tmp_path / "pages"))
    serve(frontend)
    assert ask(frontend, "POST /apps/shop/maintenance")[0] == 200
    assert frontend.get(Host="shop.example") == (503, b"<h1>Back soon</h1>")
    assert frontend.get(Host="nobody.example") == (404, b"<h1>Nothing here</h1>")
    frontend.stop()
    frontend.start()
    assert frontend.get(Host="shop.example") == (503, b"<h1>Back soon</h1>")
    assert ask(frontend, "POST /apps/shop/live")[0] == 200
    serve(frontend)
    assert frontend.get(Host="shop.example") == (200, b"web.1")


def test_metrics_count_what_happened(start: Start, serve: Serve) -> None:
    frontend = start(route("shop", host="shop.example"), status="127.0.0.1:0")
    serve(
        frontend, lambda _, r: ok(b"12345", status="418 Teapot" if r.path == "/tea" else "200 OK")
    )
    for path in ("/", "/", "/tea"):
        frontend.get(path, Host="shop.example")
    frontend.get(Host="nobody.example")
    frontend.raw(b"GET / HTTP/1.1\nHost: a\n\n")
    text = ask(frontend, "GET /metrics")[1].decode()
    for line in (
        'bareku_requests_total{app="shop",release="1",status="200"} 2',
        'bareku_requests_total{app="shop",release="1",status="418"} 1',
        'bareku_request_seconds_count{app="shop",release="1"} 3',
        'bareku_bytes_out_total{app="shop",release="1"} 15',
        'bareku_handlers{app="shop",release="1"} 1',
        'bareku_inflight{app="shop",release="1"} 0',
        "bareku_frontend_no_route_total 1",
        "bareku_frontend_rejected_heads_total 1",
    ):
        assert line in text.splitlines(), text
    document = json.loads(ask(frontend, "GET /status")[1])
    assert document["handlers"] == {"shop": {"1": 1}}


def test_tcp_status_changes_nothing_and_the_socket_is_the_owners(start: Start) -> None:
    frontend = start(status="127.0.0.1:0")
    host, _, port = frontend.status()["status"].rpartition(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(b"POST /apps/shop/pause HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 405 ")
    assert frontend.status()["paused"] == []
    mode = (frontend.folder / "run" / "frontend.sock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert ask(frontend, "POST /apps/..%2f/pause")[0] == 400
    assert ask(frontend, "GET /nothing")[0] == 404


def test_pair_is_opened_for_a_process_while_running(start: Start) -> None:
    frontend = start()
    wanted = {"app": "shop", "process": "web.7", "send_spec": "tcp://127.0.0.1:0",
              "recv_spec": "tcp://127.0.0.1:0", "protocol": "tnetstring"}  # fmt: skip
    code, body = ask(frontend, "POST /pairs", json.dumps(wanted).encode())
    assert code == 201
    pair = json.loads(body)
    context: zmq.Context[Any] = zmq.Context()
    try:
        pull, pub = context.socket(zmq.PULL), context.socket(zmq.PUB)
        pull.connect(pair["send"])
        pub.connect(pair["recv"])
        frontend.wait_handlers(1)
        answers: list[tuple[int, bytes]] = []
        thread = threading.Thread(target=lambda: answers.append(frontend.get()))
        thread.start()
        request = mongrel2.decode_request(pull.recv())
        pub.send(mongrel2.encode_reply(request.ident, [request.id], ok(b"by pair")))
        thread.join(5)
        assert answers == [(200, b"by pair")]
        assert ask(frontend, "DELETE /pairs/shop/web.7")[0] == 200
        frontend.wait_handlers(0)
    finally:
        context.destroy(linger=0)
    assert ask(frontend, "POST /pairs", b'{"app": "shop"}')[0] == 400


def test_access_log_tells_status_sizes_and_who_answered(start: Start, serve: Serve) -> None:
    frontend = start(access_format="json")
    serve(frontend, lambda _, r: ok(b"12345", status="404 Not Found"))
    frontend.get("/a?b=%0a", "POST", b"xyz", User_Agent='evil"\\quote', X_Request_Id="mine-1")
    until(lambda: (frontend.folder / "access.log").read_text(), "log line")
    line = json.loads((frontend.folder / "access.log").read_text())
    wanted = {
        "method": "POST", "uri": "/a?b=%0a", "status": 404, "bytes": 5, "bytes_in": 3, "app": "shop",
        "release": 1, "process": "web.1", "id": "mine-1", "user_agent": 'evil"\\quote', "remote": "127.0.0.1",
    }  # fmt: skip
    assert wanted.items() <= line.items()
    assert line["ms"] > 0


def test_combined_log_is_one_escaped_line_and_is_reopened(start: Start, serve: Serve) -> None:
    frontend = start()
    serve(frontend)
    frontend.get(User_Agent='a"b\xe9', Referer="x")
    log = frontend.folder / "access.log"
    until(log.read_text, "log line")
    assert log.read_text().count("\n") == 1
    assert '"GET / HTTP/1.1" 200 5 "x" "a\\x22b\\xe9" ' in log.read_text()
    log.rename(log.with_suffix(".1"))
    assert frontend.process is not None
    frontend.process.send_signal(1)
    until(log.exists, "new file")
    frontend.get("/second")
    until(lambda: "/second" in log.read_text(), "line in the new file")


class Master:
    """The two sockets of a master."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.pub = self.context.socket(zmq.XPUB)
        self.pull = self.context.socket(zmq.PULL)
        self.updates = f"tcp://127.0.0.1:{self.pub.bind_to_random_port('tcp://127.0.0.1')}"
        self.stats = f"tcp://127.0.0.1:{self.pull.bind_to_random_port('tcp://127.0.0.1')}"

    def publish(self, version: int, *routes: dict[str, Any], epoch: int = 1, sha: str = "") -> None:
        body = json.dumps(
            {"p": 1, "cluster": "bareku", "frontend": "front1", "epoch": epoch, "version": version,
             "routes": list(routes), "unknown": "ignored"}
        ).encode()  # fmt: skip
        header = {"p": 1, "t": "routes", "epoch": epoch, "version": version,
                  "sha256": sha or hashlib.sha256(body).hexdigest()}  # fmt: skip
        self.pub.send_multipart([b"f/front1/", json.dumps(header).encode(), body])

    def stat(self) -> dict[str, Any]:
        assert self.pull.poll(8000), "no statistics"
        return json.loads(self.pull.recv())


@pytest.fixture
def master() -> Any:
    made = Master()
    yield made
    made.context.destroy(linger=0)


def test_table_comes_from_the_master_and_outlives_it(
    start: Start, serve: Serve, master: Master
) -> None:
    frontend = start(route("old"), master_updates=master.updates, master_stats=master.stats)
    assert master.pub.recv() == b"\x01f/front1/"
    master.publish(7, route("shop", 3), epoch=2)
    until(lambda: frontend.status()["have"] == 7, "table used")
    serve(frontend, release=3)
    assert frontend.get() == (200, b"web.1")
    until(lambda: master.stat().get("handlers") == {"shop": {"3": 1}}, "statistics")
    told = master.stat()
    assert (told["t"], told["frontend"], told["have"], told["epoch"]) == (
        "frontend",
        "front1",
        7,
        2,
    )
    master.publish(6, route("evil"), epoch=2)  # older
    master.publish(9, route("evil"), epoch=1)  # of an older master
    master.publish(8, route("evil"), epoch=2, sha="0" * 64)  # damaged
    until(lambda: frontend.status()["counters"]["bad_updates"] == 1, "damage noticed")
    assert frontend.get() == (200, b"web.1")
    master.context.destroy(linger=0)
    frontend.stop()
    frontend.start()
    serve(frontend, release=3)
    assert frontend.get() == (200, b"web.1")


def test_frontend_starts_and_serves_without_its_master(start: Start, serve: Serve) -> None:
    nowhere = "tcp://127.0.0.1:1"
    frontend = start(master_updates=nowhere, master_stats=nowhere)
    serve(frontend)
    assert frontend.get() == (200, b"web.1")


def test_bad_routes_file_changes_nothing_but_the_health(start: Start, serve: Serve) -> None:
    frontend = start()
    serve(frontend)
    frontend.routes_file.write_text('{"routes": [{"host": "*"')
    until(lambda: frontend.status()["health"] == "degraded", "noticed")
    assert "routes.json" in frontend.status()["error"]
    assert frontend.get() == (200, b"web.1")
    frontend.reroute(route())
    until(lambda: frontend.status()["health"] == "ok", "well again")


def test_route_swap_under_load_loses_nothing(start: Start, serve: Serve) -> None:
    frontend = start(route(release=1))
    serve(frontend, release=1, process="v1")
    serve(frontend, release=2, process="v2")
    statuses: list[int] = []
    end = time.monotonic() + 2

    def visit() -> None:
        while time.monotonic() < end:
            statuses.append(frontend.get()[0])

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    release = 1
    while time.monotonic() < end - 0.3:
        release = 3 - release
        frontend.reroute(route(release=release))
    for visitor in visitors:
        visitor.join()
    assert set(statuses) == {200}
    assert len(statuses) > 50


def test_check_config_names_the_nearest_key(tmp_path: Any) -> None:

    path = tmp_path / "frontend.yml"
    path.write_text("lisen: 127.0.0.1:80\n")
    done = subprocess.run(
        [sys.executable, "-m", "frontend.server", "--config", str(path), "--check-config"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "did you mean 'listen'?" in done.stderr
    path.write_text("listen: 127.0.0.1:80\n")
    done = subprocess.run(
        [sys.executable, "-m", "frontend.server", "--config", str(path), "--check-config"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("trusted", "told"), [("127.0.0.0/8", "10.1.2.3, 127.0.0.1"), ("10.0.0.0/8", "127.0.0.1")]
)
def test_only_a_trusted_proxy_says_for_whom_it_speaks(
    trusted: str, told: str, start: Start, serve: Serve
) -> None:
    frontend = start(trusted_proxies=[trusted])
    handler = serve(frontend)
    frontend.get(X_Forwarded_For="10.1.2.3", X_Forwarded_Proto="https", X_Real_IP="6.6.6.6")
    request = handler.requests[0]
    assert request.header("x-forwarded-for") == told
    assert request.header("x-forwarded-proto") == ("https" if "," in told else "http")
    assert request.header("REMOTE_ADDR") == "127.0.0.1"
    assert request.header("x-real-ip") is None
