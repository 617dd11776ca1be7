"""Exports of real commits, from a repository and from a push's quarantine."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bareku.errors import BarekuError
from bareku.receive.checkout import Limits, export

REPOSITORY = Path(__file__).resolve().parents[2]
IDENTITY = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


def git(cwd: Path, *argv: str, stdin: bytes = b"", check: bool = True) -> str:
    done = subprocess.run(
        ["git", *argv], cwd=cwd, input=stdin, env={**os.environ, **IDENTITY}, capture_output=True
    )
    assert not check or done.returncode == 0, done.stderr
    return (done.stdout if check else done.stderr).decode(errors="replace").strip()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "master")
    git(folder, "config", "core.autocrlf", "false")
    return folder


def commit(work: Path) -> str:
    git(work, "add", "-A", "-f")
    git(work, "commit", "-q", "--allow-empty", "-m", "x")
    return git(work, "rev-parse", "HEAD")


def commit_tree(work: Path, listing: str) -> str:
    """A commit of a tree that `git add` would not make; `listing` as for mktree."""
    tree = git(work, "mktree", stdin=listing.encode())
    return git(work, "commit-tree", tree, "-m", "x")


def blob(work: Path, content: bytes) -> str:
    return git(work, "hash-object", "-w", "--stdin", stdin=content)


def test_files_modes_and_links_come_out_as_committed(work: Path, tmp_path: Path) -> None:
    (work / "a b\n").write_bytes(b"\0\r\n")
    (work / "run").write_text("#!/bin/sh\n")
    (work / "run").chmod(0o755)
    (work / "deep" / "er").mkdir(parents=True)
    (work / "deep" / "er" / "empty").touch()
    (work / "deep" / "up").symlink_to("../run")
    (work / os.fsdecode(b"\xfe")).symlink_to(os.fsdecode(b"\xff"))
    tree = export(work / ".git", commit(work), tmp_path / "out", {})
    out = tmp_path / "out"
    assert (tree.files, tree.size_bytes) == (5, 3 + 10 + 6 + 1)
    assert tree.sha == git(work, "rev-parse", "HEAD^{tree}")
    assert (out / "a b\n").read_bytes() == b"\0\r\n"
    assert stat.S_IMODE((out / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "a b\n").stat().st_mode) == 0o644
    assert stat.S_IMODE((out / "deep").stat().st_mode) == 0o755
    assert (out / "deep" / "up").readlink() == Path("../run")
    assert os.fsencode((out / os.fsdecode(b"\xfe")).readlink()) == b"\xff"


def test_export_attributes_and_line_ending_rules_are_not_obeyed(work: Path, tmp_path: Path) -> None:
    (work / ".gitattributes").write_text("app.py export-ignore\nv export-subst\nv eol=crlf text\n")
    (work / "app.py").write_text("1\n")
    (work / "v").write_text("$Format:%H$\n")
    export(work / ".git", commit(work), tmp_path / "out", {})
    assert (tmp_path / "out" / "app.py").read_text() == "1\n"
    assert (tmp_path / "out" / "v").read_bytes() == b"$Format:%H$\n"


@pytest.mark.parametrize(
    "files", [3, pytest.param(300, marks=pytest.mark.slow)], ids=["loose", "packed"]
)
def test_a_commit_in_quarantine_is_exported_and_a_rejected_one_leaves_nothing(
    work: Path, tmp_path: Path, files: int
) -> None:
    bare = tmp_path / "bare.git"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    hook = bare / "hooks" / "pre-receive"
    hook.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from bareku.receive.checkout import export\n"
        "new = sys.stdin.readline().split()[1]\n"
        f"tree = export(Path.cwd(), new, Path({str(tmp_path)!r}) / new, os.environ)\n"
        "print('files', tree.files, 'quarantine', 'GIT_QUARANTINE_PATH' in os.environ)\n"
        f"sys.exit(Path({str(tmp_path / 'refuse')!r}).exists())\n"
    )
    hook.chmod(0o755)
    for number in range(files):
        (work / f"f{number}").write_text(f"{number}\n")
    first = commit(work)
    said = git(work, "push", str(bare), "master", check=False)
    assert f"files {files} quarantine True" in said
    assert (tmp_path / first / "f2").read_text() == "2\n"
    (work / "f1").write_text("new\n")  # the rest of the second tree is in the main store
    second = commit(work)
    (tmp_path / "refuse").touch()
    assert "pre-receive hook declined" in git(work, "push", str(bare), "master", check=False)
    assert (tmp_path / second / "f1").read_text() == "new\n"
    with pytest.raises(BarekuError, match="no such commit"):
        export(bare, second, tmp_path / "again", {})


def test_what_slugignore_names_is_left_out(work: Path, tmp_path: Path) -> None:
    (work / ".slugignore").write_text("# art\n*.psd\n/test\ndocs/**/*.pdf\nbig/\n!big/keep\n")
    for name in (
        "a.psd",
        "test/x",
        "lib/test/x",
        "docs/a/b.pdf",
        "docs/a/b.txt",
        "big/keep",
        "app",
    ):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    tree = export(work / ".git", commit(work), tmp_path / "out", {})
    out = tmp_path / "out"
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [".slugignore", "app", "docs/a/b.txt", "lib/test/x"]
    assert tree.files == 4


def refused(work: Path, revision: str, tmp_path: Path, limits: Limits | None = None) -> BarekuError:
    with pytest.raises(BarekuError) as caught:
        export(work / ".git", revision, tmp_path / "out", {}, limits or Limits())
    assert not (tmp_path / "out").exists(), "something half-made stays behind"
    return caught.value


def test_an_empty_tree_is_refused(work: Path, tmp_path: Path) -> None:
    assert "its tree is empty" in refused(work, commit(work), tmp_path).message


def test_a_revision_that_is_no_commit_id_is_refused(work: Path, tmp_path: Path) -> None:
    assert "not a full commit id" in refused(work, "--output=/tmp/x", tmp_path).message


@pytest.mark.parametrize(
    "target", ["/etc/shadow", "../out", "..", "d/../../x", "../app-other/file", "up/../.."]
)
def test_a_link_out_of_the_tree_is_refused(work: Path, tmp_path: Path, target: str) -> None:
    (work / "d").mkdir()
    (work / "d" / "f").touch()
    (work / "up").symlink_to("d")
    (work / "link").symlink_to(target)
    assert "points out of the tree" in refused(work, commit(work), tmp_path).message


def test_a_link_that_leaves_by_way_of_another_link_is_refused(work: Path, tmp_path: Path) -> None:
    (work / "a" / "b" / "c").mkdir(parents=True)
    (work / "a" / "b" / "c" / "top").symlink_to("../../..")
    (work / "link").symlink_to("a/b/c/top/../x")  # stays inside when read as text
    assert "points out of the tree" in refused(work, commit(work), tmp_path).message


def test_a_loop_of_links_is_exported(work: Path, tmp_path: Path) -> None:
    (work / "a").symlink_to("b")
    (work / "b").symlink_to("a")
    assert export(work / ".git", commit(work), tmp_path / "out", {}).files == 2


def test_a_submodule_is_refused_by_its_path(work: Path, tmp_path: Path) -> None:
    revision = commit_tree(work, f"160000 commit {'1' * 40}\tvendor\n")
    error = refused(work, revision, tmp_path)
    assert "vendor" in error.message
    assert "111111111111" in error.message


def test_lfs_pointers_are_refused_by_their_paths(work: Path, tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n"
    (work / "big.bin").write_text(pointer)
    (work / "real").write_text("x" + pointer)
    error = refused(work, commit(work), tmp_path)
    assert "1 Git LFS pointer: big.bin" in error.message


@pytest.mark.parametrize("name", [".git", ".GIT", "..", ".", "a/b"])
def test_a_name_that_is_no_file_name_is_refused(work: Path, tmp_path: Path, name: str) -> None:
    sha = blob(work, b"x")
    raw = b"100644 " + name.encode() + b"\0" + bytes.fromhex(sha)
    tree = git(work, "hash-object", "-t", "tree", "--literally", "-w", "--stdin", stdin=raw)
    revision = git(work, "commit-tree", tree, "-m", "x")
    assert "cannot export" in refused(work, revision, tmp_path).message


def test_an_entry_that_is_there_twice_is_refused(work: Path, tmp_path: Path) -> None:
    sha = bytes.fromhex(blob(work, b"x"))
    raw = b"120000 a\0" + sha + b"100644 a\0" + sha
    tree = git(work, "hash-object", "-t", "tree", "--literally", "-w", "--stdin", stdin=raw)
    revision = git(work, "commit-tree", tree, "-m", "x")
    assert "twice" in refused(work, revision, tmp_path).message


def test_a_folder_behind_a_link_of_the_same_name_is_refused(work: Path, tmp_path: Path) -> None:
    sha = blob(work, b"/tmp")
    inner = git(work, "mktree", stdin=f"100644 blob {sha}\tf\n".encode())
    raw = b"120000 a\0" + bytes.fromhex(sha) + b"40000 a\0" + bytes.fromhex(inner)
    tree = git(work, "hash-object", "-t", "tree", "--literally", "-w", "--stdin", stdin=raw)
    revision = git(work, "commit-tree", tree, "-m", "x")
    assert "twice" in refused(work, revision, tmp_path).message


def test_setuid_and_world_writable_modes_become_plain_ones(work: Path, tmp_path: Path) -> None:
    sha = bytes.fromhex(blob(work, b"x"))
    raw = b"104755 a\0" + sha + b"100666 b\0" + sha
    tree = git(work, "hash-object", "-t", "tree", "--literally", "-w", "--stdin", stdin=raw)
    export(work / ".git", git(work, "commit-tree", tree, "-m", "x"), tmp_path / "out", {})
    assert [stat.S_IMODE((tmp_path / "out" / n).stat().st_mode) for n in "ab"] == [0o755, 0o644]


def test_a_name_that_no_file_system_takes_is_refused(work: Path, tmp_path: Path) -> None:
    revision = commit_tree(work, f"100644 blob {blob(work, b'x')}\t{'n' * 300}\n")
    assert "300 bytes" in refused(work, revision, tmp_path).message


def test_a_path_that_is_too_deep_is_refused(work: Path, tmp_path: Path) -> None:
    tree = git(work, "mktree", stdin=f"100644 blob {blob(work, b'x')}\tf\n".encode())
    for _ in range(20):
        tree = git(work, "mktree", stdin=f"040000 tree {tree}\t{'d' * 200}\n".encode())
    revision = git(work, "commit-tree", tree, "-m", "x")
    assert "bytes" in refused(work, revision, tmp_path).message


def test_a_small_pack_that_inflates_to_much_is_refused(work: Path, tmp_path: Path) -> None:
    (work / "zeros").write_bytes(bytes(3 * 2**20))
    error = refused(work, commit(work), tmp_path, Limits(total_bytes=2 * 2**20))
    assert "zeros" in error.message
    assert str(2 * 2**20) in error.message


def test_a_tree_of_trees_that_doubles_at_each_level_is_refused(work: Path, tmp_path: Path) -> None:
    tree = git(work, "mktree", stdin=b"")
    for _ in range(40):  # 2^40 folders, in 40 objects
        lines = "".join(f"040000 tree {tree}\t{name}\n" for name in "ab")
        tree = git(work, "mktree", stdin=lines.encode())
    revision = git(work, "commit-tree", tree, "-m", "x")
    assert "5000 files" in refused(work, revision, tmp_path, Limits(entries=5000)).message


def test_an_object_that_is_missing_is_an_error(work: Path, tmp_path: Path) -> None:
    (work / "f").write_text("only here\n")
    revision = commit(work)
    sha = git(work, "rev-parse", "HEAD:f")
    (work / ".git" / "objects" / sha[:2] / sha[2:]).unlink()
    assert "cannot export" in refused(work, revision, tmp_path).message
