"""Entry of the git hooks: `python -m bareku.receive.hook pre-receive|post-receive`.

The repository is the current folder; the root is two folders up (`repositories/<app>.git`).
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

from bareku import app as apps
from bareku import names
from bareku.errors import BarekuError
from bareku.paths import Root
from bareku.receive import lock, push
from bareku.receive.transcript import Transcript

GIT_ENDS_S = 600.0  # after the hook git only moves refs; then it exits


def main() -> None:
    """Run the named hook; exit 0 accepts the push, anything else refuses it."""
    os.umask(0o022)
    hook = sys.argv[1] if len(sys.argv) > 1 else ""
    repository = Path.cwd()
    root = Root(repository.parent.parent)
    transcript = Transcript()
    try:
        app = names.parse_app(repository.stem)
        if hook == "pre-receive":
            pre_receive(root, app, push.parse(sys.stdin.read()), transcript)
        elif hook == "post-receive":
            sys.stdin.read()
            post_receive(root, app)
        else:
            raise BarekuError(f"cannot run the hook {hook!r}: it is not one of ours", exit_code=2)
    except BarekuError as exc:
        exc.hint = exc.hint or "nothing was changed; repair it, commit and push again"
        transcript.error(exc)
        transcript.close()
        sys.exit(exc.exit_code)


def pre_receive(root: Root, app: str, updates: list[push.Update], transcript: Transcript) -> None:
    """Deploy what the push brings for the deploy branch; say of other refs that they do not."""
    transcript.step(f"{app} app.")
    branch = apps.load_settings(root, app).branch
    update = push.deploying(updates, branch)
    for other in updates:
        if other is not update:
            transcript.write(f"{other.ref} is not {branch}")
            if update is None and not other.is_delete:
                name = push.short(other.ref)
                transcript.write(
                    f"hint: kept, but not deployed; to deploy it: git push bareku {name}:{branch}\n"
                    f"hint: or set `branch: {name}` in apps/{app}.yml"
                )
    if update is None:
        return

    from bareku.receive import (
        deploy,
        story,
    )  # loads msgspec, dulwich and the rest only for a deploy

    user = os.environ.get("BAREKU_USER", "-")
    with lock.held(root, app, f"{user} is deploying {app}", transcript.step) as fd:
        story.tell(root, app, update, transcript, user=user)
        keep_lock_until_git_ends(fd, lambda: deploy.settle(root, app))


def post_receive(root: Root, app: str) -> None:
    """Make the release current: git has moved the ref, the lock is still held for us."""
    from bareku.receive import deploy

    deploy.settle(root, app)


def keep_lock_until_git_ends(fd: int, settle: Callable[[], None]) -> None:
    """Leave a child behind that holds the lock `fd` until git has moved the ref, then settles.

    Without it the next push could deploy in the moment between this hook and the ref. The child
    has no terminal and no pipe of the pusher's, so git does not wait for it.
    """
    git = os.pidfd_open(os.getppid())
    if os.fork():
        os.close(git)
        return
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        select.select([git], [], [], GIT_ENDS_S)
        settle()
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
