from __future__ import annotations

import os
from pathlib import Path

import pytest

from bareku.errors import BarekuError
from bareku.files import locked, read_json, write_atomic, write_json


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_written_file_has_its_mode_and_leaves_no_temporary(tmp_path: Path) -> None:
    write_atomic(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["secret"]


def test_failed_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "document"
    write_atomic(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["document"]


def test_json_document_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"format": 1})
    assert read_json(tmp_path / "a.json") == {"format": 1}


def test_truncated_json_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"for')
    with pytest.raises(BarekuError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_second_locker_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", holder="ada is deploying"),
        pytest.raises(BarekuError, match="held by ada is deploying") as caught,
        locked(tmp_path / "lock", holder="bob"),
    ):
        pass
    assert caught.value.exit_code == 11


def test_lock_is_free_again_after_its_holder(tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        with locked(tmp_path / "lock", holder=name):
            pass
