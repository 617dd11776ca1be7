"""SSH public keys of people: parsed strictly, one file a key under `keys/<user>/`."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bareku import names
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.paths import Root

KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
MIN_RSA_BITS = 2048
MAX_LINE = 16 * 1024


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key; `blob` is what the client presents (RFC 4253 §6.6)."""

    kind: str
    blob: bytes
    comment: str

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen prints it: `SHA256:` and unpadded base64."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def line(self) -> str:
        """The key as one line, made from its parts, so that nothing else gets in."""
        return f"{self.kind} {base64.b64encode(self.blob).decode()} {self.comment}".rstrip()


def parse(text: str) -> PublicKey:
    """One public key line. Raises BarekuError for options, several keys, private or weak keys."""
    lines = [line for line in text.splitlines() if line.strip()]
    if "PRIVATE KEY" in text:
        raise _refusal("this is a private key; keep it secret", "give the file that ends in .pub")
    if len(lines) != 1 or len(lines[0]) > MAX_LINE:
        raise _refusal(
            f"expected one line with one public key, found {len(lines)}",
            "bareku keys:add NAME < ~/.ssh/id_ed25519.pub",
        )
    fields = lines[0].strip().split(None, 2)
    if len(fields) < 2 or fields[0] not in KINDS:
        raise _refusal(
            f"it does not begin with a key type, but with {fields[0][:40]!r}",
            f"the line must be `TYPE BASE64 COMMENT` with TYPE one of {', '.join(KINDS)}",
        )
    kind, encoded = fields[:2]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error as exc:
        raise _refusal(f"its second field is not base64 ({exc})", "copy the whole line") from exc
    parts = list(_strings(blob))
    if not parts or parts[0] != kind.encode():
        raise _refusal(f"its data is not a {kind} key", "copy the whole line")
    if kind == "ssh-rsa" and (len(parts) != 3 or _bits(parts[2]) < MIN_RSA_BITS):
        raise _refusal(
            f"it is an RSA key of less than {MIN_RSA_BITS} bits", "make one: ssh-keygen -t ed25519"
        )
    comment = "".join(c for c in (fields[2] if len(fields) > 2 else "") if c.isprintable())
    return PublicKey(kind, blob, comment.strip())


def add(root: Root, user: str, text: str) -> PublicKey:
    """Let `user` in with this key. Raises BarekuError when it is bad or someone else's."""
    names.parse_user(user)
    key = parse(text)
    for other, known in people(root):
        if known.blob == key.blob and other != user:
            raise BarekuError(
                f"cannot add the key {key.fingerprint}: it is already a key of {other}",
                hint=f"remove it there first: bareku keys:remove {other} {key.fingerprint}",
            )
    folder = root.keys / user
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(_path(folder, key), f"{key.line}\n".encode())
    return key


def remove(root: Root, user: str, fingerprint: str) -> int:
    """Take a key, or with an empty fingerprint all keys, from `user`; how many there were."""
    names.parse_user(user)
    found = [key for owner, key in people(root) if owner == user]
    chosen = [key for key in found if not fingerprint or key.fingerprint == fingerprint]
    if not chosen:
        raise BarekuError(
            f"cannot remove a key of {user}: no key of that name and fingerprint",
            hint="`bareku keys` lists them",
        )
    for key in chosen:
        _path(root.keys / user, key).unlink(missing_ok=True)
    if len(chosen) == len(found):
        (root.keys / user).rmdir()
    return len(chosen)


def people(root: Root) -> Iterator[tuple[str, PublicKey]]:
    """Every user with each of his keys, sorted; files that hold no valid key are passed over."""
    for path in sorted(root.keys.glob("*/*.pub")):
        try:
            yield path.parent.name, parse(path.read_text(errors="replace"))
        except BarekuError:
            continue


def owner(root: Root, blob: bytes) -> str | None:
    """Whose key this is, None when nobody's."""
    return next((user for user, key in people(root) if key.blob == blob), None)


def make_pair(path: Path, comment: str) -> None:
    """An ed25519 key pair: `path` (0600) and `path.pub`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, private, mode=0o600)
    write_atomic(path.with_name(path.name + ".pub"), public + f" {comment}\n".encode())


def _path(folder: Path, key: PublicKey) -> Path:
    return folder / f"{hashlib.sha256(key.blob).hexdigest()[:16]}.pub"


def _strings(blob: bytes) -> Iterator[bytes]:
    """The length-prefixed strings of a key blob (RFC 4251 §5)."""
    at = 0
    while at + 4 <= len(blob):
        size = int.from_bytes(blob[at : at + 4], "big")
        if at + 4 + size > len(blob):
            return
        yield blob[at + 4 : at + 4 + size]
        at += 4 + size


def _bits(number: bytes) -> int:
    return int.from_bytes(number, "big").bit_length()


def _refusal(why: str, hint: str) -> BarekuError:
    return BarekuError(f"cannot read the public key: {why}", hint=hint)
