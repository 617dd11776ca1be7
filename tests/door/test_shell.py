from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bareku.door import shell
from bareku.errors import BarekuError
from bareku.paths import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "repositories" / "hello.git").mkdir(parents=True)
    return Root(tmp_path)


@pytest.mark.parametrize(
    "path", ["hello.git", "/hello.git", "hello", "repositories/hello.git", "/hello.git/", "~/hello"]
)
def test_repository_is_found_by_any_usual_path(root: Root, path: str) -> None:
    argv = shell.command(root, f"git-receive-pack '{path}'", "ada")
    assert argv == ["git", "receive-pack", str(root.repository("hello"))]


def test_git_with_a_blank_is_the_same(root: Root) -> None:
    argv = shell.command(root, "git upload-pack hello.git", "ada")
    assert argv == ["git", "upload-pack", str(root.repository("hello"))]


@pytest.mark.parametrize(
    "command",
    [
        "git-receive-pack '../../etc/x.git'",
        "git-receive-pack '/etc/passwd'",
        "git-receive-pack 'hello.git/../other.git'",
        "git-receive-pack hello%2e",
        "git-receive-pack 'hello\n.git'",
        "git-receive-pack --upload-pack=id hello.git",
        "git-receive-pack -x",
        "git-receive-pack",
        "git-upload-pack 'hello.git'; id",
        "git-upload-pack $(id)",
        "git-upload-pack `id`",
        "git-upload-pack 'hello.git",
        "up",
        "down",
        "",
        "x" * 200_000 + " '",
    ],
)
def test_command_is_refused(root: Root, command: str) -> None:
    with pytest.raises(BarekuError, match=r"^cannot "):
        shell.command(root, command, "ada")


def test_unknown_app_names_the_nearest(root: Root) -> None:
    with pytest.raises(BarekuError) as caught:
        shell.command(root, "git-receive-pack helo.git", "ada")
    assert caught.value.exit_code == 20
    assert caught.value.hint == "did you mean 'hello'?"


def test_verb_goes_to_the_command_line_word_by_word(root: Root) -> None:
    argv = shell.command(root, "apps:create 'two words; id'", "ada")
    assert argv == [sys.executable, "-P", "-m", "bareku.cli.main", "apps:create", "two words; id"]


def test_login_environment_does_not_reach_the_command(root: Root) -> None:
    given = {"LD_PRELOAD": "x", "GIT_DIR": "/", "PATH": "/bin", "GIT_PROTOCOL": "version=2"}
    env = shell.environment(given, root, "ada")
    assert "LD_PRELOAD" not in env
    assert "GIT_DIR" not in env
    assert env["GIT_PROTOCOL"] == "version=2"
    assert env["BAREKU_USER"] == "ada"


def test_odd_protocol_is_dropped(root: Root) -> None:
    assert "GIT_PROTOCOL" not in shell.environment({"GIT_PROTOCOL": "$(id)"}, root, "ada")


def test_forced_command_loads_nothing_heavy() -> None:
    code = (
        "import sys, bareku.door.shell;"
        "print([m for m in ('paramiko', 'dulwich', 'jinja2', 'zmq', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
