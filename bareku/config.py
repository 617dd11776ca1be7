"""Typed documents: YAML and JSON into msgspec structs; an unknown key names the nearest known one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bareku.errors import BarekuError, nearest

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 64 * 2**20  # a desired state of 10 000 processes takes about 10 MiB


def load(path: Path, kind: type[T]) -> T:
    """Read a `.yml`, `.yaml` or `.json` file as `kind`.

    Raises BarekuError naming the file, the key and the reason; never returns half a document.
    """
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise BarekuError(f"cannot read {path}: it is larger than {MAX_DOCUMENT_BYTES} bytes")
        data = path.read_bytes()
    except OSError as exc:
        raise BarekuError(f"cannot read {path}: {exc.strerror}") from exc
    return decode(data, kind, name=str(path), is_yaml=path.suffix in {".yml", ".yaml"})


def decode(data: bytes, kind: type[T], *, name: str, is_yaml: bool = False) -> T:
    """Bytes as `kind`; `name` is what the error calls the document. Raises BarekuError."""
    try:
        if is_yaml:
            return msgspec.convert(_yaml(data), kind)
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as exc:
        raise BarekuError(f"cannot read {name}: {exc}", hint=_hint(str(exc), kind)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BarekuError(f"cannot read {name}: {exc}") from exc


def _yaml(data: bytes) -> Any:
    import yaml

    try:
        loaded = yaml.safe_load(data)
    except yaml.YAMLError as exc:
        raise msgspec.DecodeError(" ".join(str(exc).split())) from exc
    return {} if loaded is None else loaded


def _hint(message: str, kind: Any) -> str:
    """`did you mean …` for msgspec's complaint about an unknown field."""
    unknown = re.search(r"unknown field `([^`]*)`", message)
    if not unknown:
        return ""
    near = nearest(unknown[1], sorted(_fields(kind, set())))
    return f"did you mean {near!r}?" if near else ""


def _fields(kind: Any, seen: set[Any]) -> set[str]:
    """Every field name of a struct and of the structs inside it."""
    names: set[str] = set()
    if kind in seen:
        return names
    seen.add(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            names.add(field.encode_name)
            names |= _fields(field.type, seen)
    for argument in getattr(kind, "__args__", ()):
        names |= _fields(argument, seen)
    return names
