"""The master against nodes and frontends of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from bareku import curve
from diprocd import wire
from diprocd.spec import NodeDocument, RouteDocument
from tests.diprocd.rig import PROGRAM, TOP, Cluster, wait

pytestmark = pytest.mark.slow


class Listener:
    """A client's or frontend's end of the two sockets."""

    def __init__(self, cluster: Cluster, topic: bytes, keys: curve.Keys | None = None) -> None:
        self._context = zmq.Context()
        self.sub = self._context.socket(zmq.SUB)
        self.push = self._context.socket(zmq.PUSH)
        for one in (self.sub, self.push):
            one.setsockopt(zmq.LINGER, 0)
            one.setsockopt(zmq.RCVTIMEO, 10_000)
            if keys is not None:
                keys.apply(one)
        self.sub.subscribe(topic)
        self.sub.connect(cluster.desired["updates"])
        self.push.connect(cluster.desired["stats"])

    def next(self) -> tuple[wire.Header, bytes]:
        topic, head, body = self.sub.recv_multipart()
        assert topic.endswith(b"/")
        return msgspec.json.decode(head, type=wire.Header), body

    def say(self, **fields: Any) -> None:
        stats = {"p": 1, "t": "stats", "client": "c", "seq": 1, "applied": 0, "epoch": 1, **fields}
        self.push.send(msgspec.json.encode(stats))

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(*arguments: Any) -> Listener:
        made.append(Listener(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_late_subscriber_gets_the_whole_document_at_once(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener]
) -> None:
    cluster = make_cluster("web1", timing={"beat_s": 60})
    cluster.app(2)
    cluster.publish()
    cluster.master()
    header, body = listen(cluster, b"n/web1/").next()
    document = msgspec.json.decode(body, type=NodeDocument)
    assert (header.epoch, header.version, header.sha256) == (1, 1, wire.digest(body))
    assert [one.id for one in document.processes] == ["app.v1.web.1", "app.v1.web.2"]


def test_node_with_a_longer_name_gets_nothing_of_a_shorter_ones(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener]
) -> None:
    cluster = make_cluster("web1", "web10")
    cluster.app(1)
    cluster.publish()
    cluster.master()
    one = listen(cluster, b"n/web1/")
    assert msgspec.json.decode(one.next()[1], type=NodeDocument).node == "web1"
    assert not one.sub.poll(300)


def test_route_table_reaches_the_frontend_and_its_handlers_the_status(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener]
) -> None:
    route = {"host": "app.localhost", "app": "app", "release": 1}
    cluster = make_cluster("web1", frontends=["front1"], routes=[route])
    cluster.publish()
    cluster.master()
    front = listen(cluster, b"f/front1/")
    header, body = front.next()
    assert header.t == "routes"
    assert msgspec.json.decode(body, type=RouteDocument).routes[0].host == "app.localhost"
    front.say(t="frontend", frontend="front1", have=1, handlers={"app": {"1": 3}})
    wait(lambda: cluster.status()["frontends"]["front1"]["handlers"] == {"app": {"1": 3}})
    assert cluster.status()["frontends"]["front1"]["state"] == "up"
    cluster.desired["routes"].append({**route, "host": "*"})
    cluster.publish()
    assert front.next()[0].version == 2


def test_routes_that_change_leave_the_nodes_documents_alone(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener]
) -> None:
    cluster = make_cluster("web1", frontends=["front1"])
    cluster.app(1)
    cluster.publish()
    cluster.master()
    node = listen(cluster, b"n/web1/")
    node.next()
    cluster.desired["routes"] = [{"host": "*", "app": "app", "release": 1}]
    cluster.publish()
    wait(lambda: cluster.status()["frontends"]["front1"]["version"] == 2)
    assert not node.sub.poll(200)


def test_node_that_is_behind_is_told_again(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener]
) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.publish()
    cluster.master()
    node = listen(cluster, b"n/web1/")
    node.next()
    time.sleep(1.1)  # at most once a second
    node.say(node="web1", have=0)
    assert node.next()[0].version == 1


def test_versions_go_on_after_a_restart(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener]
) -> None:
    cluster = make_cluster("web1")
    for count in (1, 2):
        cluster.app(count)
        cluster.publish()
        cluster.master().stop()
    cluster.app(3)
    cluster.publish()
    cluster.master()
    assert listen(cluster, b"n/web1/").next()[0].version == 3


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b'{"updates": 7, "stats": 8}',
        b'{"updates": "tcp://127.0.0.1:1"}',
        None,
        "folder",
        "unknown key",
        "bad name",
        "huge",
    ],
    ids=["empty", "cut", "garbage", "list", "types", "half", "gone", "dir", "key", "name", "huge"],
)
def test_bad_desired_state_is_reported_and_the_last_good_one_stays(
    make_cluster: Callable[..., Cluster], bad: bytes | str | None
) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.publish()
    cluster.master()
    sha256 = cluster.status()["desired_sha256"]
    spoil(cluster, bad)
    wait(lambda: cluster.status()["config_error"], 3)
    status = cluster.status()
    assert (status["health"], status["desired_sha256"]) == ("degraded", sha256)
    assert status["nodes"]["web1"]["version"] == 1
    if cluster.path.is_dir():
        cluster.path.rmdir()
    cluster.app(2)
    cluster.publish()
    wait(lambda: cluster.status()["config_error"] is None, 3)
    assert cluster.status()["nodes"]["web1"]["version"] == 2


def spoil(cluster: Cluster, bad: bytes | str | None) -> None:
    path = cluster.path
    if bad is None:
        path.unlink()
    elif bad == "folder":
        path.unlink()
        path.mkdir()
    elif bad == "unknown key":
        path.write_text(json.dumps({**cluster.desired, "nodez": {}}))
    elif bad == "bad name":
        apps = {"../app": {"releases": {}}}
        path.write_text(json.dumps({**cluster.desired, "apps": apps}))
    elif bad == "huge":
        with path.open("wb") as file:
            file.truncate(2**31)
    elif isinstance(bad, bytes):
        path.write_bytes(bad)


def test_unknown_key_is_answered_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "master.json"
    path.write_text('{"updates": "ipc://a", "stats": "ipc://b", "frontend": []}')
    done = command("master", "--config", str(path), "--check-config")
    assert done.returncode == 1
    assert "did you mean 'frontends'?" in done.stderr


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=TOP, capture_output=True, text=True, timeout=30, check=False
    )


def test_master_starts_from_the_last_good_state_when_the_file_is_bad(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener]
) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.publish()
    cluster.master().stop()
    cluster.path.write_text("{")
    cluster.master()
    assert cluster.status()["config_error"]
    body = listen(cluster, b"n/web1/").next()[1]
    assert len(msgspec.json.decode(body, type=NodeDocument).processes) == 1


def test_second_master_is_refused(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("web1")
    cluster.publish()
    first = cluster.master()
    done = command("master", "--config", str(cluster.path))
    assert done.returncode == 1
    assert f"pid {first.pid}" in done.stderr


def test_endpoints_that_change_are_bound_anew(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener], tmp_path: Path
) -> None:
    cluster = make_cluster("web1")
    cluster.app(1)
    cluster.publish()
    cluster.master()
    cluster.desired |= {"updates": f"ipc://{tmp_path}/u", "stats": f"ipc://{tmp_path}/s"}
    cluster.publish()
    assert listen(cluster, b"n/web1/").next()[0].version == 1


def test_malformed_stats_are_dropped(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener]
) -> None:
    cluster = make_cluster("web1")
    cluster.publish()
    master = cluster.master()
    node = listen(cluster, b"n/web1/")
    bad = [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"1",
        b'{"t": "stats"}',
        b'{"t": "x"}',
        b'{"t":"stats","p":9}',
    ]
    for message in bad:
        node.push.send(message)
        node.push.send_multipart([message, message])
    node.say(node="web1", have=1)
    wait(lambda: cluster.status()["nodes"]["web1"]["state"] == "up")
    assert cluster.status()["pid"] == master.pid
    assert (cluster.folder / "master.stderr").read_text().count("stats refused") >= len(bad)


def test_key_of_one_node_neither_speaks_nor_listens_for_another(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener], tmp_path: Path
) -> None:
    cluster = make_cluster("web1", "web2", timing={"beat_s": 60})
    keys = {name: curve.make(tmp_path / f"{name}.key") for name in ("master", "web1", "web2", "x")}
    cluster.desired["curve_key"] = str(tmp_path / "master.key")
    for name in ("web1", "web2"):
        cluster.desired["nodes"][name] = {"curve": keys[name].public}
    cluster.app(1)
    cluster.publish()
    cluster.master()

    def of(name: str) -> curve.Keys:
        return curve.Keys(keys[name].public, keys[name].secret, keys["master"].public)

    good = listen(cluster, b"n/web1/", of("web1"))
    assert good.next()[0].version == 1
    stranger = listen(cluster, b"n/web1/", of("x"))
    plain = listen(cluster, b"n/web1/")
    assert not stranger.sub.poll(700)
    assert not plain.sub.poll(100)
    nosy = listen(cluster, b"n/web2/", of("web1"))
    everything = listen(cluster, b"", of("web1"))
    assert not nosy.sub.poll(500)
    assert not everything.sub.poll(100)
    assert listen(cluster, b"n/web2/", of("web2")).next()[0].version == 1
    good.say(node="web2", have=1)
    good.say(node="web1", have=1)
    wait(lambda: cluster.status()["nodes"]["web1"]["state"] == "up")
    assert cluster.status()["nodes"]["web2"]["state"] == "unknown"


def test_plain_text_off_loopback_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.json"
    path.write_text('{"updates": "tcp://0.0.0.0:31124", "stats": "tcp://127.0.0.1:31123"}')
    done = command("master", "--config", str(path), "--check-config")
    assert done.returncode == 1
    assert "no CURVE keys are configured" in done.stderr


def test_keys_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "own.key"
    done = command("keys", str(path))
    assert done.stdout.strip() == curve.load(path).public
    assert path.stat().st_mode & 0o777 == 0o600
    assert command("keys", str(path)).returncode == 1


def test_status_shows_every_daemon_and_process(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("web1")
    cluster.nodes["web1"].config["run"] = cluster.desired["run"]
    cluster.nodes["web1"].run = cluster.folder / "run"
    cluster.nodes["web1"].save()
    cluster.app(1)
    cluster.start()
    wait(lambda: len(cluster.ready()) == 1, 20)
    wait(lambda: cluster.nodes["web1"].status("client").get("health") == "ok")
    done = command("status", "--config", str(cluster.path))
    assert done.returncode == 0, done.stdout
    assert "app.v1.web.1" in done.stdout
    assert "node web1: up, version 1/1" in done.stdout
    found = json.loads(command("status", "--config", str(cluster.path), "--json").stdout)
    assert {name: one["fresh"] for name, one in found.items()} == {
        "master": True,
        "client": True,
        "worker": True,
    }
    cluster.daemons[-1].kill()
    old = time.time() - 60
    os.utime(cluster.folder / "run/master.json", (old, old))
    done = command("status", "--config", str(cluster.path))
    assert done.returncode == 1
    assert "not running" in done.stdout


def test_full_disk_leaves_the_last_documents_in_force(
    make_cluster: Callable[..., Cluster], listen: Callable[..., Listener], tmp_path: Path
) -> None:
    """A version that could not be remembered is not used."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a tiny tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        cluster = make_cluster("web1")
        cluster.path = small / "diprocd-master.json"
        cluster.app(1)
        cluster.publish()
        cluster.master()
        node = listen(cluster, b"n/web1/")
        assert node.next()[0].version == 1
        cluster.app(2)
        cluster.publish()
        assert node.next()[0].version == 2
        fill = small / "fill"
        cluster.app(3)
        text = json.dumps(cluster.desired)
        fd = os.open(fill, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, b"x" * 4096)
        os.close(fd)
        assert len(text) < 4096 > cluster.path.stat().st_size, "its page is there already"
        with cluster.path.open("r+") as file:
            file.write(text)
            file.truncate()
        wait(lambda: "cannot write" in (cluster.status()["error"] or ""), 5)
        assert not node.sub.poll(300)
        fill.unlink()
        wait(lambda: cluster.status()["error"] is None, 5)
        assert node.next()[0].version == 3
    finally:
        for one in cluster.daemons:
            one.kill()
        subprocess.run(["umount", str(small)], check=True)
        shutil.rmtree(small)
