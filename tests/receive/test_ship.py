"""Shipping to real OpenSSH servers on loopback, whose forced command is the app node's own."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import pwd
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bareku.errors import BarekuError
from bareku.receive import ship, slug
from bareku.receive.build import Built
from bareku.receive.ship import NodeAddress
from bareku.receive.slug import Slug

UUID = "2765e91b-50c4-4d04-b92c-f38f82661b2a"
APPNODE = Path(sys.executable).with_name("bareku-appnode")

CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host_key
AuthorizedKeysFile {home}/authorized_keys
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
UsePAM no
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def keygen(file: Path) -> str:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
    subprocess.run(argv, check=True)
    return " ".join(file.with_suffix(".pub").read_text().split()[:2])


class Node:
    """An sshd with our forced command, and the folders behind it."""

    def __init__(self, home: Path, name: str, client_key: str) -> None:
        self.home = home / name
        self.home.mkdir()
        self.slugs = self.home / "slugs"
        self.address = NodeAddress(name, "127.0.0.1", free_port(), getpass.getuser())
        host_key = keygen(self.home / "host_key")
        self.known = f"[127.0.0.1]:{self.address.port} {host_key}\n"
        self.allow(client_key)
        config = CONFIG.format(home=self.home, port=self.address.port)
        (self.home / "sshd_config").write_text(config)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self._log = (self.home / "log").open("wb")
        self._process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.home / "sshd_config")], stderr=self._log
        )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.socket() as sock:
                sock.connect(("127.0.0.1", self.address.port))
                return
            assert time.monotonic() < deadline, (self.home / "log").read_text()
            time.sleep(0.02)

    def allow(self, client_key: str, command: str = "") -> None:
        folders = " ".join(f"--{n} {self.home / n}" for n in ("slugs", "defs", "logs"))
        command = command or f"{APPNODE} serve {folders}"
        line = f'restrict,command="{command}" {client_key}\n'
        (self.home / "authorized_keys").write_text(line)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


class Net:
    """Nodes, the key that they know, and the file with their host keys."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.key = home / "deploy"
        self.public = keygen(self.key)
        self.known_hosts = home / "known_hosts"
        self.nodes: list[Node] = []

    def add(self, name: str) -> Node:
        node = Node(self.home, name, self.public)
        self.nodes.append(node)
        self.known_hosts.write_text("".join(each.known for each in self.nodes))
        return node

    def connect(self, node: Node, timeout_s: float = 5.0) -> ship.Connection:
        return ship.connect(node.address, self.key, self.known_hosts, timeout_s=timeout_s)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    if pwd.getpwuid(os.geteuid()).pw_shell.endswith(("nologin", "false")):
        pytest.skip("sshd lets in nobody who has no shell")
    net = Net(tmp_path)
    yield net
    for node in net.nodes:
        node.stop()


def pack(folder: Path, size_bytes: int = 0) -> Slug:
    tree = folder / "tree"
    tree.mkdir(parents=True)
    (tree / "app.py").write_text("x = 1\n")
    (tree / "data").write_bytes(os.urandom(size_bytes))
    file = folder / f"{UUID}.sqsh"
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    argv = [
        "mksquashfs",
        str(tree),
        str(file),
        "-quiet",
        "-no-progress",
        "-all-root",
        "-noD",
        "-noF",
    ]
    subprocess.run(argv, env=env, check=True)
    data = file.read_bytes()
    built = Built({}, "", {}, "", "")
    return Slug(UUID, file, len(data), hashlib.sha256(data).hexdigest(), built)


@pytest.mark.slow
def test_a_slug_reaches_every_node_once(net: Net, tmp_path: Path) -> None:
    nodes = [net.add(name) for name in ("web1", "web2")]
    image = pack(tmp_path / "p")
    heard: list[str] = []
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(net.connect(node)) for node in nodes]
        first = ship.ship(connections, image, on_delivery=lambda d: heard.append(d.node))
        second = ship.ship(connections, image)
    assert [(d.node, d.error, d.sent_bytes) for d in first] == [
        ("web1", None, image.size_bytes),
        ("web2", None, image.size_bytes),
    ]
    assert sorted(heard) == ["web1", "web2"]
    assert [d.sent_bytes for d in second] == [0, 0]
    for node in nodes:
        assert (node.slugs / f"{UUID}.sqsh").read_bytes() == image.path.read_bytes()


