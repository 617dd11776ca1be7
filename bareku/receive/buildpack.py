"""Which buildpacks there are: ours by order, or those that an app or its owner names.

A buildpack is a folder with bin/detect, bin/compile and bin/release. Runs none of them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bareku import paths
from bareku.errors import BarekuError, nearest

MAX_TEXT_BYTES = 64 * 2**10  # of a Procfile, .buildpacks and the like: the largest have 50 lines
MAX_CHOSEN = 8
NOT_OF_IT = frozenset({".git", "__pycache__"})  # beside a buildpack's files, not among them

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_URL = re.compile(r"(?:https?|git|file)://[^\s#]+")

# what our buildpacks go by; for the error when nothing fits
LOOKED_FOR = (
    "requirements.txt", "pyproject.toml", "Pipfile", "setup.py", "package.json", "composer.json",
    "index.php", "go.mod", "Gemfile", "Cargo.toml", "pom.xml", "index.html", "Staticfile", "Procfile",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Buildpack:
    """What builds a tree: a buildpack, those that run before it, what it calls the app."""

    path: Path
    display_name: str
    runtime: str = ""
    also: tuple[str, ...] = ()  # other buildpacks that would fit
    before: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def all(self) -> tuple[Path, ...]:
        """In the order in which they run."""
        return (*self.before, self.path)


@dataclass(frozen=True, slots=True)
class Choice:
    """A buildpack that was named: one of ours or of this machine, or one to be cloned."""

    path: Path | None = None
    url: str = ""
    ref: str = ""


def ours() -> list[Path]:
    """Our buildpacks in the order in which they are asked."""
    folder = paths.buildpacks()
    return [folder / name for name in (folder / "order").read_text().split()]


def stack() -> str:
    """What a slug built here needs of a node besides its runtime: `debian-12-x86_64`."""
    release = platform.freedesktop_os_release()
    version = release.get("VERSION_ID", "unstable")
    return f"{release.get('ID', 'linux')}-{version}-{platform.machine()}"


def digest(buildpack: Buildpack | Path, env: Mapping[str, str] | None = None) -> str:
    """sha256 over the files of the buildpacks, our library, and the config vars that they heed.

    Another digest, another slug. A buildpack's file `build-vars` names the vars; without one each
    of them may matter.
    """
    total = hashlib.sha256()
    for home in (buildpack,) if isinstance(buildpack, Path) else buildpack.all:
        has_library = (home.parent / "order").is_file()
        for folder in (home, home.parent / "lib") if has_library else (home,):
            for file in sorted(folder.rglob("*")):
                inside = file.relative_to(folder)
                if file.is_file() and not NOT_OF_IT & set(inside.parts):
                    content = hashlib.sha256(file.read_bytes()).hexdigest()
                    total.update(f"{folder.name}/{inside} {content}\n".encode())
        for key, value in sorted((env or {}).items()):
            if any(fnmatchcase(key, pattern) for pattern in _heeded(home)):
                total.update(f"{key}={value!r}\n".encode())
    return total.hexdigest()


def _heeded(home: Path) -> list[str]:
    """Patterns of the config vars that change what a buildpack makes."""
    try:
        lines = (home / "build-vars").read_text().split("\n")
    except OSError:
        return ["*"]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def parse_choices(lines: Sequence[str], *, is_trusted: bool) -> list[Choice]:
    """`python`, `heroku/python`, `https://host/pack.git#ref`; paths only when an admin says so.

    Raises BarekuError for what is none of them.
    """
    choices = []
    for line in (raw.strip() for raw in lines):
        if not line or line.startswith("#"):
            continue
        url, _, ref = line.partition("#")
        name = url.removeprefix("heroku/")
        known = paths.buildpacks() / name
        if _NAME.fullmatch(name) and (known / "bin" / "detect").is_file():
            choices.append(Choice(path=known))
        elif _URL.fullmatch(url) and not ref.startswith("-"):
            choices.append(Choice(url=url, ref=ref))
        elif is_trusted and line.startswith("/") and (Path(line) / "bin" / "detect").is_file():
            choices.append(Choice(path=Path(line)))
        else:
            names = [path.name for path in ours()]
            near = nearest(url, names)
            raise BarekuError(
                f"cannot use {line[:80]!r} as a buildpack: it is neither one of ours nor a URL",
                hint=f"did you mean {near!r}?" if near else f"ours are {', '.join(names)}",
            )
    if len(choices) > MAX_CHOSEN:
        raise BarekuError(f"cannot use {len(choices)} buildpacks: at most {MAX_CHOSEN} may run")
    return choices


def read_text(tree: Path, name: str) -> str | None:
    """A small text file of an app, None when it is not there.

    It may be a link inside the app; anything else that is no UTF-8 text raises BarekuError.
    """
    what = f"cannot read {name}"
    if not os.path.lexists(tree / name):
        return None
    real = Path(os.path.realpath(tree / name))
    if not real.is_relative_to(tree.resolve()):
        raise BarekuError(f"{what}: it is a link out of the app")
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise BarekuError(f"{what}: {exc.strerror}") from exc
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BarekuError(f"{what}: it is not a file")
        data = os.read(fd, MAX_TEXT_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_TEXT_BYTES:
        raise BarekuError(f"{what}: it has more than {MAX_TEXT_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise BarekuError(f"{what}: it is not UTF-8 at byte {exc.start}") from exc


def nothing_fits(tree: Path, asked: Sequence[Path]) -> BarekuError:
    """The error that lists what was looked for and what is there, with the likely misspelling."""
    found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in tree.iterdir())
    shown = ", ".join(name for name in found[:12] if name.isprintable())
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    hint = f"looked for {', '.join(LOOKED_FOR)}"
    for name in found:
        near = nearest(name.rstrip("/"), LOOKED_FOR) or nearest(name.lower(), LOOKED_FOR)
        if near and near != name:
            hint = f"is {name!r} meant to be {near!r}? {hint}"
            break
    names = ", ".join(path.name for path in asked)
    return BarekuError(
        f"cannot build: no buildpack knows this app (asked {names}); it holds {shown}{more}",
        hint=hint,
    )
