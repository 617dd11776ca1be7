"""Entry of the git hooks: `python -m bareku.receive.hook pre-receive|post-receive`.

The repository is the current folder; the root is two folders up (`repositories/<app>.git`).
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from bareku import app as apps
from bareku import names
from bareku.errors import BarekuError
from bareku.paths import Root
from bareku.receive import lock, push
from bareku.receive.transcript import Transcript


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

    user = os.environ.get("BAREKU_USER", "-")
    with lock.held(root, app, f"{user} is deploying {app}", transcript.step):
        leave_janitor(root, app)

        from bareku.receive import story  # the rest of Bareku is loaded only for a deploy

        story.tell(root, app, update, transcript, user=user)


def post_receive(root: Root, app: str) -> None:
    """Make the release current: git has moved the ref, the lock is still held for us."""
    from bareku.receive import deploy

    deploy.settle(root, app)


def leave_janitor(root: Root, app: str) -> None:
    """Leave a child that holds the app's lock until this hook and git have ended, then settles.

    Without it the next push could deploy in the moment between the hook and the ref, and a deploy
    whose hook was killed would stay open. The child has no pipe of the pusher's, so git does not
    wait for it; it is forked before there are threads or connections.
    """
    hook = os.getpid()
    running = {os.pidfd_open(pid) for pid in (hook, os.getppid())}
    if os.fork():
        for fd in running:
            os.close(fd)
        return
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.environ.pop("BAREKU_FAIL", None)  # it is the hook that shall break
        while running:
            running -= set(select.select(list(running), [], [])[0])

        from bareku.receive import deploy

        deploy.settle(root, app)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
