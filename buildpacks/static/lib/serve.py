"""A static site as a WSGI app: ETag, Range, compressed copies, index pages, SPA fallback.

The files are listed once at start; a slug never changes. Run as a program, in the build, it writes
down what each file holds: the files of a slug have no times from which an ETag could be made.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from settings import FALLBACK, ROOT
from whitenoise import WhiteNoise

HOME = Path(__file__).resolve().parent.parent
TOP = HOME / ROOT
DIGESTS = HOME / ".bareku" / "digests.json"
# what is in the slug for the platform, and what no site means to show
HIDDEN = {"Procfile", "Staticfile", "Staticfile.auth", "static.json", ".slugignore", ".buildpacks"}


class Site(WhiteNoise):
    """Serves the tree, without hidden files and the platform's."""

    def add_file_to_dictionary(self, url, path, stat_cache=None):
        parts = Path(path).relative_to(TOP).parts
        is_hidden = any(part.startswith(".") and part != ".well-known" for part in parts)
        if not is_hidden and parts[0] not in HIDDEN and Path(path).resolve().is_relative_to(HOME):
            super().add_file_to_dictionary(url, path, stat_cache=stat_cache)


def missing(environ, start_response):
    """What is no file: the 404 page, or the one page of a single-page app."""
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Length", "0")])
        return [b""]
    page, status = (
        (TOP / "index.html", "200 OK") if FALLBACK else (TOP / "404.html", "404 Not Found")
    )
    is_page = "." not in environ["PATH_INFO"].rpartition("/")[2]
    if FALLBACK and not is_page:
        page, status = TOP / "404.html", "404 Not Found"
    body = page.read_bytes() if page.is_file() else b"Not Found\n"
    kind = "text/html; charset=utf-8" if page.is_file() else "text/plain"
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]


def write_digests():
    """Path -> sha256 of every file of the site."""
    digests = {}
    for folder, _, names in os.walk(TOP):
        for path in (Path(folder) / name for name in names):
            if path.is_file():
                digests[os.fspath(path.relative_to(TOP))] = hashlib.sha256(
                    path.read_bytes()
                ).hexdigest()
    DIGESTS.write_text(json.dumps(digests, sort_keys=True))


if __name__ == "__main__":
    write_digests()
    sys.exit()

digests = json.loads(DIGESTS.read_text())


def add_etag(headers, path, _url):
    headers["ETag"] = f'W/"{digests[os.path.relpath(path, TOP)][:20]}"'


app = Site(missing, root=os.fspath(TOP), index_file=True, max_age=60, add_headers_function=add_etag)
