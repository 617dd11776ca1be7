"""Slugs as real squashfs images."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from pathlib import Path

import pytest

from bareku.errors import BarekuError
from bareku.receive import slug
from bareku.receive.build import Built

BUILT = Built({"web": "gunicorn app:app"}, "Python", {"A": "1"}, "python-3.11", "root")
NAME = slug.slug_id("tree", "buildpack", "debian-12-x86_64", "python-3.11")


def fill(tree: Path, *, order: int = 0) -> Path:
    """The same content each time, written in another order and at another time."""
    numbers = list(range(60))
    random.Random(order).shuffle(numbers)
    for number in numbers:
        folder = tree / f"d{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"f{number}"
        file.write_text(str(number) * 1000)
        file.chmod(0o775 if number % 2 else 0o664)
        os.utime(file, (order * 1000, order * 1000))
    (tree / "link").symlink_to("d1/f1")
    (tree / "python").symlink_to("/usr/bin/python3")
    tree.chmod(0o700)
    return tree


def listing(image: Path) -> str:
    argv = ["unsquashfs", "-lln", str(image)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_equal_trees_make_equal_bytes(tmp_path: Path) -> None:
    first = slug.pack(fill(tmp_path / "a", order=1), tmp_path / "s", name=NAME, built=BUILT)
    data = first.path.read_bytes()
    second = slug.pack(fill(tmp_path / "b", order=2), tmp_path / "t", name=NAME, built=BUILT)
    assert second.path.read_bytes() == data
    assert first.sha256 == second.sha256
    assert first.size_bytes == len(data)


def test_everybody_may_enter_and_read_and_nobody_owns_it(tmp_path: Path) -> None:
    packed = slug.pack(fill(tmp_path / "a"), tmp_path / "s", name=NAME, built=BUILT)
    lines = [line for line in listing(packed.path).splitlines() if "squashfs-root" in line]
    assert {line.split()[1] for line in lines} == {"0/0"}
    assert {line.split()[0] for line in lines} == {
        "drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx",
    }  # fmt: skip


def test_a_slug_is_found_again_with_what_its_build_said(tmp_path: Path) -> None:
    assert slug.find(tmp_path, NAME) is None
    packed = slug.pack(fill(tmp_path / "a"), tmp_path / "s", name=NAME, built=BUILT)
    assert slug.find(tmp_path / "s", NAME) == packed
    packed.path.write_bytes(packed.path.read_bytes()[:-1])
    assert slug.find(tmp_path / "s", NAME) is None


def test_the_name_follows_from_the_input_alone() -> None:
    assert slug.slug_id("t", "b", "s", "r") == slug.slug_id("t", "b", "s", "r")
    names = {slug.slug_id(*words) for words in ("tbsr", "xbsr", "txsr", "tbxr", "tbsx")}
    assert len(names) == 5


def test_setuid_bits_sockets_and_pipes_do_not_travel(tmp_path: Path) -> None:
    tree = fill(tmp_path / "a")
    (tree / "su").write_text("x")
    (tree / "su").chmod(0o6777)
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "sock"))
    text = listing(slug.pack(tree, tmp_path / "s", name=NAME, built=BUILT).path)
    assert "pipe" not in text
    assert "sock" not in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("/su")] == ["-rwxr-xr-x"]


@pytest.mark.parametrize(
    "target", ["/etc/shadow", "/usr/../etc/shadow", "../../x", "../d1/../../x"]
)
def test_a_link_out_of_the_slug_is_refused(tmp_path: Path, target: str) -> None:
    tree = fill(tmp_path / "a")
    (tree / "d1" / "bad").symlink_to(target)
    with pytest.raises(BarekuError, match=r"the link 'd1/bad' points out of it"):
        slug.pack(tree, tmp_path / "s", name=NAME, built=BUILT)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_refused(tmp_path: Path) -> None:
    tree = fill(tmp_path / "a")
    os.mknod(tree / "null", 0o020666, os.makedev(1, 3))
    with pytest.raises(BarekuError, match="'null' is a device"):
        slug.pack(tree, tmp_path / "s", name=NAME, built=BUILT)


def test_a_failed_pack_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slug, "MAX_SLUG_BYTES", 100)
    with pytest.raises(BarekuError, match="at most 100 are allowed"):
        slug.pack(fill(tmp_path / "a"), tmp_path / "s", name=NAME, built=BUILT)
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(1, "1KB"), (499_712, "488KB"), (1024 * 1024, "1MB"), (11_534_336, "11MB")],
)
def test_sizes_read_as_in_the_transcript(size_bytes: int, text: str) -> None:
    assert slug.human_size(size_bytes) == text
