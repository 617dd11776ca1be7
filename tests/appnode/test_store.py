"""The slug store with real squashfs images, as root (mounting) and not (unpacking)."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import time
from pathlib import Path

import pytest

from appnode.store import Store
from bareku.errors import BarekuError

UUID = "2765e91b-50c4-4d04-b92c-f38f82661b2a"
OTHER = "11111111-50c4-4d04-b92c-f38f82661b2a"
IS_ROOT = os.geteuid() == 0  # before any test says otherwise
PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir(mode=0o755)
    (folder / "app.py").write_text("x = 1\n")
    (folder / "python").symlink_to("/usr/bin/python3")
    (folder / "self").symlink_to("app.py")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "slugs")


def squash(tree: Path, *flags: str) -> bytes:
    image = tree.with_suffix(".img")
    image.unlink(missing_ok=True)
    argv = ["mksquashfs", str(tree), str(image), "-quiet", "-no-progress", "-all-root", *flags]
    subprocess.run(argv, env=PATH, check=True, capture_output=True)
    return image.read_bytes()


def put(store: Store, data: bytes, uuid: str = UUID) -> None:
    store.put(uuid, len(data), hashlib.sha256(data).hexdigest(), io.BytesIO(data))


def left_behind(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_an_image_is_missing_until_it_is_put(store: Store, tree: Path) -> None:
    assert store.missing([OTHER, UUID]) == [OTHER, UUID]
    put(store, squash(tree))
    assert store.missing([OTHER, UUID]) == [OTHER]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_node_that_can_mount_does_not_unpack(store: Store, tree: Path) -> None:
    put(store, squash(tree))
    assert left_behind(store) == [f"{UUID}.sqsh"]


@pytest.fixture
def unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this node one without rights to mount."""
    monkeypatch.setattr("appnode.store.os.geteuid", lambda: 1000)


@pytest.mark.usefixtures("unpacking")
def test_a_node_that_cannot_mount_unpacks(store: Store, tree: Path) -> None:
    put(store, squash(tree))
    assert left_behind(store) == [UUID, f"{UUID}.sqsh"]
    assert (store.folder / UUID / "app.py").read_text() == "x = 1\n"
    assert (store.folder / UUID / "self").readlink() == Path("app.py")


def test_a_transfer_that_ends_early_leaves_nothing(store: Store, tree: Path) -> None:
    data = squash(tree)
    with pytest.raises(BarekuError, match=f"ended after 100 of {len(data)} bytes"):
        store.put(UUID, len(data), hashlib.sha256(data).hexdigest(), io.BytesIO(data[:100]))
    assert left_behind(store) == []


def test_a_flipped_bit_leaves_nothing_and_the_old_image_stays(store: Store, tree: Path) -> None:
    data = squash(tree)
    put(store, data)
    before = left_behind(store)
    broken = bytearray(data)
    broken[len(data) // 2] ^= 1
    with pytest.raises(BarekuError, match="sha256"):
        store.put(UUID, len(data), hashlib.sha256(data).hexdigest(), io.BytesIO(bytes(broken)))
    assert left_behind(store) == before
    assert store.digest(UUID) == hashlib.sha256(data).hexdigest()


def test_what_is_no_squashfs_is_refused(store: Store) -> None:
    with pytest.raises(BarekuError, match="cannot be unpacked"):
        put(store, b"hsqs" + bytes(5000))
    assert left_behind(store) == []


def test_a_slug_larger_than_the_disk_is_refused_before_it_travels(store: Store) -> None:
    with pytest.raises(BarekuError, match="do not fit"):
        store.put(UUID, 2**50, "0" * 64, io.BytesIO())


def hostile_link(tree: Path) -> None:
    (tree / "keys").symlink_to("/home/git/.ssh")


def hostile_climb(tree: Path) -> None:
    (tree / "up").symlink_to("../other-slug")


def hostile_setuid(tree: Path) -> None:
    (tree / "sh").write_text("x")
    (tree / "sh").chmod(0o4755)


def hostile_pipe(tree: Path) -> None:
    os.mkfifo(tree / "pipe")


HOSTILE = [hostile_link, hostile_climb, hostile_setuid, hostile_pipe]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("way", ["mounted", "unpacked"])
def test_a_slug_that_holds_what_none_may_is_refused(
    store: Store, tree: Path, hostile: object, way: str, request: pytest.FixtureRequest
) -> None:
    if way == "unpacked":
        request.getfixturevalue("unpacking")
    elif os.geteuid() != 0:
        pytest.skip("mounting needs root")
    assert callable(hostile)
    hostile(tree)
    if hostile is hostile_setuid and not IS_ROOT:
        pytest.skip("without root the bit does not survive unpacking")
    with pytest.raises(BarekuError, match=f"cannot store {UUID}: (the link )?'"):
        put(store, squash(tree))
    assert left_behind(store) == []


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0, reason="an image with a device is unpacked whole by root only"
)
@pytest.mark.parametrize("way", ["mounted", "unpacked"])
def test_a_slug_that_holds_a_device_is_refused(
    store: Store, tree: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "unpacked":
        monkeypatch.setattr("appnode.store._mounted", lambda *_: None)
    data = squash(tree, "-p", "disk b 660 0 0 8 0")
    with pytest.raises(BarekuError, match="'disk' is a device"):
        put(store, data)
    assert left_behind(store) == []


def test_collect_keeps_what_it_is_told_and_what_runs(store: Store, tree: Path) -> None:
    data = squash(tree)
    uuids = [f"{n}{UUID[1:]}" for n in range(4)]
    for uuid in uuids:
        put(store, data, uuid)
    (store.folder / uuids[2]).mkdir(exist_ok=True)
    process = subprocess.Popen(["sleep", "60"], cwd=store.folder / uuids[2])
    try:
        assert store.collect([uuids[0]]) == [uuids[1], uuids[3]]
    finally:
        process.kill()
        process.wait()
    assert store.missing(uuids) == [uuids[1], uuids[3]]
    assert store.collect([uuids[0]]) == [uuids[2]]
    assert not (store.folder / uuids[2]).exists()


def test_collect_removes_old_parts_and_leaves_transfers_alone(store: Store) -> None:
    old, new = store.folder / f".{UUID}.1.part", store.folder / f".{OTHER}.2.part"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    store.collect([])
    assert left_behind(store) == [new.name]


@pytest.mark.parametrize("uuid", ["../x", "", "a/b", UUID.upper(), UUID + "\n"])
def test_a_name_that_is_no_slug_never_becomes_a_path(store: Store, uuid: str) -> None:
    with pytest.raises(BarekuError, match="as a slug"):
        store.image(uuid)
