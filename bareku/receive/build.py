"""Run a buildpack on an exported tree: detect, compile, release, as the classic contract says.

The scripts run confined (bareku.receive.sandbox) with a clean environment; what they print goes
line by line to a callback. Makes no slug and knows no node.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bareku import paths, procfile
from bareku.errors import BarekuError, nearest
from bareku.names import parse_process_type
from bareku.receive import sandbox
from bareku.receive.confined import Done, StoppedError, run
from bareku.receive.output import Lines
from bareku.receive.sandbox import Kind, Quotas, Sandbox

STACK = "heroku-22"  # what third-party buildpacks ask for: its glibc 2.35 is older than Debian 12's
MAX_RELEASE_BYTES = 64 * 2**10
_SHORT_S = 60.0  # for detect, runtime and release, which only look

# asks each buildpack in turn, all in one sandbox: `path<tab>first line` of those that say yes
_DETECT = r"""
app=$1; shift
for buildpack; do
    name=$(cd "$buildpack" && bin/detect "$app" 2>/dev/null </dev/null) || continue
    printf '%s\t%s\n' "$buildpack" "${name%%$'\n'*}"
done
"""

# what a buildpack may hear of this site: proxies, certificates, mirrors; nothing of ours
_SITE = re.compile(
    r"(?:https?|all|no)_proxy|(?:HTTPS?|ALL|NO)_PROXY|SSL_CERT_(?:FILE|DIR)|REQUESTS_CA_BUNDLE"
    r"|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS|(?:PIP|UV)_\w+|(?:npm_config|NPM_CONFIG)_\w+"
    r"|GOPROXY|GONOSUMDB|GOFLAGS|COMPOSER_\w+|BUNDLE_MIRROR\w*"
)
_OWN = re.compile(
    r"UV_(?:PROJECT_ENVIRONMENT|PYTHON|CACHE_DIR|TOOL_\w+|RUN_\w+|NO_PROGRESS)|PIP_(?:TARGET|PREFIX|USER)"
)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# file -> what it would make of the tree; for the error when nothing fits
_LOOKED_FOR = (
    "requirements.txt", "pyproject.toml", "Pipfile", "package.json", "composer.json", "index.php",
    "go.mod", "Gemfile", "Cargo.toml", "pom.xml", "index.html", "Procfile",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much a build may."""

    timeout_s: float = 900.0  # Heroku's limit is 15 minutes
    disk_bytes: int = 4 * 2**30
    quotas: Quotas = field(default_factory=Quotas)


@dataclass(frozen=True, slots=True)
class Buildpack:
    """A buildpack that fits a tree: where it is, what it calls the app, what would run it."""

    path: Path
    display_name: str
    runtime: str = ""
    also: tuple[str, ...] = ()  # other buildpacks that would fit

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True, slots=True)
class Built:
    """What a build says about its app, to go with the slug."""

    process_types: Mapping[str, str]
    display_name: str
    config_vars: Mapping[str, str]
    runtime: str
    isolation: str


def ours() -> list[Path]:
    """Our buildpacks in the order in which they are asked."""
    folder = paths.buildpacks()
    order = (folder / "order").read_text().split()
    return [folder / name for name in order]


def stack() -> str:
    """What a slug built here needs of a node besides its runtime: `debian-12-x86_64`."""
    release = platform.freedesktop_os_release()
    version = release.get("VERSION_ID", "unstable")
    return f"{release.get('ID', 'linux')}-{version}-{platform.machine()}"


def digest(buildpack: Path) -> str:
    """sha256 over a buildpack's files and the library beside it: another digest, another slug."""
    total = hashlib.sha256()
    for folder in (buildpack, buildpack.parent / "lib"):
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            total.update(f"{file.relative_to(folder.parent)} {content}\n".encode())
    return total.hexdigest()


def detect(tree: Path, buildpacks: Sequence[Path] | None = None) -> Buildpack:
    """The first buildpack that takes the tree at `<work>/app`, where `work` is this build's own.

    Raises BarekuError when none does (with what was looked for and found), or when the one that
    does cannot give the app the runtime that it asks for.
    """
    candidates = list(ours() if buildpacks is None else buildpacks)
    box = _sandbox(tree, candidates, Limits())
    fitting: list[tuple[Path, str]] = []
    copies = {box.inside(_copy(tree, path)): path for path in candidates}
    argv = ["bash", "-c", _DETECT, "detect", box.inside(tree), *copies]
    done = _ask(box, argv, tree, cwd=tree)
    for line in done.stdout.splitlines():
        where, _, name = line.partition("\t")
        fitting.append((copies[where], "".join(c for c in name if c.isprintable())[:60]))
    if not fitting:
        raise _nothing_fits(tree, candidates)
    path, name = fitting[0]
    also = tuple(other.name for other, _ in fitting[1:] if other.name != "procfile")
    return Buildpack(path, name or path.name, _runtime(box, tree, path), also)


