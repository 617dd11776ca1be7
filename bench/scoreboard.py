"""How many requests of a corpus the frontend judges rightly.

    script/bench scoreboard [--json] FOLDER...

A folder may hold, at any depth: gunicorn's `*.http` below `valid` and `invalid`, llhttp's `*.md`,
raw requests in any other file below a folder named `accept`, `valid`, `reject`, `invalid` or
`either`, and `*.jsonl` with `name`, `data` (base64) and `expect`.

A case to accept passes when the answer is no refusal, a case to reject when a refusal comes.
Each is sent whole and byte by byte; `delivered` counts requests that reached the handler although
the first thing in the input had to be refused.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.frontend.rig import Frontend, Handler, ok, route

WANTS = {
    "accept": "accept",
    "valid": "accept",
    "reject": "reject",
    "invalid": "reject",
    "either": "either",
}
PATIENCE_S = 0.25  # for an answer to an input that may be incomplete


@dataclass(frozen=True)
class Case:
    """One input."""

    suite: str
    name: str
    data: bytes
    want: str


def load(folder: Path) -> Iterator[Case]:
    """Every case below a folder."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = str(path.relative_to(folder))
        if path.suffix == ".http":
            yield from gunicorn(folder, path, name)
        elif path.suffix == ".md":
            yield from llhttp(folder, path, name)
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                case = json.loads(line)
                data = base64.b64decode(case["data"])
                yield Case(f"{folder.name}/{path.stem}", case["name"], data, case["expect"])
        elif path.suffix not in {".py", ".pyc"} and (want := wanted(path)):
            yield Case(f"{folder.name}-{want}", name, path.read_bytes(), want)


def wanted(path: Path) -> str | None:
    return next((WANTS[part] for part in reversed(path.parts[:-1]) if part in WANTS), None)


def gunicorn(folder: Path, path: Path, name: str) -> Iterator[Case]:
    """Text with escapes, newlines of the file not counted; cases that need settings are left out."""
    settings = path.with_suffix(".py")
    if settings.is_file() and "cfg.set(" in settings.read_text():
        return
    want = wanted(path)
    if want is None:
        return
    data = path.read_bytes().replace(b"\r", b"").replace(b"\n", b"")
    data = unescape(data)
    yield Case(f"{folder.name}-{want}", name, with_host(data) if want == "accept" else data, want)


def unescape(data: bytes) -> bytes:
    simple = {
        b"r": b"\r",
        b"n": b"\n",
        b"t": b"\t",
        b"0": b"\0",
        b"f": b"\f",
        b"v": b"\v",
        b"\\": b"\\",
    }

    def one(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code[1:], 16)]) if code[:1] == b"x" else simple[code]

    return re.sub(rb"\\(x[0-9A-Fa-f]{2}|[rnt0fv\\])", one, data)


def with_host(data: bytes) -> bytes:
    """A bare parser's input needs a Host in each request before a server may take it."""

    def one(match: re.Match[bytes]) -> bytes:
        if re.search(rb"(?im)^host:", match[3]):
            return match[0]
        return match[1] + b"Host: " + (match[2] or b"localhost") + b"\r\n" + match[3]

    line = rb"([A-Z-]+ (?:https?://([^/?# ]+))?[^ \r\n]* HTTP/1\.1\r\n)"
    return re.sub(line + rb"((?:[^\r\n]+\r\n)*\r\n)", one, data)


def llhttp(folder: Path, path: Path, name: str) -> Iterator[Case]:
    """A `http` block of strict mode, and a `log` block that may hold an error."""
    text = path.read_text()
    pattern = re.compile(
        r"<!-- meta=(\{[^\n]*\}) -->\n```http\n(.*?)\n```\n\n```log\n(.*?)\n```", re.DOTALL
    )
    for match in pattern.finditer(text):
        if json.loads(match[1]).get("type") != "request" or "Pause on" in match[3]:
            continue
        data = re.sub(r"\\\n", "", match[2]).replace("\n", "\r\n").encode()
        data = unescape(data)
        line = text[: match.start()].count("\n") + 1
        want = "reject" if "error code" in match[3] else "accept"
        if want == "reject" and b"\r\n\r\n" not in data:
            data += b"\r\n\r\n"  # a bare parser judges before the end, a server need not
        yield Case(f"{folder.name}-{want}", f"{name}:{line}", with_host(data), want)


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([1-5][0-9]{2}) ", data)]


def judge(frontend: Frontend, data: bytes, *, bytewise: bool) -> list[int]:
    """The statuses of all answers to an input."""
    got = b""
    with frontend.connect(5) as sock:
        try:
            if bytewise:
                for at in range(len(data)):
                    sock.send(data[at : at + 1])
            else:
                sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        deadline = time.monotonic() + PATIENCE_S
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                piece = sock.recv(65536)
            except (TimeoutError, ConnectionResetError):
                break
            if not piece:
                break
            got += piece
    return [status for status in statuses(got) if status >= 200]


def passes(case: Case, found: list[int]) -> bool:
    is_refused = any(status >= 400 and status != 404 for status in found)
    return is_refused == (case.want == "reject")


def run(frontend: Frontend, handler: Handler, cases: list[Case]) -> dict[str, dict[str, object]]:
    """Each suite's score."""
    board: dict[str, dict[str, object]] = {}
    scores: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    failed: dict[str, list[str]] = defaultdict(list)
    lock = threading.Lock()

    def one(case: Case) -> None:
        before = len(handler.requests)
        whole = judge(frontend, case.data, bytewise=False)
        reached = len(handler.requests) - before
        cut = judge(frontend, case.data, bytewise=True)
        with lock:
            score = scores[case.suite]
            score[0] += 1
            score[1] += passes(case, whole)
            score[2] += passes(case, cut)
            score[3] += whole != cut
            if case.want == "reject" and whole[:1] and whole[0] >= 400:
                score[4] += reached
            if not passes(case, whole):
                failed[case.suite].append(f"{case.name} {whole}")

    for case in cases:
        if case.want != "either":
            one(case)
    for suite, (number, whole, cut, differ, delivered) in sorted(scores.items()):
        board[suite] = {
            "cases": number, "passed": whole, "passed_bytewise": cut, "differ_bytewise": differ,
            "delivered": delivered, "failed": failed[suite],
        }  # fmt: skip
    return board


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="name the cases that fail")
    args = parser.parse_args()
    cases = [case for folder in args.folders for case in load(folder.resolve())]
    if not cases:
        sys.exit("error: no cases found")
    with tempfile.TemporaryDirectory() as folder:
        frontend = Frontend(Path(folder), [route()], timeouts={"hold_s": 2}).start()
        handler = Handler(frontend.link, lambda *_: ok(b"ok"), capacity=100).start()
        try:
            board = run(frontend, handler, cases)
        finally:
            handler.stop()
            frontend.close()
    if args.json:
        print(json.dumps(board, indent=1))
        return
    print(f"{'suite':<28}{'passed':>12}{'bytewise':>10}{'differ':>8}{'delivered':>11}")
    for suite, row in board.items():
        score = f"{row['passed']}/{row['cases']}"
        print(
            f"{suite:<28}{score:>12}{row['passed_bytewise']:>10}{row['differ_bytewise']:>8}"
            f"{row['delivered']:>11}"
        )
        if args.verbose:
            for name in row["failed"]:  # type: ignore[attr-defined]
                print(f"    {name}")


if __name__ == "__main__":
    main()
