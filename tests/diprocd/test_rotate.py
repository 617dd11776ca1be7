from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diprocd import rotate
from tests.diprocd.lone import Node, await_until, entry, sh

WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(int(sys.argv[2])):
    os.write(fd, b"line %d of the log, and some more to fill it\\n" % number)
"""
MEBIBYTE = 1 << 20


def parts(log: Path) -> list[Path]:
    """The rotated files, oldest first, then the log."""
    numbers = sorted(int(path.suffix[1:]) for path in log.parent.glob(f"{log.name}.*"))
    return [log.with_name(f"{log.name}.{number}") for number in reversed(numbers)] + [log]


def can_collapse(folder: Path) -> bool:
    """Asked of fallocate(1), not of what is tested here."""
    probe = folder / "probe"
    probe.write_bytes(bytes(65536))
    argv = ["fallocate", "--collapse-range", "--offset", "0", "--length", "32768", str(probe)]
    return subprocess.run(argv, capture_output=True).returncode == 0


@pytest.mark.slow
def test_rotation_under_a_writer_at_full_speed_loses_no_line(tmp_path: Path) -> None:
    if not can_collapse(tmp_path):
        pytest.skip("this file system cannot collapse ranges")
    log = tmp_path / "v1.web.1.log"
    count = 400_000
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(log), str(count)])
    rotations = 0
    while writer.poll() is None:
        rotations += log.exists() and rotate.rotate_if_large(log, MEBIBYTE, 1000)
    text = b"".join(path.read_bytes() for path in parts(log))
    numbers = [int(line.split()[1]) for line in text.splitlines()]
    assert rotations > 3
    assert numbers == list(range(count))


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "v1.web.1.log"
    log.write_bytes(b"line\n")
    assert not rotate.rotate_if_large(log, MEBIBYTE, 5)
    assert not rotate.rotate_if_large(tmp_path / "missing.log", MEBIBYTE, 5)
    assert parts(log) == [log]


def test_only_so_many_rotated_files_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "v1.web.1.log"
    for number in range(6):
        with log.open("ab") as file:
            file.write(bytes([48 + number]) * 100_000)
        assert rotate.rotate_if_large(log, 65_536, 2)
    assert [path.name for path in parts(log)] == [f"{log.name}.2", f"{log.name}.1", log.name]


def test_a_link_in_a_logs_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(bytes(100_000))
    link = tmp_path / "v1.web.1.log"
    link.symlink_to(target)
    assert not rotate.rotate_if_large(link, 65_536, 5)
    assert target.stat().st_size == 100_000


@given(
    st.sets(st.integers(1, 30), max_size=12), st.sets(st.integers(1, 30), max_size=3),
    st.integers(1, 5),
)  # fmt: skip
def test_the_newest_releases_and_those_that_run_keep_their_logs(
    tmp_path_factory: pytest.TempPathFactory, present: set[int], running: set[int], kept: int
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    for number in present:
        for name in ("web.1.log", "web.1.log.1", "web.2.log"):
            (folder / f"v{number}.{name}").touch()
    (folder / "notes.txt").touch()
    rotate.prune(folder, running, kept)
    left = {int(path.name[1:].partition(".")[0]) for path in folder.glob("v*")}
    assert (folder / "notes.txt").exists()
    assert present & running <= left <= present
    assert len(left) == min(len(present), max(kept, len(present & running)))
    removed = present - left
    assert not removed or not (left - running) or max(removed) < min(left - running)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, {"log_max_bytes": 65_536, "log_rotated": 2, "log_releases": 2})
    yield made
    made.end()


@pytest.mark.slow
def test_the_worker_keeps_an_apps_logs_bounded(node: Node) -> None:
    folder = node.folder / "logs" / "shop"
    folder.mkdir(parents=True)
    for number in (2, 3, 4):
        (folder / f"v{number}.web.1.log").write_text("old\n")
    node.start(entry(cmd=sh("yes | head -c 300000; exec sleep 600")))
    await_until(lambda: (folder / "v1.web.1.log.1").exists(), 15)
    await_until(lambda: len({path.name.split(".")[0] for path in folder.iterdir()}) == 2, 15)
    assert (folder / "v4.web.1.log").exists()
    assert json.loads((node.run / "worker.json").read_text())["processes"][0]["ready"]
