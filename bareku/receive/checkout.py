"""Export a pushed tree from git's quarantine into a folder, trusting nothing in it.

What `.slugignore` at its top names (patterns as in .gitignore) is left out.

Reads through `git ls-tree` and `git cat-file --batch`: they see quarantined objects by git's own
environment, tell a blob's size before its content, and know neither filters nor export
attributes, which would drop or rewrite files. Runs nothing from the tree.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bareku.errors import BarekuError

MAX_NAME_BYTES = 255  # ext4, xfs and squashfs alike
MAX_PATH_BYTES = 3500  # PATH_MAX is 4096, and the slug's folder comes before it
MAX_LINK_BYTES = 4095
MAX_RULES_BYTES = 64 * 2**10
_CHUNK = 1 << 20
_NAMED = 5  # offending paths that an error names

_LFS = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_MAX_BYTES = 1024
_QUARANTINE = ("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pushed tree may hold: a pack of 1 MB can inflate to any size."""

    total_bytes: int = 2 * 2**30
    entries: int = 200_000  # files, links and folders


@dataclass(frozen=True, slots=True)
class Tree:
    """What was exported: git's id of the tree, how many files and bytes."""

    sha: str
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    mode: str
    kind: str
    sha: str
    size_bytes: int
    path: bytes


def export(
    git_dir: Path,
    revision: str,
    target: Path,
    env: Mapping[str, str],
    limits: Limits = Limits(),
) -> Tree:
    """Write the tree of `revision` to the new folder `target`.

    `env` is the hook's environment (git's quarantine is in it). Modes become 644 or 755, links
    stay links and may not leave the tree. Raises BarekuError; `target` is gone then.
    """
    git = _Git(git_dir, env)
    sha = git.tree_of(revision)
    entries = _checked(git.entries(sha), limits)
    _refuse_submodules(entries)
    if not any(entry.kind == "blob" for entry in entries):
        raise BarekuError(
            f"cannot export {revision[:12]}: its tree is empty",
            hint="commit at least one file: git add . && git commit",
        )
    entries = _without_ignored(git, entries)
    target.mkdir(parents=True, mode=0o755)
    target.chmod(0o755)
    try:
        _write(git, entries, target)
        _refuse_links_out(entries, target)
    except OSError as exc:
        shutil.rmtree(target, ignore_errors=True)
        where = os.fsdecode(exc.filename or b"")
        raise BarekuError(f"cannot export {revision[:12]}: {where}: {exc.strerror}") from exc
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    blobs = [entry for entry in entries if entry.kind == "blob"]
    return Tree(sha, len(blobs), sum(entry.size_bytes for entry in blobs))


