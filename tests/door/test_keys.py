from __future__ import annotations

import base64
from pathlib import Path

import pytest

from bareku.door import keys
from bareku.door.keys import make_pair
from bareku.errors import BarekuError
from bareku.paths import Root


def public(tmp_path: Path, name: str = "id") -> str:
    make_pair(tmp_path / name, "ada@laptop")
    return (tmp_path / f"{name}.pub").read_text()


def rsa(bits: int) -> str:
    def string(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    modulus = (1 << (bits - 1)).to_bytes(bits // 8, "big")
    blob = string(b"ssh-rsa") + string(b"\1\0\1") + string(b"\0" + modulus)
    return f"ssh-rsa {base64.b64encode(blob).decode()} short"


def test_added_key_belongs_to_its_user(tmp_path: Path) -> None:
    root = Root(tmp_path)
    key = keys.add(root, "ada", public(tmp_path))
    assert keys.owner(root, key.blob) == "ada"
    assert keys.owner(root, b"another") is None
    assert key.comment == "ada@laptop"


def test_same_key_again_changes_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    text = public(tmp_path)
    keys.add(root, "ada", text)
    keys.add(root, "ada", text)
    assert len(list(keys.people(root))) == 1


def test_key_of_another_user_is_refused(tmp_path: Path) -> None:
    root = Root(tmp_path)
    text = public(tmp_path)
    keys.add(root, "ada", text)
    with pytest.raises(BarekuError, match="already a key of ada"):
        keys.add(root, "bob", text)


def test_removed_key_lets_nobody_in(tmp_path: Path) -> None:
    root = Root(tmp_path)
    key = keys.add(root, "ada", public(tmp_path))
    assert keys.remove(root, "ada", key.fingerprint) == 1
    assert keys.owner(root, key.blob) is None
    with pytest.raises(BarekuError, match="no key of that name"):
        keys.remove(root, "ada", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found 0"),
        ("ssh-ed25519", "does not begin with a key type"),
        ('command="id" ssh-ed25519 AAAA', "does not begin with a key type"),
        ("ssh-ed25519 AAAA!", "not base64"),
        ("ssh-ed25519 AAAA", "its data is not a ssh-ed25519 key"),
        ("ssh-dss AAAA", "does not begin with a key type"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "private key"),
        (rsa(1024), "less than 2048 bits"),
    ],
)
def test_bad_key_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BarekuError, match=reason):
        keys.parse(text)


def test_long_rsa_key_is_accepted() -> None:
    assert keys.parse(rsa(3072)).kind == "ssh-rsa"


def test_two_keys_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BarekuError, match="found 2"):
        keys.parse(public(tmp_path, "a") + public(tmp_path, "b"))


def test_control_characters_of_a_comment_are_dropped(tmp_path: Path) -> None:
    text = public(tmp_path).rstrip() + "\x1b[31m\t\r"
    assert keys.parse(text).line.isprintable()


def test_user_name_cannot_leave_the_key_folder(tmp_path: Path) -> None:
    with pytest.raises(BarekuError, match="as a user name"):
        keys.add(Root(tmp_path), "../evil", public(tmp_path))