def compile(
    tree: Path,
    buildpack: Buildpack,
    *,
    cache: Path,
    env: Mapping[str, str],
    revision: str,
    output: Callable[[str], None],
    limits: Limits | None = None,
) -> Built:
    """Build the app in `tree` (`<work>/app`) in place; `cache` changes only when that succeeds.

    `env` holds the app's config vars; they reach the buildpack as files. Raises BarekuError with
    the reason; the tree is worthless then.
    """
    limits = limits or Limits()
    box = _sandbox(tree, [buildpack.path], limits)
    home = _copy(tree, buildpack.path)
    fresh = _borrow(cache, tree.parent / "cache")
    vars_dir = _write_vars(tree.parent / "env", env)
    for folder in (tree, fresh, vars_dir, home):
        sandbox.give(folder, box.kind)
    argv = ["bin/compile", box.inside(tree), box.inside(fresh), box.inside(vars_dir)]
    try:
        _compile(box, argv, _environment(box, tree, revision), home, output, limits)
        types, config = _release(box, tree, home, revision)
    finally:
        shutil.rmtree(vars_dir, ignore_errors=True)
    types = {**types, **read_procfile(tree)}
    _commit(fresh, cache)
    return Built(types, buildpack.display_name, config, buildpack.runtime, str(box.kind))


