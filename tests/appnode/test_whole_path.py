"""Client → bareku-frontend → link → bareku-handler → app: nothing is lost on the way."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bareku import curve
from tests.appnode.load import Load
from tests.frontend.rig import Frontend, read_response, route, until

pytestmark = pytest.mark.slow

MIB = 2**20
# of the large bodies; set it to 1024 to see the same with a GiB
LARGE_MIB = int(os.environ.get("BAREKU_TEST_LARGE_MIB", "128"))


class Shop:
    """A frontend, a connector and the apps that a worker would run."""

    def __init__(self, rig: Any, frontend: Frontend) -> None:
        self.rig = rig
        self.frontend = frontend
        self.connector = rig.connector(Link(frontend.link), timeouts={"first_byte_s": 20})
        self.apps: dict[str, Any] = {}
        self.entries: dict[str, Any] = {}

    def start(self, name: str) -> Any:
        app = self.apps[name] = self.rig.app(name)
        return app

    def say(self, **states: str) -> None:
        """The worker's word: name → state of each process; what is not named is gone."""
        entries = []
        for name, state in states.items():
            name = name.replace("_", ".")
            entries.append({**self.apps[name].entry, "state": state, "ready": state == "running"})
        self.connector.runs(*entries)

    def logs(self) -> list[str]:
        found = Path(self.rig.folder).glob("app-*.log")
        return [line for path in found for line in path.read_text().splitlines()]


