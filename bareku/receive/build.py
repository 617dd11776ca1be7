"""Run buildpacks on an exported tree: detect, compile, release, as the classic contract says.

The scripts run confined (bareku.receive.sandbox) with a clean environment; what they print goes
line by line to a callback. Makes no slug and knows no node.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from bareku import procfile
from bareku.errors import BarekuError
from bareku.receive import contract, group, sandbox
from bareku.receive.buildpack import (
    NOT_OF_IT,
    Buildpack,
    Choice,
    digest,
    nothing_fits,
    ours,
    parse_choices,
    read_text,
    stack,
)
from bareku.receive.confined import Done, StoppedError, run
from bareku.receive.output import Lines
from bareku.receive.sandbox import Kind, Quotas, Sandbox

__all__ = ["Buildpack", "Built", "Limits", "compile", "detect", "digest", "keep", "ours", "stack"]

_SHORT_S = 60.0  # for detect, runtime and release, which only look
_CLONE_S = 120.0

# asks each buildpack in turn, all in one sandbox: `path<tab>name<tab>runtime<tab>why it has none`
# of those that say yes; the first one is asked for its runtime
_DETECT = r"""
app=$1 runtime="" why="" is_first=1; shift
for buildpack; do
    cd "$buildpack" && name=$(bin/detect "$app" 2>/dev/null) || continue
    if [ -n "$is_first" ] && [ -x bin/runtime ]; then
        runtime=$(bin/runtime "$app" 2>"$TMPDIR/why") || why=$(tail -n 1 "$TMPDIR/why")
        : "${runtime:=?}"
    fi
    printf '%s\t%s\t%s\t%s\n' "$buildpack" "${name%%$'\n'*}" "${runtime%%$'\n'*}" "$why"
    is_first="" runtime="" why=""
done
"""

# runs a script after the `export` files that the buildpacks before it have left
_AFTER_EXPORTS = r"""
while [ "$1" != -- ]; do [ ! -f "$1" ] || . "$1"; shift; done
shift
exec "$@"
"""

_CLONE = r"""
url=$1 ref=$2 target=$3
printf '[safe]\n\tdirectory = *\n' >"$TMPDIR/gitconfig"
export GIT_CONFIG_GLOBAL="$TMPDIR/gitconfig" GIT_TERMINAL_PROMPT=0 GIT_ALLOW_PROTOCOL=https:http:git:file
if [ -z "$ref" ]; then
    git clone -q --depth 1 -- "$url" "$target"
else
    git clone -q -- "$url" "$target" && git -C "$target" checkout -q --detach "$ref" --
