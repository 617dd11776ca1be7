"""The forced command: `bareku-shell USER` turns SSH_ORIGINAL_COMMAND into git or a verb.

It reads the command once with shlex and never goes through a shell. Runs at every fetch and
push, so it imports the vocabulary only.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping

from bareku import app as apps
from bareku import names, paths, site
from bareku.errors import BarekuError
from bareku.paths import Root

MAX_COMMAND = 128 * 1024
GIT = {
    "git-receive-pack": "receive-pack",
    "git-upload-pack": "upload-pack",
    "git-upload-archive": "upload-archive",
}
LOCAL_VERBS = frozenset({"up", "down"})  # they are about this machine's daemons
KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "BAREKU_SHARE", "PYTHONPATH")
_PROTOCOL = re.compile(r"version=[0-9]{1,3}(:[a-z0-9=]{1,40})*")


def main() -> None:
    """Become the command the user asked for; exit 1 with one line when it is refused."""
    user = sys.argv[1] if len(sys.argv) > 1 else ""
    root = Root(paths.default_root())
    try:
        names.parse_user(user)
        argv = command(root, os.environ.get("SSH_ORIGINAL_COMMAND", ""), user)
    except BarekuError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        sys.exit(exc.exit_code)
    os.execvpe(argv[0], argv, environment(os.environ, root, user))  # noqa: S606 - argv is ours


def command(root: Root, original: str, user: str) -> list[str]:
    """The argv for what was asked. Raises BarekuError when it may not be run."""
    if len(original) > MAX_COMMAND or any(c in original for c in "\0"):
        raise _refused("it is too long or holds a NUL byte")
    try:
        words = shlex.split(original)
    except ValueError as exc:
        raise _refused(f"its quotes do not match ({exc})") from exc
    if not words:
        raise BarekuError(
            f"cannot open a shell: hello {user}, you are known here, but there is no login",
            hint="push with git, or run a verb: ssh … help",
        )
    if words[0] == "git" and len(words) > 1:
        words = [f"git-{words[1]}", *words[2:]]
    if words[0] in GIT:
        return git(root, words)
    if words[0] in LOCAL_VERBS:
        raise _refused(f"`{words[0]}` starts and stops this machine's daemons; run it there")
    return [sys.executable, "-P", "-m", "bareku.cli.main", *words]


def git(root: Root, words: list[str]) -> list[str]:
    """The git program on one app's repository: `/hello.git`, `hello`, `repositories/hello.git`."""
    if len(words) != 2:
        raise _refused(f"{words[0]} takes one repository")
    path = words[1].removeprefix("/").removeprefix("~/").removeprefix("repositories/")
    app = names.parse_app(path.removesuffix("/").removesuffix(".git"))
    apps.require(root, app)
    return ["git", GIT[words[0]], str(root.repository(app))]


def environment(given: Mapping[str, str], root: Root, user: str) -> dict[str, str]:
    """What the command may know: little of the login's environment, and who is at the door."""
    env = {key: given[key] for key in KEPT if key in given}
    env |= site.variables(given)
    if _PROTOCOL.fullmatch(given.get("GIT_PROTOCOL", "")):
        env["GIT_PROTOCOL"] = given["GIT_PROTOCOL"]
    return env | {
        "BAREKU_ROOT": str(root.path),
        "BAREKU_USER": user,
        "BAREKU_PYTHON": sys.executable,
    }


def _refused(why: str) -> BarekuError:
    return BarekuError(f"cannot run this command: {why}", hint="see: ssh … help", exit_code=2)


if __name__ == "__main__":
    main()