class Link:
    """A frontend as the rig knows one."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint


@pytest.fixture
def shop(rig: Any, tmp_path: Path) -> Iterator[Shop]:
    frontend = Frontend(tmp_path / "front", [route(token="s3cret")]).start()
    shop = Shop(rig, frontend)
    yield shop
    shop.connector.kill()
    frontend.close()


def test_requests_reach_the_app_and_say_where_they_come_from(shop: Shop) -> None:
    shop.start("web.1")
    shop.say(web_1="running")
    status, body = shop.frontend.get("/head", X_Forwarded_For="6.6.6.6", Accept="*/*")
    assert status == 200
    assert b'"x-forwarded-for": "127.0.0.1"' in body
    assert b"x-request-id" in body
    assert b'"connection"' not in body


def test_streams_uploads_and_upgrades_pass(shop: Shop) -> None:
    shop.start("web.1")
    shop.say(web_1="running")
    status, body = shop.frontend.get("/chunked?n=20&s=0.005")
    assert (status, body) == (200, b"".join(b"piece%02d" % n for n in range(20)))
    data = os.urandom(3 * MIB)
    assert shop.frontend.get("/echo", "POST", data) == (200, data)
    pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    assert shop.frontend.get("/echo", "POST", iter(pieces)) == (200, data)
    assert shop.frontend.get("/empty") == (204, b"")
    assert shop.frontend.get("/", "HEAD")[0] == 200
    assert shop.frontend.get("/vanish")[0] == 502
    assert shop.frontend.get("/until-close") == (200, b"all there is")
    with shop.frontend.connect() as sock:
        sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        head, _, rest = read_response(sock)
        assert head.startswith(b"HTTP/1.1 101 ")
        for message in (b"\x81\x82abcdefg", data[:MIB]):
            threading.Thread(target=sock.sendall, args=(message,)).start()
            while len(rest) < len(message):
                rest += sock.recv(65536)
            assert rest == message
            rest = b""


def test_bad_responses_never_desync_a_client(shop: Shop) -> None:
    shop.start("web.1")
    shop.say(web_1="running")
    for path in (
        "/vanish",
        "/half",
        "/raw?b=SFRUUC8xLjEgMjAwIE9LCkE6IGIKCg==",
        "/raw?b=Z2FyYmFnZQ==",
    ):
        with shop.frontend.connect() as sock:
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode() * 1)
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 502 ") or path == "/half", answer
            if path == "/half":
                while piece := sock.recv(65536):  # closed early: nobody takes it for whole
                    answer += piece
                assert len(answer.partition(b"\r\n\r\n")[2]) < 100
    assert shop.frontend.get("/") == (200, b"Hello, world\n")


def test_killed_connector_loses_no_get_and_runs_no_post_twice(shop: Shop) -> None:
    for name in ("web.1", "web.2"):
        shop.start(name)
    shop.say(web_1="running", web_2="running")
    shop.frontend.wait_handlers(2)
    with Load(shop.frontend.port) as load:
        for _ in range(4):
            load.wait(150)
            shop.connector.kill()
            shop.connector.start()
        load.wait(150)
    posts = load.check(shop.logs())
    assert posts[200] > 200
    assert load.slowest_s < 5


def test_killed_apps_lose_no_get_and_run_no_post_twice(shop: Shop) -> None:
    for name in ("web.1", "web.2"):
        shop.start(name)
    shop.say(web_1="running", web_2="running")
    shop.frontend.wait_handlers(2)
    with Load(shop.frontend.port) as load:
        for number in range(4):
            load.wait(150)
            name = f"web.{number % 2 + 1}"
            shop.apps[name].kill()
            load.wait(30)  # the connector finds out by itself before the worker says so
            shop.start(name)
            shop.say(web_1="running", web_2="running")
        load.wait(150)
    posts = load.check(shop.logs())
    assert posts[502] <= 4 * 6


def test_app_that_is_gone_for_a_while_is_waited_for(shop: Shop) -> None:
    app = shop.start("web.1")
    shop.say(web_1="running")
    shop.frontend.wait_handlers(1)
    with Load(shop.frontend.port, posts=False) as load:
        load.wait(50)
        app.kill()
        time.sleep(0.7)
        shop.rig.app("web.1", port=app.port)
        load.wait(50)
    load.check([])


def test_rolling_replacement_loses_nothing(shop: Shop) -> None:
    for name in ("web.1", "web.2"):
        shop.start(name)
    states = {"web_1": "running", "web_2": "running"}
    shop.say(**states)
    shop.frontend.wait_handlers(2)
    with Load(shop.frontend.port) as load:
        for number in range(4):
            load.wait(80)
            old, new = f"web.{number + 1}", f"web.{number + 3}"
            shop.start(new)
            states |= {new.replace(".", "_"): "running"}
            shop.say(**states)
            shop.frontend.wait_handlers(3)
            states[old.replace(".", "_")] = "draining"
            shop.say(**states)
            until((shop.apps[old].folder / "drained").exists, "drained")
            shop.apps[old].kill()
            del states[old.replace(".", "_")]
            shop.say(**states)
            shop.frontend.wait_handlers(2)
        load.wait(80)
    assert set(load.check(shop.logs())) == {200}


def test_frontend_that_restarts_finds_its_handlers_again(shop: Shop) -> None:
    shop.start("web.1")
    shop.say(web_1="running")
    assert shop.frontend.get("/")[0] == 200
    port, link = shop.frontend.port, shop.frontend.link
    shop.frontend.stop()
    fixed = {**shop.frontend.config, "listen": f"127.0.0.1:{port}", "link": link}
    (shop.frontend.folder / "frontend.yml").write_text(json.dumps(fixed))
    shop.frontend.start()
    assert shop.frontend.get("/")[0] == 200


def peak(processes: dict[str, Any], work: Callable[[], None]) -> dict[str, float]:
    """The MiB by which each process grew while `work` went on, at the worst moment."""
    found = {name: psutil.Process(p.pid) for name, p in processes.items()}
    before = {name: p.memory_info().rss for name, p in found.items()}
    most = dict(before)
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        for name, process in found.items():
            most[name] = max(most[name], process.memory_info().rss)
        thread.join(0.02)
    return {name: (most[name] - before[name]) / MIB for name in found}


def test_large_bodies_take_little_memory(shop: Shop) -> None:
    shop.start("web.1")
    shop.say(web_1="running")
    assert shop.frontend.get("/")[0] == 200
    size = LARGE_MIB * MIB
    got: dict[str, int] = {}

    def down() -> None:
        with socket.create_connection(("127.0.0.1", shop.frontend.port), 60) as sock:
            sock.sendall(b"GET /big?n=%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % size)
            count = 0
            while piece := sock.recv(262144):
                count += len(piece)
            got["down"] = count

    def up() -> None:
        with socket.create_connection(("127.0.0.1", shop.frontend.port), 60) as sock:
            sock.sendall(b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            piece = bytes(262144)
            for _ in range(size // len(piece)):
                sock.sendall(piece)
            got["up"] = int(read_response(sock)[1])

    assert shop.frontend.process is not None
    daemons = {"frontend": shop.frontend.process, "connector": shop.connector.process}
    for work in (down, up):
        grown = peak(daemons, work)
        assert max(grown.values()) < 16, (work.__name__, grown)
    assert got["up"] == size
    assert size < got["down"] < size + 1000


def test_slow_client_does_not_fill_the_memory_nor_stop_the_others(shop: Shop) -> None:
    shop.start("web.1")
    shop.say(web_1="running")
    assert shop.frontend.get("/")[0] == 200
    assert shop.frontend.process is not None
    daemons = {"frontend": shop.frontend.process, "connector": shop.connector.process}
    slow = []

    def work() -> None:
        for _ in range(10):
            sock = shop.frontend.connect()
            sock.sendall(b"GET /big?n=%d HTTP/1.1\r\nHost: a\r\n\r\n" % (64 * MIB))
            slow.append(sock)
        for _ in range(20):
            assert shop.frontend.get("/") == (200, b"Hello, world\n")

    grown = peak(daemons, work)
    for sock in slow:
        sock.close()
    # ten of them, each with a window here and there
    assert max(grown.values()) < 32, grown


def test_bytes_come_back_as_they_were_sent(shop: Shop) -> None:
    """A pattern that shows a lost or doubled window."""
    shop.start("web.1")
    shop.say(web_1="running")
    block = os.urandom(999_983)
    body = (block * 12)[: 11 * MIB]
    status, back = shop.frontend.get("/echo", "PUT", body)
    assert status == 200
    assert hashlib.sha256(back).digest() == hashlib.sha256(body).digest()


def test_connector_reaches_a_frontend_with_curve_and_finds_it_again(
    rig: Any, tmp_path: Path
) -> None:
    server, own = curve.make(tmp_path / "front.key"), curve.make(tmp_path / "node.key")
    frontend = Frontend(
        tmp_path / "front",
        [route(token="s3cret")],
        curve_key=str(tmp_path / "front.key"),
        link_curve={"web1": own.public},
    ).start()
    link = f"tcp://{frontend.status()['link']}"
    app = rig.app()
    connector = rig.connector(
        Link(link), curve_key=str(tmp_path / "node.key"), curve_frontends={link: server.public}
    )
    connector.runs(app.entry)
    try:
        assert frontend.get("/") == (200, b"Hello, world\n")
        data = os.urandom(MIB)
        assert frontend.get("/echo", "POST", data) == (200, data)
        frontend.stop()
        fixed = {**frontend.config, "link": link}
        (frontend.folder / "frontend.yml").write_text(json.dumps(fixed))
        frontend.start()
        assert frontend.get("/") == (200, b"Hello, world\n")
    finally:
        connector.kill()
        frontend.close()
