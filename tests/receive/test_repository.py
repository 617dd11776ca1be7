from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bareku import paths
from bareku.errors import BarekuError
from bareku.receive import repository
from bareku.receive.push import ZERO


def config(folder: Path, key: str) -> str:
    return repository.git("config", key, git_dir=folder)


def test_new_repository_has_our_hooks_and_no_commit(tmp_path: Path) -> None:
    folder = tmp_path / "hello.git"
    repository.create(folder, "master")
    assert config(folder, "core.hooksPath") == str(paths.hooks())
    assert config(folder, "receive.fsckObjects") == "true"
    assert repository.git("symbolic-ref", "HEAD", git_dir=folder) == "refs/heads/master"
    assert repository.resolve(folder, "refs/heads/master") == ZERO
    assert [path.name for path in tmp_path.iterdir()] == ["hello.git"]


def test_what_somebody_changed_is_set_again_and_the_rest_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "hello.git"
    repository.create(folder, "master")
    repository.git("config", "core.hooksPath", "/elsewhere", git_dir=folder)
    repository.git("config", "receive.maxInputSize", "1m", git_dir=folder)
    repository.configure(folder)
    assert config(folder, "core.hooksPath") == str(paths.hooks())
    assert config(folder, "receive.maxInputSize") == "1m"


def test_git_of_ours_does_not_obey_the_environment_of_a_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hello.git"
    repository.create(folder, "master")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", "/nowhere")
    assert repository.resolve(folder, "refs/heads/master") == ZERO


def test_failing_git_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(BarekuError, match=r"cannot run git for-each-ref: .*not a git repository"):
        repository.resolve(tmp_path, "refs/heads/master")


def test_subject_is_the_first_line_of_the_message(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(
        ["git", *who, "commit", "-q", "--allow-empty", "-m", "One line\n\nand more"],
        cwd=tmp_path,
        check=True,
    )
    assert repository.subject(os.environ, tmp_path / ".git", "HEAD") == "One line"