def read_procfile(tree: Path) -> dict[str, str]:
    """The process types of the tree's Procfile, none when there is no such file."""
    file = tree / "Procfile"
    if not os.path.lexists(file):
        return {}
    real = Path(os.path.realpath(file))
    if not real.is_relative_to(tree.resolve()):
        raise BarekuError("cannot read Procfile: it is a link out of the app")
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise BarekuError(f"cannot read Procfile: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BarekuError("cannot read Procfile: it is not a file")
    with os.fdopen(fd, "rb") as opened:
        data = opened.read(procfile.MAX_PROCFILE_BYTES + 1)
    if len(data) > procfile.MAX_PROCFILE_BYTES:
        raise BarekuError(f"cannot read Procfile: more than {procfile.MAX_PROCFILE_BYTES} bytes")
    try:
        return procfile.parse(data.decode())
    except UnicodeDecodeError as exc:
        raise BarekuError(f"cannot read Procfile: not UTF-8 at byte {exc.start}") from exc


def _compile(
    box: Sandbox,
    argv: list[str],
    env: Mapping[str, str],
    home: Path,
    output: Callable[[str], None],
    limits: Limits,
) -> None:
    """Stream bin/compile to `output`; its last ` !` line is the reason when it fails."""
    lines = Lines()
    reason = ""

    def take(block: bytes | None) -> None:
        nonlocal reason
        for line in lines.close() if block is None else lines.feed(block):
            if line.startswith(" !") and line[2:].strip():
                reason = line[2:].strip()
            output(line)

    what = f"cannot build with the {home.name} buildpack"
    try:
        done = run(
            box.argv(argv, cwd=home), env=env, timeout_s=limits.timeout_s, on_output=take,
            watch=box.work, disk_bytes=limits.disk_bytes, is_alone=box.kind is not Kind.NONE,
        )  # fmt: skip
    except StoppedError as exc:
        raise BarekuError(f"{what}: {exc}", hint=exc.hint) from exc
    if done.code:
        raise BarekuError(f"{what}: {reason or f'bin/compile ended with {done.ending}'}")


def _release(
    box: Sandbox, tree: Path, home: Path, revision: str
) -> tuple[dict[str, str], dict[str, str]]:
    """`default_process_types` and `config_vars` of bin/release; no script or no output means none."""
    if not (home / "bin" / "release").is_file():
        return {}, {}
    done = _ask(box, ["bin/release", box.inside(tree)], tree, cwd=home, revision=revision)
    if done.code:
        raise BarekuError(f"cannot build: bin/release ended with {done.ending}: {done.last_line}")
    return parse_release(done.stdout)


def parse_release(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The YAML of bin/release as (default process types, config vars). Raises BarekuError."""
    import yaml

    try:
        document = yaml.safe_load(text) if len(text) <= MAX_RELEASE_BYTES else text
    except yaml.YAMLError as exc:
        raise BarekuError(
            f"cannot read the output of bin/release: {' '.join(str(exc).split())}"
        ) from exc
    if not isinstance(document, dict | None):
        raise BarekuError("cannot read the output of bin/release: it is not a YAML mapping")
    types = _strings(document, "default_process_types")
    for name in types:
        parse_process_type(name)
    return types, _strings(document, "config_vars")


def _strings(document: Mapping[str, object] | None, key: str) -> dict[str, str]:
    values = (document or {}).get(key) or {}
    if not isinstance(values, dict) or not all(
        isinstance(value, str | int | float) for value in values.values()
    ):
        raise BarekuError(f"cannot read the output of bin/release: {key} is not a mapping of texts")
    return {str(name): str(value) for name, value in values.items()}


def _runtime(box: Sandbox, tree: Path, buildpack: Path) -> str:
    """What `bin/runtime` of a buildpack of ours says: `python-3.11`, or why it cannot be had."""
    if not (buildpack / "bin" / "runtime").is_file():
        return ""
    home = _copy(tree, buildpack)
    done = _ask(box, ["bin/runtime", box.inside(tree)], tree, cwd=home)
    if done.code:
        raise BarekuError(f"cannot build with the {buildpack.name} buildpack: {done.last_line}")
    return done.stdout.strip()[:60]


def _ask(box: Sandbox, argv: list[str], tree: Path, *, cwd: Path, revision: str = "") -> Done:
    """Run a short script of a buildpack and keep what it says."""
    try:
        return run(
            box.argv(argv, cwd=cwd), env=_environment(box, tree, revision),
            timeout_s=_SHORT_S, is_alone=box.kind is not Kind.NONE,
        )  # fmt: skip
    except StoppedError as exc:
        raise BarekuError(f"cannot build: {argv[0]} of the buildpack: {exc}") from exc


def _sandbox(tree: Path, buildpacks: Sequence[Path], limits: Limits) -> Sandbox:
    work = tree.parent
    if tree.name != "app":
        raise ValueError(f"{tree} is not the app folder of a build's work folder")
    uv = sandbox.uv_program()
    site = [Path(value) for key, value in os.environ.items() if _SITE.fullmatch(key)]
    return sandbox.prepare(
        work,
        kind=sandbox.available(),
        quotas=limits.quotas,
        programs={"uv": uv} if uv else {},
        readable=[file for file in site if file.is_absolute() and file.is_file()],
    )


def _copy(tree: Path, buildpack: Path) -> Path:
    """The build's private copy of a buildpack, with the library beside it."""
    home = tree.parent / "buildpacks" / buildpack.name
    for source in (buildpack, buildpack.parent / "lib"):
        target = home.parent / source.name
        if source.is_dir() and not target.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git"))
    return home


def _environment(box: Sandbox, tree: Path, revision: str) -> dict[str, str]:
    """The whole environment of a buildpack's script."""
    site = {k: v for k, v in os.environ.items() if _SITE.fullmatch(k) and not _OWN.fullmatch(k)}
    tools = box.inside(box.work / "bareku" / "bin")
    return {
        **site,
        "PATH": f"{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": box.inside(tree),
        "TMPDIR": box.inside(box.work / "tmp"),
        "STACK": STACK,
        "SOURCE_VERSION": revision,
        "REQUEST_ID": revision[:12] or "detect",
        "LANG": "C.UTF-8",
        # equal input, equal bytecode: hash pycs instead of time stamps, and no random order
        "SOURCE_DATE_EPOCH": "315532800",
        "PYC_INVALIDATION_MODE": "UNCHECKED_HASH",
        "PYTHONHASHSEED": "0",
        "CURL_CONNECT_TIMEOUT": "30",
        "CURL_TIMEOUT": "180",
    }


def _write_vars(folder: Path, env: Mapping[str, str]) -> Path:
    """The contract's ENV_DIR: one file for each config var, its value as it is."""
    folder.mkdir(mode=0o700)
    for key, value in env.items():
        if _KEY.fullmatch(key):
            (folder / key).write_text(value)
    return folder


def _borrow(cache: Path, fresh: Path) -> Path:
    """A copy of the cache by hard links, so that a failed build leaves the cache as it was."""
    fresh.mkdir()
    if cache.is_dir():
        for how in ("-al", "-a"):  # without links when the cache is on another file system
            copy = ["cp", how, "--", f"{cache}/.", str(fresh)]
            if subprocess.run(copy, capture_output=True, check=False).returncode == 0:
                break
    return fresh


def _commit(fresh: Path, cache: Path) -> None:
    """Put the build's cache in the place of the old one; without one at worst, never half of one."""
    old = fresh.with_name("cache.old")
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        if cache.exists():
            cache.rename(old)
        fresh.rename(cache)
    except OSError:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.move(fresh, cache)


def _nothing_fits(tree: Path, buildpacks: Sequence[Path]) -> BarekuError:
    """The error that lists what was looked for and what is there, with the likely misspelling."""
    found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in tree.iterdir())
    shown = ", ".join(name for name in found[:12] if name.isprintable())
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    hint = f"looked for {', '.join(_LOOKED_FOR)}"
    for name in found:
        near = nearest(name.rstrip("/"), _LOOKED_FOR) or nearest(name.lower(), _LOOKED_FOR)
        if near and near != name:
            hint = f"is {name!r} meant to be {near!r}? {hint}"
            break
    asked = ", ".join(path.name for path in buildpacks)
    return BarekuError(
        f"cannot build: no buildpack knows this app (asked {asked}); it holds {shown}{more}",
        hint=hint,
    )