@pytest.mark.slow
def test_small_verbs_are_answered_over_one_connection(net: Net, tmp_path: Path) -> None:
    node = net.add("web1")
    image = pack(tmp_path / "p")
    with net.connect(node) as connection:
        ship.ship([connection], image)
        assert ship.run(connection, ["have", UUID]) == ""
        assert ship.run(connection, ["def", "chemeo", UUID]) == "ok"
        assert ship.run(connection, ["verify", UUID]) == image.sha256
        with pytest.raises(BarekuError) as caught:
            ship.run(connection, ["def", "a'b; id", UUID])
        assert connection.is_alive
    assert caught.value.message.startswith('cannot def on web1: cannot use "a\'b; id" as an app')
    assert caught.value.hint


@pytest.mark.slow
def test_a_node_that_fails_is_named_and_the_others_get_theirs(net: Net, tmp_path: Path) -> None:
    good, bad, dead = (net.add(name) for name in ("good", "bad", "dead"))
    bad.slugs.write_text("a file where the folder should be")
    image = pack(tmp_path / "p", 4 * 2**20)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(net.connect(node)) for node in (bad, good, dead)]
        connections[2].close()
        results = ship.ship(connections, image)
    errors = {result.node: result.error for result in results}
    assert errors["good"] is None
    assert errors["bad"] is not None
    assert "on bad: " in errors["bad"].message
    assert errors["dead"] is not None
    assert "on dead: the connection is lost" in errors["dead"].message
    assert (good.slugs / f"{UUID}.sqsh").exists()


def two_slugs(folder: Path) -> tuple[Slug, Slug]:
    """A slug of 6 MB and the next one, with one line changed."""
    built = Built({}, "", {}, "", "")
    tree = folder / "tree"
    (tree / "deps").mkdir(parents=True)
    for number in range(30):
        (tree / "deps" / str(number)).write_bytes(os.urandom(200_000))
    slugs = []
    for version, uuid in (("1", UUID), ("2", "1" + UUID[1:])):
        (tree / "app.py").write_text(f"x = {version}\n")
        slugs.append(slug.pack(tree, folder / "slugs", name=uuid, built=built))
    return slugs[0], slugs[1]


@pytest.mark.slow
def test_a_node_that_has_the_slug_before_gets_what_differs(net: Net, tmp_path: Path) -> None:
    old, new = two_slugs(tmp_path)
    has, has_not = net.add("has"), net.add("hasnot")
    with net.connect(has) as first, net.connect(has_not) as second:
        ship.ship([first], old)
        results = ship.ship([first, second], new, base=old)
    assert [result.error for result in results] == [None, None]
    assert results[0].sent_bytes < 100_000
    assert results[1].sent_bytes == new.size_bytes
    for node in (has, has_not):
        assert (node.slugs / f"{new.uuid}.sqsh").read_bytes() == new.path.read_bytes()
    assert sorted(p.name for p in (tmp_path / "slugs").iterdir() if p.name.startswith(".")) == []


@pytest.mark.slow
def test_a_node_whose_slug_before_is_broken_gets_the_whole(net: Net, tmp_path: Path) -> None:
    old, new = two_slugs(tmp_path)
    node = net.add("web1")
    with net.connect(node) as connection:
        ship.ship([connection], old)
        image = node.slugs / f"{old.uuid}.sqsh"
        image.write_bytes(image.read_bytes()[:-100_000])
        (result,) = ship.ship([connection], new, base=old)
    assert result.error is None
    assert result.sent_bytes == new.size_bytes
    assert (node.slugs / f"{new.uuid}.sqsh").read_bytes() == new.path.read_bytes()
    assert sorted(path.name for path in node.slugs.glob(".*")) == []


