"""What a slug may hold: the rule that the builder and the nodes share. Pure."""

from __future__ import annotations

import posixpath
import stat

# a link may leave a slug only for what a node has by itself, and for the slug's own place
_SYSTEM = (
    "/usr/", "/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/opt/", "/etc/alternatives/",
    "/etc/ssl/certs/", "/proc/self/", "/dev/", "/app/",
)  # fmt: skip


def objection(path: str, mode: int, link: str = "") -> str | None:
    """Why an entry may not be in a slug, None when it may.

    `path` is relative to the slug's root, `mode` is st_mode, `link` where a symbolic link points.
    """
    if stat.S_ISLNK(mode):
        return f"the link {path!r} points out of it, to {link!r}" if _leaves(path, link) else None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        is_raised = mode & (stat.S_ISUID | stat.S_ISGID)
        return f"{path!r} is set to run as its owner" if is_raised else None
    return f"{path!r} is a device, a socket or a pipe"


def _leaves(path: str, link: str) -> bool:
    if link.startswith("/"):
        end = posixpath.normpath(link)
        return not (end + "/").startswith(_SYSTEM)
    end = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return end == ".." or end.startswith(("../", "/"))