fi
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much a build may."""

    timeout_s: float = 900.0  # Heroku's limit is 15 minutes
    disk_bytes: int = 4 * 2**30
    memory_bytes: int = (
        4 * 2**30
    )  # of all its processes together; never more than 3/4 of the machine
    quotas: Quotas = field(default_factory=Quotas)


@dataclass(frozen=True, slots=True)
class Built:
    """What a build says about its app, to go with the slug."""

    process_types: Mapping[str, str]
    display_name: str
    config_vars: Mapping[str, str]
    runtime: str
    isolation: str


def detect(
    tree: Path,
    buildpacks: Sequence[Path] | None = None,
    *,
    chosen: Sequence[str] = (),
    wanted: str = "",
) -> Buildpack:
    """What shall build the tree at `<work>/app`, where `work` is this build's own folder.

    That is what `chosen` names (the app's settings), else what `wanted` names (BUILDPACK_URL),
    else what the tree's `.buildpacks` names, else the first of `buildpacks` (ours) that says yes. Raises BarekuError when none does, with
    what was looked for and found, or when it cannot give the runtime that the app asks for.
    """
    box = _sandbox(tree, Limits())
    choices = parse_choices(chosen, is_trusted=True)
    if not choices and buildpacks is None:
        named = wanted or read_text(tree, ".buildpacks") or ""
        choices = parse_choices(named.splitlines(), is_trusted=False)
    if choices:
        return _detect_chosen(box, tree, choices)
    candidates = list(ours() if buildpacks is None else buildpacks)
    copies = {box.inside(_copy(tree, path)): path for path in candidates}
    done = _ask(box, ["bash", "-c", _DETECT, "detect", box.inside(tree), *copies], cwd=tree)
    fitting = [[*line.split("\t", 3), "", "", ""][:4] for line in done.stdout.splitlines()]
    if not fitting:
        raise nothing_fits(tree, candidates)
    where, name, runtime, why = fitting[0]
    path = copies[where]
    if runtime == "?":
        raise _no_runtime(path, why)
    others = [copies[line[0]].name for line in fitting[1:]]
    also = tuple(other for other in others if other != "procfile")
    return Buildpack(path, _title(name) or path.name, _title(runtime), also)


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
    box = _sandbox(tree, limits)
    homes = [_copy(tree, path) for path in buildpack.all]
    is_atomic = all((home / "cache-is-atomic").is_file() for home in homes)
    fresh = (_take if is_atomic else _borrow)(cache, tree.parent / "cache")
    vars_dir = contract.write_vars(tree.parent / "env", env)
    for folder in (tree, fresh, vars_dir, *homes):
        sandbox.give(folder, box.kind)
    folders = [box.inside(folder) for folder in (tree, fresh, vars_dir)]
    exports: list[str] = []
    is_built = False
    try:
        for home in homes:
            argv = [
                "bash",
                "-c",
                _AFTER_EXPORTS,
                "compile",
                *exports,
                "--",
                "bin/compile",
                *folders,
            ]
            _compile(box, argv, home, revision, output, limits)
            exports.append(box.inside(home / "export"))
        types, config = _release(box, tree, homes[-1], revision)
        types = {**types, **read_procfile(tree)}
        is_built = True
    finally:
        shutil.rmtree(vars_dir, ignore_errors=True)
        if is_built or is_atomic:
            _commit(fresh, cache)
    return Built(types, buildpack.display_name, config, buildpack.runtime, str(box.kind))


def keep(tree: Path, cache: Path) -> None:
    """After packing: move back into the cache what the build has lent the tree.

    A buildpack names it in CACHE_DIR/.keep, `path in the tree<tab>path in the cache` a line; a
    folder of 20 000 files moves as fast as an empty one.
    """
    notes = cache / ".keep"
    text = ""
    with contextlib.suppress(BarekuError):
        text = read_text(cache, notes.name) or ""
    for line in text.splitlines():
        here, _, there = line.partition("\t")
        source, target = tree / here, cache / there
        inside = all(_is_below(*pair) for pair in ((source, tree), (target, cache)))
        if inside and source.is_dir() and not source.is_symlink() and not os.path.lexists(target):
            with contextlib.suppress(OSError):  # a cache that cannot be kept is made again
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
                owner = cache.stat()
                for folder in takewhile(lambda parent: parent != cache, target.parents):
                    os.chown(folder, owner.st_uid, owner.st_gid)
    notes.unlink(missing_ok=True)


def _is_below(path: Path, top: Path) -> bool:
    """True when neither `..` nor a link leads `path` out of `top`."""
    parent = Path(os.path.realpath(path.parent))
    return ".." not in path.parts and parent.is_relative_to(os.path.realpath(top))


def read_procfile(tree: Path) -> dict[str, str]:
    """The process types of the tree's Procfile, none when there is no such file."""
    text = read_text(tree, "Procfile")
    return {} if text is None else procfile.parse(text)


def _detect_chosen(box: Sandbox, tree: Path, choices: Sequence[Choice]) -> Buildpack:
    """All of the named buildpacks, each of which must say yes."""
    homes, names, runtimes = [], [], []
    for number, choice in enumerate(choices, start=1):
        path = choice.path or _clone(box, number, choice)
        done = _ask(box, ["bin/detect", box.inside(tree)], cwd=_copy(tree, path))
        if done.code:
            said = done.last_line or _title(done.stdout) or done.ending
            raise BarekuError(
                f"cannot build: the buildpack {path.name} does not take the app: {said}"
            )
        homes.append(path)
        names.append(_title(done.stdout.partition("\n")[0]) or path.name)
        runtimes.append(_runtime(box, tree, path))
    return Buildpack(
        homes[-1], " and ".join(names), " ".join(filter(None, runtimes)), before=tuple(homes[:-1])
    )


def _clone(box: Sandbox, number: int, choice: Choice) -> Path:
    """A buildpack of the network, cloned by the build's user into the build's own folder."""
    last = choice.url.rstrip("/").removesuffix(".git").rpartition("/")[2]
    name = "".join(c for c in last if c.isalnum() or c in "-_").strip("-")
    parent = box.work / "buildpacks" / str(number)
    parent.mkdir(parents=True, exist_ok=True)
    sandbox.give(parent, box.kind)
    target = parent / (name or "buildpack")
    argv = ["bash", "-c", _CLONE, "clone", choice.url, choice.ref, box.inside(target)]
    done = _ask(box, argv, cwd=box.work / "tmp", timeout_s=_CLONE_S)
    if done.code:
        raise BarekuError(
            f"cannot fetch the buildpack {choice.url}: {done.last_line or done.ending}"
        )
    return target


def _compile(
    box: Sandbox,
    argv: list[str],
    home: Path,
    revision: str,
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
    memory_bytes = min(limits.memory_bytes, group.machine_bytes() * 3 // 4)
    with group.around_a_build(memory_bytes, limits.quotas.processes) as around:
        try:
            done = run(
                around.argv(box.argv(argv, cwd=home)), env=contract.environment(box, revision),
                on_output=take, timeout_s=limits.timeout_s, watch=box.work,
                disk_bytes=limits.disk_bytes, is_alone=box.kind is not Kind.NONE,
            )  # fmt: skip
        except StoppedError as exc:
            raise BarekuError(f"{what}: {exc}", hint=exc.hint) from exc
        if done.code and around.has_run_out_of_memory:
            raise BarekuError(f"{what}: it needs more than {memory_bytes // 2**20} MiB of memory")
    if done.code:
        raise BarekuError(f"{what}: {reason or f'bin/compile ended with {done.ending}'}")


def _release(
    box: Sandbox, tree: Path, home: Path, revision: str
) -> tuple[dict[str, str], dict[str, str]]:
    """`default_process_types` and `config_vars` of bin/release; no script or no output means none."""
    if not (home / "bin" / "release").is_file():
        return {}, {}
    done = _ask(box, ["bin/release", box.inside(tree)], cwd=home, revision=revision)
    if done.code:
        raise BarekuError(f"cannot build: bin/release ended with {done.ending}: {done.last_line}")
    return contract.parse_release(done.stdout)


def _runtime(box: Sandbox, tree: Path, buildpack: Path) -> str:
    """What `bin/runtime` of a buildpack of ours says: `python-3.11`, or why it cannot be had."""
    if not (buildpack / "bin" / "runtime").is_file():
        return ""
    done = _ask(box, ["bin/runtime", box.inside(tree)], cwd=_copy(tree, buildpack))
    if done.code:
        raise _no_runtime(buildpack, done.last_line)
    return _title(done.stdout)


def _no_runtime(buildpack: Path, why: str) -> BarekuError:
    shown = "".join(c for c in why if c.isprintable()) or "bin/runtime failed"
    return BarekuError(f"cannot build with the {buildpack.name} buildpack: {shown}")


def _title(text: str) -> str:
    return "".join(c for c in text.strip() if c.isprintable())[:60]


def _ask(
    box: Sandbox, argv: list[str], *, cwd: Path, revision: str = "", timeout_s: float = _SHORT_S
) -> Done:
    """Run a short script of a buildpack and keep what it says."""
    try:
        return run(
            box.argv(argv, cwd=cwd), env=contract.environment(box, revision),
            timeout_s=timeout_s, is_alone=box.kind is not Kind.NONE,
        )  # fmt: skip
    except StoppedError as exc:
        raise BarekuError(f"cannot build: {argv[0]} of the buildpack: {exc}") from exc


def _sandbox(tree: Path, limits: Limits) -> Sandbox:
    if tree.name != "app":
        raise ValueError(f"{tree} is not the app folder of a build's work folder")
    uv = sandbox.uv_program()
    return sandbox.prepare(
        tree.parent,
        kind=sandbox.available(),
        quotas=limits.quotas,
        programs={"uv": uv} if uv else {},
        readable=contract.site_files(),
        hidden=[tree.parent.parent.parent],  # our own root, should it be below /opt
    )


def _copy(tree: Path, buildpack: Path) -> Path:
    """The build's private copy of a buildpack, with our library beside one of ours."""
    folder = tree.parent / "buildpacks"
    if buildpack.is_relative_to(folder):
        return buildpack  # cloned for this build
    home = folder / buildpack.name
    for source in (buildpack, buildpack.parent / "lib"):
        target = folder / source.name
        if source.is_dir() and not target.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_OF_IT))
    return home


def _take(cache: Path, fresh: Path) -> Path:
    """The cache itself, for buildpacks whose cache is whole at every moment."""
    try:
        cache.rename(fresh)
    except OSError:
        return _borrow(cache, fresh)
    (fresh / ".keep").unlink(missing_ok=True)
    return fresh


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
