"""Python apps as people push them, through the whole build, served over HTTP from the slug."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bareku import procfile
from bareku.errors import BarekuError
from bareku.receive import build, slug
from bareku.receive.slug import Slug

pytestmark = pytest.mark.slow

FLASK = 'from flask import Flask\napp = Flask(__name__)\n@app.get("/")\ndef index():\n    return "hello"\n'


class Bench:
    """Builds apps and runs their slugs somewhere else than where they were built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._count = 0

    def build(self, files: Mapping[str, str], env: Mapping[str, str] | None = None) -> Slug:
        self._count += 1
        tree = self.folder / f"work{self._count}" / "app"
        for name, text in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        found = build.detect(tree)
        self.lines.clear()
        built = build.compile(
            tree, found, cache=self.folder / "cache", env=env or {}, revision="5" * 40,
            output=self.lines.append,
        )  # fmt: skip
        name = slug.slug_id(
            str(self._count), build.digest(found.path), build.stack(), found.runtime
        )
        return slug.pack(tree, self.folder / "slugs", name=name, built=built)

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
                wait_for(port, process, log)
                yield f"http://127.0.0.1:{port}"
            finally:
                os.killpg(process.pid, 15)
                process.wait(10)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.connect(("127.0.0.1", port))
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_flask_app_is_built_and_served_and_its_second_build_is_the_same(bench: Bench) -> None:
    files = {"app.py": FLASK, "requirements.txt": "flask\ngunicorn\n"}
    first = bench.build(files)
    assert first.built.runtime.startswith("python-3.")
    assert first.built.process_types == {"web": "gunicorn --bind 127.0.0.1:$PORT app:app"}
    with bench.serve(first) as url:
        assert get(url) == "hello"
    second = bench.build(files)
    assert bench.lines[0].startswith("-----> Using the packages of the last build")
    assert second.sha256 == first.sha256
    with bench.serve(second) as url:
        assert get(url) == "hello"


def test_a_slug_holds_bytecode_that_no_start_makes_again(bench: Bench) -> None:
    packed = bench.build({"app.py": FLASK, "requirements.txt": "flask\n"})
    place = bench.folder / "place"
    subprocess.run(["unsquashfs", "-quiet", "-d", str(place), str(packed.path)], check=True,
                   capture_output=True)  # fmt: skip
    argv = [str(place / ".venv/bin/python"), "-v", "-c", "import app"]
    env = {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run(argv, env=env, capture_output=True, text=True).stderr
    assert "flask/__pycache__" in said
    compiled = [
        line for line in said.splitlines() if "code object from" in line and ".pyc" not in line
    ]
    assert [line for line in compiled if str(place) in line] == []


def test_a_package_that_does_not_exist_is_named(bench: Bench) -> None:
    missing = "surely-no-such-package-of-bareku"
    with pytest.raises(BarekuError) as caught:
        bench.build({"app.py": FLASK, "requirements.txt": f"{missing}==1.0\n"})
    assert caught.value.message == (
        "cannot build with the python buildpack: no package called "
        f"'{missing}' was found in the package index; it is named in requirements.txt"
    )
    assert not (bench.folder / "cache").exists()


def test_a_python_that_is_not_here_is_told_with_the_choices(bench: Bench) -> None:
    with pytest.raises(BarekuError, match=r"asks for Python '3.4'; this machine has 3\.\d+"):
        bench.build({"app.py": FLASK, "requirements.txt": "flask\n", ".python-version": "3.4\n"})
