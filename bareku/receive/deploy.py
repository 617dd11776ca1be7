"""A deploy, from a built slug to a served release: all new, or all as before.

`begin` runs the new release beside the old one and switches the routes; `settle` makes it current
once git has moved the ref, or takes everything back. Whatever dies in between, the journal on
disk says which of the two `settle` shall do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import msgspec

from bareku.app import Release
from bareku.daemon import is_fresh
from bareku.errors import BarekuError
from bareku.paths import Root
from bareku.receive import desired, journal, ledger, observe
from bareku.receive.failpoint import reached
from bareku.receive.journal import Entry, Phase
from bareku.receive.observe import Broken
from bareku.receive.repository import resolve

SWITCH_S = 10.0  # a frontend that is up answers in milliseconds; a lost one is not waited for
GONE_S = 15.0  # how long a rejected push waits for its processes to be gone

COMMAND_S = 900.0  # as long as a build may take


class Console(Protocol):
    """Whom a deploy tells what it does, and asks for the logs of the nodes."""

    def step(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def last_lines(self, process: str) -> list[str]:
        """The end of what a process of the release wrote, such as `web.1`."""


def begin(
    root: Root, release: Release, *, ref: str, console: Console, run_command: bool = True
) -> None:
    """Run `release` beside the current one, check it, switch the routes to it.

    `ref` is what git will move to the release's commit, empty without a push. The `release`
    command of the app is run first, unless `run_command` is false.
    Raises BarekuError after taking everything back; the message says what failed and how.
    """
    is_prepared = run_command and desired.PREPARE in release.commands
    entry = Entry(
        app=release.app,
        phase=Phase.PREPARING if is_prepared else Phase.CHECKING,
        release=release.number,
        previous=ledger.current_number(root, release.app),
        ref=ref,
        commit=release.commit,
    )
    try:
        ledger.write(root, release)
        reached("recorded")
        journal.write(root, entry)
        reached("opened")
        desired.publish(root)
        reached("started")
        if is_prepared:
            _run_command(root, release, console)
            journal.write(root, msgspec.structs.replace(entry, phase=Phase.CHECKING))
            desired.publish(root)
        _wait_until_ready(root, release, console)
        reached("ready")
        journal.write(root, msgspec.structs.replace(entry, phase=Phase.SWITCHED))
        reached("switched")
        desired.publish(root)
        _wait_until_switched(root)
        reached("routed")
    except BaseException:
        take_back(root, entry)
        raise


def require_master(root: Root) -> None:
    """Raise BarekuError unless a master is there to run what a deploy asks for."""
    if not is_fresh(desired.status_path(root)):
        raise observe.no_master()


def settle(root: Root, app: str) -> None:
    """End a deploy that is no longer worked on: commit it if git took the push, else take it back.

    Call it with the app's lock held. Without an open deploy it only clears what a kill left: a
    manifest that never ran, a desired state that was not written any more.
    """
    entry = journal.read(root, app)
    if entry is None:
        ledger.forget_unborn(root, app)
        desired.publish(root)
        return
    is_taken = not entry.ref or resolve(root.repository(app), entry.ref) == entry.commit
    if entry.phase is Phase.SWITCHED and is_taken:
        reached("moved")
        ledger.make_current(root, ledger.load(root, app, entry.release))
        reached("current")
        journal.clear(root, app)
        reached("closed")
        desired.publish(root)
    else:
        take_back(root, entry)


@contextlib.contextmanager
def taken_back_on_error(root: Root, app: str) -> Iterator[None]:
    """Take an open deploy back when what follows it fails."""
    try:
        yield
    except BaseException:
        if entry := journal.read(root, app):
            take_back(root, entry)
        raise


def take_back(root: Root, entry: Entry) -> None:
    """Routes and processes as before; the new release is forgotten when its processes are gone."""
    journal.clear(root, entry.app)
    desired.publish(root)
    with contextlib.suppress(BarekuError):  # without a master: it will read the desired state
        observe.until(
            desired.status_path(root),
            GONE_S,
            lambda status: observe.is_gone(status, entry.app, entry.release),
        )
    ledger.forget(root, entry.app, entry.release)


def _run_command(root: Root, release: Release, console: Console) -> None:
    """Run the `release` command to its end; what it wrote is shown."""
    console.step("Running the release command.")
    for status in observe.watch(desired.status_path(root), COMMAND_S):
        found = observe.command_ended(status, release)
        if isinstance(found, Broken):
            raise _failure(root, release, found, console)
        if found:
            for line in console.last_lines("release.1"):
                console.detail(line)
            return
    raise BarekuError(
        f"cannot release {release.app} v{release.number}: its release command ran for "
        f"{COMMAND_S:.0f} s",
        hint="shorten it, or run the work in a process of its own",
    )


def _wait_until_ready(root: Root, release: Release, console: Console) -> None:
    limit_s = release.settings.checks.timeout_s + 10.0  # the worker ends a late start by itself
    for status in observe.watch(desired.status_path(root), limit_s):
        found = observe.verdict(status, release)
        if isinstance(found, Broken):
            raise _failure(root, release, found, console)
        if found:
            return
    raise BarekuError(
        f"cannot release {release.app} v{release.number}: it was not ready after {limit_s:.0f} s",
        hint="`bareku status` shows whether the daemons are well",
    )


def _wait_until_switched(root: Root) -> None:
    """Wait for the desired state as it is now: what others publish meanwhile holds ours too."""
    if not observe.until(
        desired.status_path(root),
        SWITCH_S,
        lambda status: observe.is_switched(status, desired.digest(root)),
    ):
        raise BarekuError(
            "cannot switch the routes: the frontend did not confirm them",
            hint="`bareku status` shows whether the daemons are well",
        )


def _failure(root: Root, release: Release, broken: Broken, console: Console) -> BarekuError:
    lines = console.last_lines(broken.name)
    before = ledger.current_number(root, release.app)
    shown = "".join(f"\n  {line}" for line in lines) or "\n  (it wrote nothing)"
    return BarekuError(
        f"cannot release {release.app} v{release.number}: {broken.name} on {broken.node} "
        f"{broken.reason}; its last lines:{shown}",
        hint="repair it, commit and push again; "
        + ("nothing is live yet" if before is None else f"v{before} keeps serving"),
    )
