"""The difference between two slugs, as zstd makes it: what a node lacks, when it has the one before.

Without the program `zstd` there are no differences, and slugs travel whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bareku.receive.slug import Slug

WORTHWHILE_BYTES = 2**20  # a smaller slug is there before zstd has started
_WINDOW = "--long=31"  # both images within the window of the matcher: up to 2 GiB


@contextlib.contextmanager
def between(base: Slug, slug: Slug) -> Iterator[Path | None]:
    """A file that makes `slug` out of `base`, removed at the end; None when it is not worth it."""
    part = slug.path.with_name(f".{slug.uuid}.{os.getpid()}.delta")
    try:
        yield part if _make(base, slug, part) else None
    finally:
        part.unlink(missing_ok=True)


def _make(base: Slug, slug: Slug, part: Path) -> bool:
    program = shutil.which("zstd")
    if program is None or slug.size_bytes < WORTHWHILE_BYTES or not base.path.is_file():
        return False
    argv = [program, "-q", "-f", "-1", _WINDOW, f"--patch-from={base.path}", str(slug.path)]
    done = subprocess.run([*argv, "-o", str(part)], capture_output=True, check=False)
    return done.returncode == 0 and part.stat().st_size < slug.size_bytes // 2