@pytest.mark.slow
def test_an_image_that_changed_on_the_way_is_refused_by_the_node(net: Net, tmp_path: Path) -> None:
    node = net.add("web1")
    image = pack(tmp_path / "p")
    data = bytearray(image.path.read_bytes())
    data[100] ^= 1
    image.path.write_bytes(data)
    with net.connect(node) as connection:
        (result,) = ship.ship([connection], image)
    assert result.error is not None
    assert "cannot put on web1: cannot store" in result.error.message
    assert list(node.slugs.iterdir()) == []


@pytest.mark.slow
def test_a_node_with_another_host_key_is_told_nothing(net: Net) -> None:
    node = net.add("web1")
    other = keygen(net.home / "other")
    net.known_hosts.write_text(f"[127.0.0.1]:{node.address.port} {other}\n")
    with pytest.raises(
        BarekuError, match=r"cannot reach web1 .*its host key is not the one we know"
    ):
        net.connect(node)


@pytest.mark.slow
def test_a_node_whose_host_key_is_unknown_is_told_nothing(net: Net) -> None:
    node = net.add("web1")
    net.known_hosts.write_text("")
    with pytest.raises(BarekuError, match="its host key is unknown"):
        net.connect(node)


@pytest.mark.slow
def test_a_key_that_the_node_does_not_know_is_an_error_of_that_node(net: Net) -> None:
    node = net.add("web1")
    node.allow(keygen(net.home / "stranger"))
    with pytest.raises(BarekuError, match=r"cannot reach web1 .*it refuses our key"):
        net.connect(node)


def test_a_node_where_nothing_listens_is_named(tmp_path: Path) -> None:
    keygen(tmp_path / "deploy")
    (tmp_path / "known_hosts").touch()
    node = NodeAddress("web9", "127.0.0.1", free_port())
    with pytest.raises(
        BarekuError, match=r"cannot reach web9 \(127.0.0.1:\d+\): connection refused"
    ):
        ship.connect(node, tmp_path / "deploy", tmp_path / "known_hosts")


@contextlib.contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does `answer` with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    held.append(peer)
                    answer(peer)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for peer in held:
            peer.close()


def test_a_node_that_says_nothing_is_given_up_in_time(tmp_path: Path) -> None:
    keygen(tmp_path / "deploy")
    (tmp_path / "known_hosts").touch()
    started = time.monotonic()
    with listener(lambda _: None) as port:
        node = NodeAddress("web9", "127.0.0.1", port)
        with pytest.raises(BarekuError, match="cannot reach web9"):
            ship.connect(node, tmp_path / "deploy", tmp_path / "known_hosts", timeout_s=0.3)
    assert time.monotonic() - started < 3


def test_a_port_that_speaks_no_ssh_is_named(tmp_path: Path) -> None:
    keygen(tmp_path / "deploy")
    (tmp_path / "known_hosts").touch()

    def refuse(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.close()

    with listener(refuse) as port:
        node = NodeAddress("web9", "127.0.0.1", port)
        with pytest.raises(BarekuError, match="cannot reach web9"):
            ship.connect(node, tmp_path / "deploy", tmp_path / "known_hosts", timeout_s=2)


def test_to_no_node_nothing_is_shipped(tmp_path: Path) -> None:
    assert ship.ship([], pack(tmp_path / "p")) == []


@pytest.mark.slow
def test_a_large_slug_travels_near_the_links_speed(net: Net, tmp_path: Path) -> None:
    node = net.add("web1")
    image = pack(tmp_path / "p", 50 * 2**20)
    with net.connect(node) as connection:
        (result,) = ship.ship([connection], image)
    assert result.error is None
    # 175 MB/s alone on this kind of machine; the rest is room for a busy one
    assert image.size_bytes / result.duration_s > 15 * 2**20, result.duration_s


def test_paramiko_is_not_imported_before_a_connection_is_made() -> None:
    script = "import sys, bareku.receive.ship; sys.exit('paramiko' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
