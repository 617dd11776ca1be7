from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareku import envfile
from bareku.errors import BarekuError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# note\n\nA=1\n", {"A": "1"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A=1", {"A": "1"}),
        ("export A = b c  \n", {"A": "b c"}),
        ("A=x # y\n", {"A": "x # y"}),
        ("A=$HOME $$\n", {"A": "$HOME $$"}),
        ("A=\n", {"A": ""}),
        ("A=b=c\n", {"A": "b=c"}),
        ('A="x # y" # note\n', {"A": "x # y"}),
        ('A="one\\ntwo"\n', {"A": "one\ntwo"}),
        ('A="one\ntwo"\nB=3\n', {"A": "one\ntwo", "B": "3"}),
        ("A='$x \\n'\n", {"A": "$x \\n"}),
        ('A={"k": 1}\n', {"A": '{"k": 1}'}),
    ],
)
def test_env_file_is_read(text: str, expected: dict[str, str]) -> None:
    assert envfile.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A=1\nB\n", "line 2 is not KEY=value"),
        ("1A=x\n", "line 1 is not KEY=value"),
        ("A=1\n\nA=2\n", "line 3 sets A a second time"),
        ('A="x\n', "line 1 has text after or no closing"),
        ("A='x' y\n", "line 1 has text after or no closing"),
        ("A=x\0y\n", "NUL"),
        ("A=" + "x" * 70_000, "over 65536 bytes"),
        ("<<<<<<< HEAD\n", "line 1 is not KEY=value"),
    ],
)
def test_bad_env_file_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(BarekuError, match=reason):
        envfile.parse(text)


KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
VALUES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=80)


@given(st.dictionaries(KEYS, VALUES))
def test_what_is_rendered_is_read_back(env: dict[str, str]) -> None:
    assert envfile.parse(envfile.render(env)) == env


def test_change_keeps_notes_and_untouched_lines() -> None:
    text = "# the shop\nA='x'\nB=2\n\n# end\n"
    changed = envfile.change(text, {"A": "x", "C": "new\nline"})
    assert changed == "# the shop\nA='x'\n\n# end\nC=\"new\\nline\"\n"


@given(st.dictionaries(KEYS, VALUES), st.dictionaries(KEYS, VALUES))
def test_changed_text_reads_as_the_wanted_content(
    before: dict[str, str], after: dict[str, str]
) -> None:
    assert envfile.parse(envfile.change(envfile.render(before), after)) == after
