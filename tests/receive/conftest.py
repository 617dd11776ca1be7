"""What the tests of buildpacks share: build an app, serve its slug from another place."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from bareku import procfile
from bareku.receive import build, slug
from bareku.receive.slug import Slug


class Bench:
    """Builds apps and runs their slugs somewhere else than where they were built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.lines: list[str] = []
        self._count = 0

    def build(
        self,
        files: Mapping[str, str],
        env: Mapping[str, str] | None = None,
        *,
        binary: Mapping[str, bytes] | None = None,
        executable: Sequence[str] = (),
    ) -> Slug:
        self._count += 1
        tree = self.folder / f"work{self._count}" / "app"
        contents = {name: text.encode() for name, text in files.items()} | dict(binary or {})
        for name, content in contents.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
        for name in executable:
            (tree / name).chmod(0o755)
        found = build.detect(tree)
        self.lines.clear()
        built = build.compile(
            tree, found, cache=self.cache, env=env or {}, revision="5" * 40,
            output=self.lines.append,
        )  # fmt: skip
        name = slug.slug_id(
            str(self._count), build.digest(found.path), build.stack(), found.runtime
        )
        packed = slug.pack(tree, self.folder / "slugs", name=name, built=built)
        build.keep(tree, self.cache)
        return packed

    @contextlib.contextmanager
    def serve(self, packed: Slug, kind: str = "web") -> Iterator[str]:
        """The URL of a process of the slug, unpacked to a place of its own, read-only."""
        place = self.folder / "place" / packed.uuid
        if not place.exists():
            argv = ["unsquashfs", "-quiet", "-no-progress", "-d", str(place), str(packed.path)]
            place.parent.mkdir(exist_ok=True)
            subprocess.run(argv, check=True, capture_output=True)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        env = {"HOME": str(place), "PORT": str(port), "PATH": "/usr/local/bin:/usr/bin:/bin"}
        argv = procfile.start_argv(packed.built.process_types[kind])
        log = self.folder / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                argv, env=env, cwd=place, stdout=stream, stderr=stream, start_new_session=True
            )
            try:
                _wait_for(port, process, log)
                yield f"http://127.0.0.1:{port}"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 15)
                process.wait(10)

    @staticmethod
    def get(url: str) -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.connect(("127.0.0.1", port))
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
