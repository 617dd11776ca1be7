"""A user number for each app, so that no app can read or signal another's processes.

Kept in `<data>/.uids.json` for as long as the app's data, which belongs to that number.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from bareku.errors import BarekuError
from bareku.files import write_atomic

MOST = 10_000


def uid_of(app: str, base: int, data: Path) -> int:
    """The app's number, from `base` on; the lowest free one when it has none yet.

    Raises BarekuError when the table cannot be read: a guess could give away another's data.
    """
    path = data / ".uids.json"
    known: dict[str, int] = {}
    try:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        data.mkdir(parents=True, exist_ok=True)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise BarekuError(f"cannot read the users of the apps in {path}: {exc}") from exc
    if app not in known:
        taken = set(known.values())
        free = next((n for n in range(base, base + MOST) if n not in taken), None)
        if free is None:
            raise BarekuError(f"cannot give {app} a user: {MOST} are in use")
        known[app] = free
        write_atomic(path, msgspec.json.format(msgspec.json.encode(known)) + b"\n", mode=0o600)
    return known[app]
