"""Which slugs are still needed: those of what runs and of the releases one can go back to."""

from __future__ import annotations

import contextlib

from bareku import app as apps
from bareku.errors import BarekuError
from bareku.names import parse_slug
from bareku.paths import Root
from bareku.receive import journal, ledger

KEPT_LOGS = 50  # builds of an app whose output stays


def needed(root: Root) -> set[str]:
    """The slugs of every app's current release, of those before it that are kept, and of a deploy
    in flight."""
    found: set[str] = set()
    for app in apps.names(root):
        with contextlib.suppress(BarekuError):
            kept = ledger.numbers(root, app)[-apps.load_settings(root, app).keep_releases :]
            numbers = {*kept, ledger.current_number(root, app)}
            if entry := journal.read(root, app):
                numbers |= {entry.release, entry.previous}
            for number in numbers - {None}:
                found.add(ledger.load(root, app, int(number or 0)).slug)
    return found


def collect(root: Root) -> list[str]:
    """Remove what is not needed from the repository node; the names of the slugs that went."""
    kept = needed(root)
    removed = []
    for image in sorted(root.slugs.glob("*.sqsh")):
        if parse_slug(image.stem) not in kept:
            image.with_suffix(".json").unlink(missing_ok=True)
            image.unlink()
            removed.append(image.stem)
    for folder in root.builds.glob("*"):
        for log in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
            log.unlink()
    return removed
