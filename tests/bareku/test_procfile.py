from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareku import procfile
from bareku.errors import BarekuError


def test_types_come_in_the_order_of_the_file() -> None:
    text = "worker: rq worker\nweb: gunicorn app:app\n"
    assert list(procfile.parse(text).items()) == [
        ("worker", "rq worker"),
        ("web", "gunicorn app:app"),
    ]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("web: a\r\n", "a"),
        ("# first\n\n   # second\nweb: a", "a"),
        ("web:a", "a"),
        ("web:   a b  \n", "a b"),
        ("web: a # kept\n", "a # kept"),
        ("web: a: 'b: c'\n", "a: 'b: c'"),
        ("\ufeffweb: a\n", "a"),
    ],
)
def test_what_editors_and_people_leave_in_a_procfile_is_understood(text: str, command: str) -> None:
    assert procfile.parse(text) == {"web": command}


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("web: a\nweb: b\n", 2, "'web' is there twice"),
        ("web: a\n<<<<<<< HEAD\n", 2, "is not `type: command`"),
        ("web\n", 1, "is not `type: command`"),
        ("\n\nweb:\n", 3, "is not `type: command`"),
        ("we/b: a\n", 1, "process type"),
        ("-x: a\n", 1, "process type"),
        (f"{'w' * 64}: a\n", 1, "process type"),
        ("web: a\0b\n", 1, "NUL"),
    ],
)
def test_a_line_that_is_nothing_is_named_by_its_number(text: str, line: int, why: str) -> None:
    with pytest.raises(BarekuError, match=f"line {line}: ") as caught:
        procfile.parse(text)
    assert why in caught.value.message


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
COMMANDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40).filter(
    lambda text: text == text.strip()
)


@given(st.dictionaries(NAMES, COMMANDS, max_size=5))
def test_what_is_rendered_is_parsed_to_the_same(types: dict[str, str]) -> None:
    assert procfile.parse(procfile.render(types)) == types


def test_a_command_starts_after_the_profile_and_may_be_compound(tmp_path: Path) -> None:
    (tmp_path / ".profile.d").mkdir()
    (tmp_path / ".profile.d" / "a.sh").write_text("export A=1\nfalse\n")
    (tmp_path / ".profile.d" / "b.sh").write_text("export B=$A.2\n")
    argv = procfile.start_argv("false; echo $B && echo $PORT")
    env = {"HOME": str(tmp_path), "PORT": "5", "PATH": "/usr/bin:/bin"}
    assert subprocess.run(argv, env=env, capture_output=True, text=True).stdout == "1.2\n5\n"


def test_a_command_starts_in_a_slug_without_a_profile(tmp_path: Path) -> None:
    argv = procfile.start_argv("exit 7")
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