class _Git:
    """The three git commands that an export needs, in the quarantine's environment."""

    def __init__(self, git_dir: Path, env: Mapping[str, str]) -> None:
        self._argv = ["git", f"--git-dir={git_dir}", "--literal-pathspecs"]
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            **{key: env[key] for key in _QUARANTINE if key in env},
        }
        self._cwd = git_dir  # git names the quarantine relative to it

    def tree_of(self, revision: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision):
            raise BarekuError(f"cannot export {revision[:80]!r}: not a full commit id")
        done = subprocess.run(
            [*self._argv, "rev-parse", "--verify", "--quiet", f"{revision}^{{tree}}"],
            env=self._env, cwd=self._cwd, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BarekuError(f"cannot export {revision[:12]}: no such commit in the repository")
        return done.stdout.strip()

    def entries(self, tree: str) -> Iterator[_Entry]:
        """Every folder, file, link and submodule below `tree`, depth first."""
        argv = [*self._argv, "ls-tree", "-r", "-t", "-z", "-l", "--full-tree", tree]
        with self._start(argv, stdin=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            try:
                for record in _records(process.stdout):
                    head, _, path = record.partition(b"\t")
                    mode, kind, sha, size = head.decode("ascii").split()
                    if size == "BAD":
                        raise BarekuError(
                            f"cannot export {_show(path)}: git cannot read its content"
                        )
                    yield _Entry(mode, kind, sha, 0 if size == "-" else int(size), path)
            except BaseException:
                process.kill()
                raise
            if process.wait() != 0:
                raise BarekuError(f"cannot export tree {tree[:12]}: git cannot read it")

    def blob(self, sha: str) -> bytes:
        return subprocess.run(
            [*self._argv, "cat-file", "blob", sha],
            env=self._env, cwd=self._cwd, capture_output=True, check=True,
        ).stdout  # fmt: skip

    def contents(self) -> subprocess.Popen[bytes]:
        """Takes `<sha>\\n` on stdin, answers `<sha> <kind> <size>\\n<bytes>\\n`."""
        return self._start([*self._argv, "cat-file", "--batch"], stdin=subprocess.PIPE)

    def _start(self, argv: list[str], *, stdin: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, env=self._env, cwd=self._cwd, stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=_CHUNK,
        )  # fmt: skip


def _records(stream: IO[bytes]) -> Iterator[bytes]:
    """The NUL-terminated records of a stream; one that is longer than any path is refused."""
    rest = b""
    while block := stream.read(_CHUNK):
        *whole, rest = (rest + block).split(b"\0")
        yield from whole
        if len(rest) > 2 * MAX_PATH_BYTES:
            raise BarekuError("cannot export: a path of the tree is too long")


def _checked(entries: Iterator[_Entry], limits: Limits) -> list[_Entry]:
    """The entries, each with a path that is safe to write and none of them there twice."""
    kept: dict[bytes, _Entry] = {}
    total = 0
    for entry in entries:
        _check_path(entry.path)
        parent = entry.path.rpartition(b"/")[0]
        if parent and (parent not in kept or kept[parent].kind != "tree"):
            raise BarekuError(f"cannot export {_show(entry.path)}: no folder of the tree holds it")
        if entry.path in kept:
            raise BarekuError(f"cannot export {_show(entry.path)}: it is in the tree twice")
        kept[entry.path] = entry
        total += entry.size_bytes
        if len(kept) > limits.entries:
            raise BarekuError(
                f"cannot export: the tree has more than {limits.entries} files and folders",
                hint="is a folder of generated files committed? add it to .gitignore",
            )
        if total > limits.total_bytes:
            raise BarekuError(
                f"cannot export {_show(entry.path)}: the files of the tree take more than "
                f"{limits.total_bytes} bytes",
                hint="keep large data out of the repository",
            )
    return list(kept.values())


def _check_path(path: bytes) -> None:
    if len(path) > MAX_PATH_BYTES:
        raise BarekuError(
            f"cannot export {_show(path[:60])}…: the path has {len(path)} bytes, "
            f"at most {MAX_PATH_BYTES} are possible"
        )
    for name in path.split(b"/"):
        if name in {b"", b".", b".."} or name.lower() == b".git":
            raise BarekuError(f"cannot export {_show(path)}: a path may not hold {_show(name)}")
        if len(name) > MAX_NAME_BYTES:
            raise BarekuError(
                f"cannot export {_show(name[:60])}…: the name has {len(name)} bytes, "
                f"at most {MAX_NAME_BYTES} are possible"
            )


def _refuse_submodules(entries: list[_Entry]) -> None:
    found = [entry for entry in entries if entry.kind == "commit"]
    if found:
        named = ", ".join(f"{_show(e.path)} (at {e.sha[:12]})" for e in found[:_NAMED])
        raise BarekuError(
            f"cannot export {_count(found, 'submodule')}: {named}: submodules are not supported",
            hint="commit their files instead, for example with git subtree add",
        )


def _without_ignored(git: _Git, entries: list[_Entry]) -> list[_Entry]:
    """The entries that `.slugignore` does not name."""
    rules = next((e for e in entries if e.path == b".slugignore" and e.mode != "120000"), None)
    if rules is None or rules.kind != "blob":
        return entries
    if rules.size_bytes > MAX_RULES_BYTES:
        raise BarekuError(f"cannot read .slugignore: more than {MAX_RULES_BYTES} bytes")
    from dulwich.ignore import IgnoreFilter  # 60 ms, and most apps have no such file

    # as on Heroku there is no `!`: what a later rule would bring back may be gone with its folder
    lines = [line for line in git.blob(rules.sha).splitlines() if not line.startswith(b"!")]
    ignored = IgnoreFilter(lines)
    gone: set[bytes] = set()
    kept: list[_Entry] = []
    for entry in entries:
        name = os.fsdecode(entry.path) + ("/" if entry.kind == "tree" else "")
        if entry.path.rpartition(b"/")[0] in gone or ignored.is_ignored(name):
            gone.add(entry.path)
        else:
            kept.append(entry)
    if not any(entry.kind == "blob" for entry in kept):
        raise BarekuError("cannot export: .slugignore leaves nothing of the app")
    return kept


def _write(git: _Git, entries: list[_Entry], target: Path) -> None:
    """Make every folder, file and link; names are new, so nothing is written through a link."""
    pointers: list[_Entry] = []
    process = git.contents()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for entry in entries:
            where = target / os.fsdecode(entry.path)
            if entry.kind == "tree":
                where.mkdir()
                where.chmod(0o755)
                continue
            process.stdin.write(entry.sha.encode() + b"\n")
            process.stdin.flush()
            if _write_blob(process.stdout, entry, where):
                pointers.append(entry)
    except BrokenPipeError as exc:
        raise BarekuError("cannot export: git stopped while it read the tree") from exc
    finally:
        process.kill()
        process.communicate()
    if pointers:
        named = ", ".join(_show(e.path) for e in pointers[:_NAMED])
        raise BarekuError(
            f"cannot export {_count(pointers, 'Git LFS pointer')}: {named}: "
            "the content is not in the push",
            hint="take the files out of LFS: git lfs migrate export --include='PATTERN'",
        )


def _write_blob(stream: IO[bytes], entry: _Entry, where: Path) -> bool:
    """Write the next blob of the stream; True when it is a Git LFS pointer."""
    answer = stream.readline().split()
    if len(answer) != 3 or answer[1] != b"blob" or int(answer[2]) != entry.size_bytes:
        raise BarekuError(f"cannot export {_show(entry.path)}: git cannot read its content")
    left = entry.size_bytes
    if entry.mode == "120000":
        if left > MAX_LINK_BYTES:
            raise BarekuError(f"cannot export the link {_show(entry.path)}: it is too long")
        link = stream.read(left)
        if not link or b"\0" in link:
            raise BarekuError(f"cannot export the link {_show(entry.path)}: it points nowhere")
        where.symlink_to(os.fsdecode(link))
        stream.read(1)
        return False
    mode = 0o755 if int(entry.mode, 8) & 0o111 else 0o644
    is_pointer = False
    with where.open("xb", buffering=0) as file:
        os.fchmod(file.fileno(), mode)
        while left:
            block = stream.read(min(left, _CHUNK))
            if not block:
                raise BarekuError(f"cannot export {_show(entry.path)}: its content ends early")
            if left == entry.size_bytes <= _LFS_MAX_BYTES:
                is_pointer = block.startswith(_LFS)
            file.write(block)
            left -= len(block)
    stream.read(1)
    return is_pointer


def _refuse_links_out(entries: list[_Entry], target: Path) -> None:
    """Every link must end inside the tree, also when it goes through other links."""
    top = target.resolve()
    for entry in entries:
        if entry.mode != "120000":
            continue
        where = target / os.fsdecode(entry.path)
        link = os.fsencode(where.readlink())
        by_name = os.path.normpath(os.path.join(os.path.dirname(b"/t/" + entry.path), link))  # noqa: PTH118, PTH120
        end = Path(os.path.realpath(where))  # unlike Path.resolve it accepts a loop of links
        if not (by_name + b"/").startswith(b"/t/") or not end.is_relative_to(top):
            raise BarekuError(
                f"cannot export the link {_show(entry.path)}: it points out of the tree, "
                f"to {_show(link)}",
                hint="use a relative link to a file of the repository, or the file itself",
            )


def _count(things: list[_Entry], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _show(text: bytes) -> str:
    """A path as it may be shown: quoted when there is anything odd in it."""
    shown = text.decode(errors="backslashreplace")
    return shown if shown.isprintable() and " " not in shown and shown else repr(shown)
