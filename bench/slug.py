"""What a push costs besides the app's own start: build, pack, ship, mount; on one machine.

The app has about 50 MB of packages from the index; between two measurements one line of it changes.
The node is a real sshd on loopback whose forced command is `bareku-appnode`.
usage: script/bench slug [--quick] [--json]
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bareku.receive import build, sandbox, ship, slug
from bareku.receive.build import Built
from bareku.receive.ship import NodeAddress
from bareku.receive.slug import Slug

SMALL = "flask\ngunicorn\n"
LARGE = "django\ngunicorn\nbabel\nsqlalchemy\nrequests\n"  # 50 MB, without bytecode
APP = "from flask import Flask\napp = Flask(__name__)\nVERSION = {version}\n"

SSHD = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host_key
AuthorizedKeysFile {home}/authorized_keys
PidFile none
StrictModes no
PermitRootLogin yes
UsePAM no
"""


class Site:
    """A folder in which an app is built again and again."""

    def __init__(self, home: Path, requirements: str) -> None:
        self.home = home
        self.cache = home / "cache"
        self.requirements = requirements
        self._number = 0

    def export(self) -> Path:
        """The tree of a new push, one line different from the last one's."""
        self._number += 1
        tree = self.home / f"work{self._number}" / "app"
        tree.mkdir(parents=True)
        (tree / "requirements.txt").write_text(self.requirements)
        (tree / "app.py").write_text(APP.format(version=self._number))
        return tree

    def build(self, tree: Path) -> Built:
        found = build.detect(tree)
        return build.compile(
            tree, found, cache=self.cache, env={}, revision="0" * 40, output=lambda _: None
        )

    def pack(self, tree: Path, built: Built) -> Slug:
        name = slug.slug_id(str(self._number), "", "", "")
        return slug.pack(tree, self.home / "slugs", name=name, built=built)

    def tidy(self, tree: Path) -> None:
        build.keep(tree, self.cache)
        shutil.rmtree(tree.parent)


def elapsed_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def cold_build_ratio(home: Path, rounds: int) -> dict[str, float]:
    """A first build of a Flask app against `uv pip install` of the same packages, each uncached."""
    uv = str(sandbox.uv_program())
    ours, theirs = [], []
    for number in range(rounds):
        site = Site(home / f"cold{number}", SMALL)
        tree = site.export()
        ours.append(elapsed_ms(lambda s=site, t=tree: s.build(t)))  # type: ignore[misc]
        venv = home / f"venv{number}"
        env = {**os.environ, "VIRTUAL_ENV": str(venv), "UV_CACHE_DIR": str(home / f"uv{number}")}
        subprocess.run([uv, "venv", "-q", "--python", "/usr/bin/python3", str(venv)], check=True)
        install = [
            uv,
            "pip",
            "install",
            "-q",
            "--compile-bytecode",
            "-r",
            str(tree / "requirements.txt"),
        ]
        theirs.append(elapsed_ms(lambda i=install, e=env: subprocess.run(i, env=e, check=True)))  # type: ignore[misc]
    ours_ms, theirs_ms = statistics.median(ours), statistics.median(theirs)
    return {
        "cold_build_ms": round(ours_ms),
        "uv_install_ms": round(theirs_ms),
        "cold_build_ratio": round(ours_ms / theirs_ms, 2),
    }


def one_line(home: Path, rounds: int) -> dict[str, float]:
    """Pushes of one changed line: warm build, then pack, ship and mount."""
    site = Site(home / "large", LARGE)
    tree = site.export()
    base = site.pack(tree, site.build(tree))
    packages = [
        file for file in (tree / ".venv").rglob("*") if file.is_file() and file.suffix != ".pyc"
    ]
    deps_mb = sum(file.stat().st_size for file in packages) / 2**20
    site.tidy(tree)
    warm, packed, shipped, mounted, sent = [], [], [], [], []
    with contextlib.ExitStack() as stack:
        address, key, known_hosts, slugs = stack.enter_context(node(home))
        connection = stack.enter_context(ship.connect(address, key, known_hosts))
        ship.ship([connection], base)
        for _ in range(rounds):
            tree = site.export()
            started = time.perf_counter()
            built = site.build(tree)
            warm.append((time.perf_counter() - started) * 1000)
            started = time.perf_counter()
            made = site.pack(tree, built)
            packed.append((time.perf_counter() - started) * 1000)
            (delivery,) = ship.ship([connection], made, base=base)
            if delivery.error:
                raise delivery.error
            shipped.append((time.perf_counter() - started) * 1000 - packed[-1])
            sent.append(delivery.sent_bytes / 1024)
            mounted.append(elapsed_ms(lambda m=made: mount(slugs / f"{m.uuid}.sqsh")))  # type: ignore[misc]
            site.tidy(tree)
            base = made
    parts = [statistics.median(each) for each in (packed, shipped, mounted)]
    return {
        "dependencies_mb": round(deps_mb, 1),
        "slug_mb": round(base.size_bytes / 2**20, 1),
        "warm_build_ms": round(statistics.median(warm)),
        "pack_ms": round(parts[0]),
        "ship_ms": round(parts[1]),
        "mount_ms": round(parts[2]),
        "pack_ship_mount_ms": round(sum(parts)),
        "shipped_kb_1line": round(statistics.median(sent), 1),
    }


def mount(image: Path) -> None:
    """Mount an image where it ends with its namespace; nothing without root."""
    if os.geteuid() == 0:
        script = 'mount -t squashfs -o loop,ro,nodev,nosuid "$1" /mnt'
        argv = ["unshare", "--mount", "--", "sh", "-c", script, "mount", str(image)]
        subprocess.run(argv, check=True)


@contextlib.contextmanager
def node(home: Path) -> Iterator[tuple[NodeAddress, Path, Path, Path]]:
    """An app node: its address, our key, the file with its host key, its slug folder."""
    home = home / "node"
    home.mkdir()
    for name in ("host_key", "deploy"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)]
        subprocess.run(argv, check=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    program = Path(sys.executable).with_name("bareku-appnode")
    folders = " ".join(f"--{name} {home / name}" for name in ("slugs", "defs", "logs"))
    public = (home / "deploy.pub").read_text()
    (home / "authorized_keys").write_text(f'restrict,command="{program} serve {folders}" {public}')
    host_key = " ".join((home / "host_key.pub").read_text().split()[:2])
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (home / "sshd_config").write_text(SSHD.format(home=home, port=port))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    argv = ["/usr/sbin/sshd", "-D", "-f", str(home / "sshd_config")]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port)
            address = NodeAddress("node1", "127.0.0.1", port, getpass.getuser())
            yield address, home / "deploy", home / "known_hosts", home / "slugs"
        finally:
            process.terminate()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise TimeoutError("sshd does not listen")


def main() -> None:
    rounds = 1 if "--quick" in sys.argv else 5
    with tempfile.TemporaryDirectory(prefix="bench-slug-", dir="/var/tmp") as folder:
        home = Path(folder)
        found = {**cold_build_ratio(home, min(rounds, 3)), **one_line(home, rounds)}
    found["isolation"] = str(sandbox.available())  # type: ignore[assignment]
    if "--json" in sys.argv:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
