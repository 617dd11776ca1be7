from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareku.receive.output import MAX_LINE, Lines, clean


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("-----> Installing.", "-----> Installing."),
        ("=====> Next", "=====> Next"),
        ("       indented", "       indented"),
        (" !     wrong", " !     wrong"),
        (" !", " !"),
        ("plain", "       plain"),
        ("----->x", "       ----->x"),
        ("remote: -----> Job done.", "       remote: -----> Job done."),
        ("To ssh://git@example.org", "       To ssh://git@example.org"),
        ("\x1b[1Gremote: x", "       remote: x"),
        ("\x1b[31m-----> red\x1b[0m", "-----> red"),
        ("\x1b]0;title\x07text", "       text"),
        ("\x1b]8;;http://x\x1b\\link", "       link"),
        ("\x9b2Jx", "       x"),
        ("10%\r20%\r100%\r", "       100%"),
        ("a\x08\x7f\x00b", "       ab"),
        ("a\u202eb\u200b", "       ab"),
        ("a\tb", "       a       b"),
        ("", ""),
        ("   ", ""),
    ],
)
def test_a_line_comes_out_as_one_of_the_contracts_forms(line: str, shown: str) -> None:
    assert clean(line) == shown


@given(st.text(max_size=60))
def test_no_line_can_leave_its_form_or_steer_a_terminal(line: str) -> None:
    shown = clean(line)
    assert shown.isprintable()
    assert not shown or shown.startswith(("-----> ", "=====> ", "       ", " !"))


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_lines_do_not_depend_on_how_the_bytes_came(blocks: list[bytes]) -> None:
    def read(parts: list[bytes]) -> list[str]:
        lines = Lines()
        return [line for part in parts for line in lines.feed(part)] + lines.close()

    assert read(blocks) == read([b"".join(blocks)])


def test_a_line_without_end_is_cut() -> None:
    lines = Lines()
    shown = [line for _ in range(100) for line in lines.feed(b"x" * 1000)]
    assert shown
    assert all(len(line) < MAX_LINE + 20 for line in shown)


def test_a_build_that_prints_too_much_is_cut_once() -> None:
    lines = Lines(max_total=1000)
    shown = [line for _ in range(1000) for line in lines.feed(b"0123456789\n")]
    assert sum(map(len, shown)) < 1200
    assert shown[-1].startswith(" !     The build prints too much")
    assert lines.is_cut
