from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareku import names
from bareku.errors import BarekuError


@pytest.mark.parametrize("name", ["a", "hello", "my-app-2", "a" * 40])
def test_app_name_is_accepted(name: str) -> None:
    assert names.parse_app(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", ".", "..", "Hi", "my app", "a.b", "-x", "x-", "1app", "a\n", "å", "a" * 41],
)
def test_app_name_is_refused(name: str) -> None:
    with pytest.raises(BarekuError, match=r"^cannot use"):
        names.parse_app(name)


def test_refused_name_comes_with_one_that_works() -> None:
    with pytest.raises(BarekuError) as caught:
        names.parse_app("My App")
    assert caught.value.hint == "try 'my-app'"


def test_a_hundred_characters_are_named_in_the_error() -> None:
    with pytest.raises(BarekuError, match="100 characters, at most 40"):
        names.parse_app("a" * 100)


@pytest.mark.parametrize("name", sorted(names.RESERVED_APPS))
def test_reserved_app_name_is_refused(name: str) -> None:
    with pytest.raises(BarekuError, match="reserved"):
        names.parse_app(name)


@given(st.text(max_size=60))
def test_whatever_passes_is_a_dns_label(text: str) -> None:
    try:
        name = names.parse_app(text)
    except BarekuError:
        return
    assert re.fullmatch(r"[a-z0-9-]{1,40}", name)
    assert not name.startswith("-")
    assert not name.endswith("-")


@pytest.mark.parametrize("text", ["../../etc", "2765E91B-50C4-4D04-B92C-F38F82661B2A", "x" * 36])
def test_slug_that_is_no_uuid_is_refused(text: str) -> None:
    with pytest.raises(BarekuError):
        names.parse_slug(text)
