from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bareku import settings
from bareku.cli import machine
from bareku.door import keys
from bareku.door.keys import make_pair
from bareku.paths import Root
from bareku.receive import repository
from bareku.settings import Settings, address

pytestmark = pytest.mark.slow


@dataclass
class Door:
    root: Root
    port: int
    key: Path

    def ssh(
        self, *words: str, user: str = "git", key: Path | None = None, data: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.client(key), f"{user}@127.0.0.1", *words],
            input=data,
            capture_output=True,
            timeout=60,
        )

    def client(self, key: Path | None = None) -> list[str]:
        known = self.root.ssh / "known_hosts"
        return [
            "ssh", "-F", "none", "-p", str(self.port), "-i", str(key or self.key),
            "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={known}",
            "-o", "BatchMode=yes",
        ]  # fmt: skip

    def git(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "GIT_SSH_COMMAND": " ".join(self.client())}
        return subprocess.run(
            ["git", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
        )


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    root = Root(tmp_path_factory.mktemp("root"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings.create(root, Settings(ssh=f"127.0.0.1:{port}"))
    machine.prepare(root, settings.load(root))
    make_pair(root.path / "ada", "ada")
    keys.add(root, "ada", (root.path / "ada.pub").read_text())
    repository.create(root.repository("hello"), "master")
    log = (root.logs / "door.log").open("wb")
    argv = [sys.executable, "-m", "bareku.door.server", "--config", str(root.ssh / "door.yml")]
    server = subprocess.Popen(argv, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not (root.run / "door.json").exists():
            assert server.poll() is None, (root.logs / "door.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Door(root, address(f"127.0.0.1:{port}")[1], root.path / "ada")
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def test_unknown_key_is_refused(door: Door) -> None:
    make_pair(door.root.path / "eve", "eve")
    done = door.ssh("apps", key=door.root.path / "eve")
    assert done.returncode == 255
    assert b"Permission denied (publickey)" in done.stderr


def test_known_key_under_another_login_is_refused(door: Door) -> None:
    assert b"Permission denied" in door.ssh("apps", user="root").stderr
    assert b"Permission denied" in door.ssh("apps", user="bareku").stderr


def test_there_is_no_shell(door: Door) -> None:
    done = door.ssh()
    assert done.returncode == 1
    assert b"there is no login" in done.stderr


def test_verb_prints_and_passes_its_exit_code(door: Door) -> None:
    done = door.ssh("apps")
    assert (done.returncode, done.stdout.split()[0]) == (0, b"hello")
    assert door.ssh("ps", "nobody-knows").returncode == 20


def test_mistyped_verb_names_the_nearest(door: Door) -> None:
    done = door.ssh("apps:craete", "x")
    assert done.returncode == 2
    assert b"did you mean `bareku apps:create`?" in done.stderr


def test_standard_input_reaches_the_verb(door: Door) -> None:
    make_pair(door.root.path / "bob", "bob")
    done = door.ssh("keys:add", "bob", data=(door.root.path / "bob.pub").read_bytes())
    assert done.stdout.startswith(b"Added SHA256:")
    assert door.ssh("apps", key=door.root.path / "bob").returncode == 0


def test_empty_repository_can_be_cloned(door: Door, tmp_path: Path) -> None:
    remote = f"ssh://git@127.0.0.1:{door.port}/hello.git"
    done = door.git("clone", "-q", remote, "copy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_app_that_does_not_exist_is_named(door: Door, tmp_path: Path) -> None:
    done = door.git("ls-remote", f"ssh://git@127.0.0.1:{door.port}/helo.git", cwd=tmp_path)
    assert "cannot find the app 'helo'" in done.stderr
    assert "did you mean 'hello'?" in done.stderr


def test_forwarding_is_refused(door: Door) -> None:
    done = subprocess.run(
        [*door.client(), "-W", "127.0.0.1:1", "git@127.0.0.1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 255
    assert b"prohibited" in done.stderr


def test_host_key_stays_the_same(door: Door) -> None:
    before = (door.root.ssh / "host_ed25519.pub").read_text()
    machine.prepare(door.root, settings.load(door.root))
    assert (door.root.ssh / "host_ed25519.pub").read_text() == before
    assert (door.root.ssh / "host_ed25519").stat().st_mode & 0o777 == 0o600


def test_large_push_arrives_whole(door: Door, tmp_path: Path) -> None:
    """On a branch that is not deployed: 20 MiB through the door and back."""
    work = tmp_path / "work"
    remote = f"ssh://git@127.0.0.1:{door.port}/hello.git"
    door.git("init", "-q", "-b", "side", str(work), cwd=tmp_path)
    (work / "blob").write_bytes(os.urandom(20 * 2**20))
    door.git("add", "-A", cwd=work)
    door.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "blob", cwd=work)
    pushed = door.git("push", remote, "side", cwd=work)
    assert pushed.returncode == 0, pushed.stderr
    assert "refs/heads/side is not master" in pushed.stderr
    assert "git push bareku side:master" in pushed.stderr
    cloned = door.git("clone", "-q", "-b", "side", remote, "back", cwd=tmp_path)
    assert cloned.returncode == 0, cloned.stderr
    assert (tmp_path / "back" / "blob").read_bytes() == (work / "blob").read_bytes()
