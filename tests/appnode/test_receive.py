"""The forced command as sshd would call it: a process, its environment, its stdin."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appnode.receive import Places, answer, split
from bareku.errors import BarekuError

UUID = "2765e91b-50c4-4d04-b92c-f38f82661b2a"
MISSING = "00000000-50c4-4d04-b92c-f38f82661b2a"


def serve(
    root: Path, command: str | None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    folders = [f"--{name}={root / name}" for name in ("slugs", "defs", "logs")]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    if command is not None:
        env["SSH_ORIGINAL_COMMAND"] = command
    argv = [sys.executable, "-m", "appnode.receive", "serve", *folders]
    return subprocess.run(argv, env=env, input=stdin, capture_output=True)


def ok(root: Path, command: str, stdin: bytes = b"") -> str:
    out = io.BytesIO()
    places = Places(root / "slugs", root / "defs", root / "logs")
    answer(split(command), places, io.BytesIO(stdin), out)
    return out.getvalue().decode()


def refused(root: Path, command: str, stdin: bytes = b"") -> str:
    with pytest.raises(BarekuError, match=r"^cannot ") as caught:
        ok(root, command, stdin)
    return caught.value.message


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tree = tmp_path_factory.mktemp("tree")
    (tree / "app.py").write_text("x = 1\n")
    file = tree.with_suffix(".sqsh")
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    argv = ["mksquashfs", str(tree), str(file), "-quiet", "-no-progress", "-all-root"]
    subprocess.run(argv, env=env, check=True)
    return file.read_bytes()


def put(root: Path, image: bytes) -> str:
    return ok(root, f"put {UUID} {len(image)} {hashlib.sha256(image).hexdigest()}", image)


def test_a_slug_is_put_found_verified_and_defined(tmp_path: Path, image: bytes) -> None:
    assert ok(tmp_path, f"have {UUID} {MISSING}") == f"{UUID} {MISSING}\n"
    assert put(tmp_path, image) == "ok\n"
    assert ok(tmp_path, f"have {UUID} {MISSING}") == f"{MISSING}\n"
    assert ok(tmp_path, f"have {UUID}") == "\n"
    assert ok(tmp_path, f"verify {UUID}") == hashlib.sha256(image).hexdigest() + "\n"
    before = int(time.time())
    assert ok(tmp_path, f"def chemeo {UUID}") == "ok\n"
    uuid, stamp = (tmp_path / "defs" / "chemeo.def").read_text().split()
    assert uuid == UUID
    assert before <= int(stamp) <= time.time()


def test_a_truncated_slug_is_refused_and_leaves_nothing(tmp_path: Path, image: bytes) -> None:
    sha256 = hashlib.sha256(image).hexdigest()
    assert "it ended after 9" in refused(tmp_path, f"put {UUID} {len(image)} {sha256}", image[:9])
    assert list((tmp_path / "slugs").iterdir()) == []


def test_a_definition_of_a_slug_that_is_not_here_is_refused(tmp_path: Path) -> None:
    assert "not on this node" in refused(tmp_path, f"def chemeo {MISSING}")
    assert not (tmp_path / "defs").exists()


def test_collect_keeps_current_and_named_slugs(tmp_path: Path, image: bytes) -> None:
    put(tmp_path, image)
    ok(tmp_path, f"def chemeo {UUID}")
    assert ok(tmp_path, f"collect {MISSING}") == "removed 0\n"
    (tmp_path / "defs" / "chemeo.def").unlink()
    assert ok(tmp_path, "collect") == "removed 1\n"
    assert list((tmp_path / "slugs").iterdir()) == []


def test_logs_are_the_last_lines(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "chemeo"
    folder.mkdir(parents=True)
    (folder / "v3.web.1.log").write_text("".join(f"{n}\n" for n in range(500)))
    assert ok(tmp_path, "logs chemeo v3.web.1 -n 2") == "498\n499\n"
    assert ok(tmp_path, "logs chemeo v3.web.1").count("\n") == 100
    (folder / "v3.web.2.log").write_text("no newline at the end")
    assert ok(tmp_path, "logs chemeo v3.web.2 -n 5") == "no newline at the end\n"
    assert ok(tmp_path, "logs chemeo v3.web.2 -n 0") == ""
    assert "No such file" in refused(tmp_path, "logs chemeo v3.web.3")


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "logs" / "chemeo").mkdir(parents=True)
    (tmp_path / "logs" / "chemeo" / "v3.web.1.log").symlink_to("/etc/passwd")
    assert "cannot show the log" in refused(tmp_path, "logs chemeo v3.web.1")


@pytest.mark.parametrize(
    "command",
    [
        "",
        "id",
        "have ../../etc/passwd",
        f"have {UUID}; id",
        f"have $(id) {UUID}",
        f"have {UUID}\nid",
        "have 'unclosed",
        "put",
        f"put {UUID} -1 {'0' * 64}",
        f"put {UUID} 1e3 {'0' * 64}",
        f"put {UUID} 99999999999999 {'0' * 64}",
        f"put {UUID} 10 {'g' * 64}",
        f"put ../{UUID} 10 {'0' * 64}",
        f"patch {UUID} 10 {'0' * 64} {MISSING} 10",
        f"patch {UUID} 10 {'0' * 64} ../x 10",
        f"def ../x {UUID}",
        "def chemeo x",
        "logs ../../etc v3.web.1",
        "logs chemeo ../web.1",
        "logs chemeo v3.web.1/../../x",
        "logs chemeo web",
        "logs chemeo v3.web.1 -n x",
        "logs chemeo web.1 --follow",
        "collect *",
        "have " + "x" * 70_000,
    ],
)
def test_what_no_honest_client_sends_is_refused(tmp_path: Path, command: str) -> None:
    places = Places(tmp_path / "slugs", tmp_path / "defs", tmp_path / "logs")
    out = io.BytesIO()
    with pytest.raises(BarekuError, match=r"^cannot ") as caught:
        answer(split(command), places, io.BytesIO(b"x" * 10), out)
    assert "\n" not in caught.value.message
    assert out.getvalue() == b""
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("command", [None, "id", f"have ../{UUID}"])
def test_a_refusal_is_an_error_line_and_exit_code_1(tmp_path: Path, command: str | None) -> None:
    done = serve(tmp_path, command)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: cannot ")


def test_sshd_gets_an_answer_and_exit_code_0(tmp_path: Path) -> None:
    done = serve(tmp_path, f"have {UUID}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{UUID}\n".encode(), b"")


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("slugs", "defs", "logs")]
    env = {**os.environ, "SSH_ORIGINAL_COMMAND": f"put {UUID} 1000 {'0' * 64}"}
    argv = [sys.executable, "-m", "appnode.receive", "serve", *folders]
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        process.stdin.write(b"x" * 10)
        process.stdin.close()
        assert process.wait(timeout=10) == 1
    assert list((tmp_path / "slugs").iterdir()) == []
