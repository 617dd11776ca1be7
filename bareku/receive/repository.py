"""The bare repository of an app: made, looked into. Every git call of the receiving side is here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bareku import paths
from bareku.errors import BarekuError
from bareku.receive.push import ZERO

CONFIG = {
    "core.hooksPath": str(paths.hooks()),
    "bareku.python": sys.executable,  # for a push that does not come through the door
    "receive.fsckObjects": "true",  # refuses trees with `.git`, `..` and the like
    "receive.advertisePushOptions": "true",
    "receive.denyDeletes": "false",  # branches may go; the hook keeps the deploy branch
    "gc.auto": "0",  # a push must not start a repack in front of the pusher
}


def create(repository: Path, branch: str) -> None:
    """Make the bare repository whole or not at all. Raises BarekuError when git fails."""
    making = repository.with_name(f".{repository.name}.{os.getpid()}.tmp")
    git("init", "--quiet", "--bare", f"--initial-branch={branch}", str(making))
    (making / "description").write_text(f"{repository.stem}, deployed by Bareku\n")
    configure(making)
    making.rename(repository)


def configure(repository: Path) -> None:
    """Set what Bareku relies on, where it is not set already."""
    listed = git("config", "--local", "--list", "--null", git_dir=repository).split("\0")
    known = dict(entry.partition("\n")[::2] for entry in listed)
    for key, value in CONFIG.items():
        if known.get(key.lower()) != value:
            git("config", key, value, git_dir=repository)


def resolve(repository: Path, ref: str) -> str:
    """The commit a ref names now, ZERO when there is no such ref."""
    return git("for-each-ref", "--format=%(objectname)", ref, git_dir=repository) or ZERO


def subject(environ: Mapping[str, str], repository: Path, commit: str) -> str:
    """The first line of a commit's message; `environ` is the hook's, which shows it quarantine."""
    done = subprocess.run(
        ["git", "--git-dir", str(repository), "log", "-1", "--format=%s", commit, "--"],
        env=dict(environ),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout.strip()[:200]


def git(*arguments: str, git_dir: Path | None = None) -> str:
    """Run git away from any hook's environment; its output. Raises BarekuError."""
    where = ["--git-dir", str(git_dir)] if git_dir else []
    done = subprocess.run(
        ["git", *where, *arguments],
        env=without_git(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BarekuError(f"cannot run git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def without_git(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment less what git set for its hook; a git run inside would obey it."""
    return {key: value for key, value in environ.items() if not key.startswith("GIT_")}
