"""`bareku-appnode serve`: what the repository node may ask of an app node over SSH.

Runs as the forced command of one key. The words of SSH_ORIGINAL_COMMAND are split once and
checked; no shell sees them. Answers are one line, errors are `error: cannot ...` and exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from appnode.store import Store
from bareku.errors import BarekuError
from bareku.files import write_atomic
from bareku.names import parse_app, parse_process_type, parse_slug

MAX_COMMAND = 64 * 2**10
MAX_SLUG_BYTES = 2**40
MAX_LOG_LINES = 10_000
_TAIL_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of this node: slugs, `.def` files, logs of the processes."""

    slugs: Path
    defs: Path
    logs: Path


def main(argv: Sequence[str] | None = None) -> int:
    """The program `bareku-appnode`."""
    parser = argparse.ArgumentParser(prog="bareku-appnode", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve", help="answer one command of the repository node")
    serve.add_argument("--slugs", type=Path, required=True, help="folder of the slugs")
    serve.add_argument("--defs", type=Path, required=True, help="folder of the .def files")
    serve.add_argument("--logs", type=Path, required=True, help="folder of the processes' logs")
    options = parser.parse_args(argv)
    os.umask(0o022)
    places = Places(options.slugs, options.defs, options.logs)
    try:
        words = split(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
        answer(words, places, sys.stdin.buffer, sys.stdout.buffer)
        sys.stdout.flush()
    except BarekuError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return exc.exit_code
    except BrokenPipeError:
        return 1
    return 0


def split(command: str) -> list[str]:
    """The words of a command line; raises BarekuError for one that no honest client sends."""
    if len(command) > MAX_COMMAND:
        raise BarekuError("cannot serve: the command is too long")
    if not command or any(ord(c) < 32 or ord(c) == 127 for c in command):
        raise BarekuError("cannot serve: no command, or control bytes in it")
    try:
        return shlex.split(command)
    except ValueError as exc:
        raise BarekuError(f"cannot serve: {exc}") from exc


def answer(words: Sequence[str], places: Places, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Do what the words ask; raises BarekuError."""
    verb, *arguments = words or [""]
    if verb not in VERBS:
        raise BarekuError(f"cannot serve {verb[:40]!r}: the verbs are {', '.join(VERBS)}")
    VERBS[verb](arguments, places, stdin, stdout)


def _have(arguments: list[str], places: Places, _stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """`have UUID...`: those of them that are missing here."""
    stdout.write(" ".join(Store(places.slugs).missing(arguments)).encode() + b"\n")


def _put(arguments: list[str], places: Places, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """`put UUID SIZE SHA256`: the image follows on stdin."""
    uuid, size, sha256 = _exactly(arguments, "put UUID SIZE SHA256")
    _check_image(size, sha256)
    Store(places.slugs).put(parse_slug(uuid), int(size), sha256, stdin)
    stdout.write(b"ok\n")


def _patch(arguments: list[str], places: Places, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """`patch UUID SIZE SHA256 BASE DELTA-SIZE`: what makes the image of BASE follows on stdin."""
    uuid, size, sha256, base, delta_size = _exactly(
        arguments, "patch UUID SIZE SHA256 BASE DELTA-SIZE"
    )
    store = Store(places.slugs)
    if store.missing([base]):
        raise BarekuError(f"cannot store {parse_slug(uuid)}: its base {base} is not on this node")
    _check_image(size, sha256)
    _check_image(delta_size, sha256)
    store.patch(parse_slug(uuid), int(size), sha256, base, int(delta_size), stdin)
    stdout.write(b"ok\n")


def _def(arguments: list[str], places: Places, _stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """`def APP UUID`: the slug that is current for an app, as `uuid timestamp`."""
    app, uuid = _exactly(arguments, "def APP UUID")
    if Store(places.slugs).missing([uuid]):
        raise BarekuError(f"cannot define {parse_app(app)}: slug {uuid} is not on this node")
    places.defs.mkdir(parents=True, exist_ok=True)
    line = f"{uuid} {int(time.time())}\n"
    write_atomic(places.defs / f"{parse_app(app)}.def", line.encode())
    stdout.write(b"ok\n")


def _logs(arguments: list[str], places: Places, _stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """`logs APP vRELEASE.PROCESS [-n N]`: the last lines of a process's log, such as v3.web.1."""
    count = 100
    if len(arguments) == 4 and arguments[2] == "-n":
        if not re.fullmatch(r"[0-9]{1,6}", arguments[3]):
            raise BarekuError(f"cannot show {arguments[3][:20]!r} lines")
        count = min(int(arguments[3]), MAX_LOG_LINES)
        arguments = arguments[:2]
    app, process = _exactly(arguments, "logs APP PROCESS [-n N]")
    found = re.fullmatch(r"(v[0-9]{1,9})\.([^.]+)\.([0-9]{1,5})", process)
    if not found:
        raise BarekuError(f"cannot show the log of {process[:80]!r}: it is not like v3.web.1")
    release, kind, index = found.groups()
    name = f"{release}.{parse_process_type(kind)}.{int(index)}.log"
    file = places.logs / parse_app(app) / name
    for line in _tail(file, count):
        stdout.write(line + b"\n")


def _collect(arguments: list[str], places: Places, _stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """`collect KEEP-UUID...`: remove the other slugs, except current and used ones."""
    current = [_current(file) for file in places.defs.glob("*.def")]
    removed = Store(places.slugs).collect([*arguments, *filter(None, current)])
    stdout.write(f"removed {len(removed)}\n".encode())


def _verify(arguments: list[str], places: Places, _stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """`verify UUID...`: the sha256 of each image as it is on disk now."""
    store = Store(places.slugs)
    stdout.write(" ".join(store.digest(uuid) for uuid in arguments).encode() + b"\n")


VERBS: Mapping[str, Callable[[list[str], Places, IO[bytes], IO[bytes]], None]] = {
    "have": _have,
    "put": _put,
    "patch": _patch,
    "def": _def,
    "logs": _logs,
    "collect": _collect,
    "verify": _verify,
}


def _check_image(size: str, sha256: str) -> None:
    if not re.fullmatch(r"[0-9]{1,13}", size) or not 0 < int(size) <= MAX_SLUG_BYTES:
        raise BarekuError(f"cannot store a slug of {size[:20]!r} bytes")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise BarekuError(f"cannot store a slug: {sha256[:80]!r} is no sha256")


def _exactly(arguments: Sequence[str], usage: str) -> Sequence[str]:
    wanted = usage.replace("[-n N]", "").split()[1:]
    if len(arguments) != len(wanted):
        raise BarekuError(f"cannot serve: usage: {usage}")
    return arguments


def _current(file: Path) -> str | None:
    with contextlib.suppress(OSError, BarekuError, IndexError):
        return parse_slug(file.read_text().split()[0])
    return None


def _tail(file: Path, count: int) -> list[bytes]:
    """The last lines of a log that may be of any size."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise BarekuError(
            f"cannot show the log {file.parent.name}/{file.stem}: {exc.strerror}"
        ) from exc
    with os.fdopen(fd, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - _TAIL_BYTES))
        lines = opened.read(_TAIL_BYTES).split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines[len(lines) - count :] if count < len(lines) else lines


if __name__ == "__main__":
    sys.exit(main())
