"""What the master must not forget: epoch, versions and where everything runs.

`diprocd-placement.json` beside the desired document, written before anything is published.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
from msgspec import Struct

from bareku.files import write_atomic
from diprocd.spec import Doc


class Ledger(Struct, frozen=True):
    """The master's memory."""

    format: int = 1
    epoch: int = 1
    assign: dict[str, str] = {}
    leaving: dict[str, str] = {}
    docs: dict[str, Doc] = {}
    frontends: dict[str, Doc] = {}


def path_beside(config: Path) -> Path:
    """`diprocd-master.json` -> `diprocd-placement.json`"""
    return config.with_name(config.stem.removesuffix("-master") + "-placement.json")


def load(path: Path) -> Ledger:
    """The ledger, or a new one; a damaged one is kept aside for a person to look at."""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()
        try:
            return msgspec.json.decode(data, type=Ledger)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            path.replace(path.with_name(path.name + ".damaged"))
    return Ledger()


def save(path: Path, ledger: Ledger) -> None:
    """Write it durably. Raises OSError."""
    data = msgspec.json.format(msgspec.json.encode(ledger), indent=1)
    write_atomic(path, data + b"\n", mode=0o600)
