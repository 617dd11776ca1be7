from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareku.errors import BarekuError
from diprocd import expand
from diprocd.spec import Desired


def desired(apps: dict[str, Any] | None = None, **fields: Any) -> Desired:
    return msgspec.convert(
        {"updates": "ipc://u", "stats": "ipc://s", "apps": apps or {}, **fields}, Desired
    )


def app(**processes: Any) -> dict[str, Any]:
    return {"releases": {"41": {"env": {"A": "release", "B": "release"}, "processes": processes}}}


@given(st.dictionaries(st.sampled_from(["web", "clock", "w2"]), st.integers(0, 30)))
def test_a_formation_becomes_as_many_processes(formation: dict[str, int]) -> None:
    processes = {kind: {"cmd": ["x"], "count": count} for kind, count in formation.items()}
    found = expand.processes(desired({"shop": app(**processes)}))
    assert set(found) == {
        f"shop.v41.{kind}.{index}"
        for kind, count in formation.items()
        for index in range(1, count + 1)
    }
    for id_, (process, _) in found.items():
        assert process.id == id_


def test_a_process_types_variables_win_over_the_releases() -> None:
    found = expand.processes(desired({"shop": app(web={"cmd": ["x"], "env": {"A": "type"}})}))
    assert found["shop.v41.web.1"][0].env == {"A": "type", "B": "release"}


def test_two_releases_of_an_app_run_side_by_side() -> None:
    both = app(web={"cmd": ["x"]})
    both["releases"]["42"] = both["releases"]["41"]
    assert set(expand.processes(desired({"shop": both}))) == {"shop.v41.web.1", "shop.v42.web.1"}


@pytest.mark.parametrize(
    "bad",
    [
        desired({"Shop": app(web={"cmd": ["x"]})}),
        desired({"shop": {"releases": {"x": {"processes": {}}}}}),
        desired({"shop": {"releases": {"1": {"slug": "../x", "processes": {}}}}}),
        desired({"shop": app(**{"we b": {"cmd": ["x"]}})}),
        desired(nodes={"-": {}}),
        desired(frontends=["a/b"]),
        desired(routes=[{"host": "h", "app": "shop", "release": 1, "prefix": "x"}]),
        desired({"shop": app(a={"cmd": ["x"], "count": 10_000}, b={"cmd": ["x"], "count": 10_000},
                             c={"cmd": ["x"]})}),
    ],
    ids=["app", "release", "slug", "type", "node", "frontend", "prefix", "number"],
)  # fmt: skip
def test_what_the_types_cannot_refuse_is_refused(bad: Desired) -> None:
    with pytest.raises(BarekuError):
        expand.check(bad)
