from __future__ import annotations

from typing import Any

from bareku.app import AppSettings, Release
from bareku.receive import observe
from bareku.receive.observe import Broken

RELEASE = Release(
    app="hello",
    number=2,
    slug="2765e91b-50c4-4d04-b92c-f38f82661b2a",
    commit="c" * 40,
    tree="t" * 40,
    env={},
    commands={"web": "x", "worker": "y"},
    formation={"web": 2, "worker": 1},
    hosts=["hello.localhost"],
    settings=AppSettings(),
    buildpack="python",
    runtime="",
    size_bytes=1,
    token="",
    created_at="",
    created_by="",
    reason="",
)


def process(name: str, **changes: Any) -> dict[str, Any]:
    kind, index = name.split(".")
    return {
        "id": f"hello.v2.{kind}.{index}",
        "app": "hello",
        "release": 2,
        "node": "node1",
        "state": "running",
        "ready": True,
        "fails": 0,
        **changes,
    }


def frontend(handlers: int, state: str = "up", have: int = 7, version: int = 7) -> dict[str, Any]:
    return {
        "state": state,
        "have": have,
        "version": version,
        "handlers": {"hello": {"2": handlers}},
    }


def status(*processes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"processes": list(processes), "frontends": {"f": frontend(2)}, **more}


ALL = (process("web.1"), process("web.2"), process("worker.1"))


def test_ready_when_every_process_is_and_every_frontend_reaches_them() -> None:
    assert observe.verdict(status(*ALL), RELEASE) is True


def test_not_ready_while_one_process_is_missing() -> None:
    assert observe.verdict(status(*ALL[:2]), RELEASE) is False


def test_not_ready_while_one_process_starts() -> None:
    starting = process("web.2", state="starting", ready=False)
    assert observe.verdict(status(ALL[0], starting, ALL[2]), RELEASE) is False


def test_not_ready_while_a_live_frontend_misses_a_handler() -> None:
    assert observe.verdict(status(*ALL, frontends={"f": frontend(1)}), RELEASE) is False


def test_lost_frontend_is_not_waited_for() -> None:
    lost = {"f": frontend(2), "g": frontend(0, state="lost")}
    assert observe.verdict(status(*ALL, frontends=lost), RELEASE) is True


def test_crashed_process_breaks_the_release() -> None:
    last = {"code": 3, "signal": None, "known": True, "oom": False}
    crashed = process("web.2", state="backoff", ready=False, fails=1, exit=last)
    found = observe.verdict(status(ALL[0], crashed, ALL[2]), RELEASE)
    assert found == Broken("web.2", "node1", "exited with code 3")


def test_process_without_a_place_breaks_the_release() -> None:
    unplaced = [{"id": "hello.v2.web.1", "reason": "no node has 4 GiB left"}]
    found = observe.verdict(status(unplaced=unplaced), RELEASE)
    assert found == Broken("web.1", "no node", "no node has 4 GiB left")


def test_crash_of_another_release_is_not_this_ones() -> None:
    other = {**process("web.1"), "id": "hello.v1.web.1", "release": 1, "fails": 3}
    assert observe.verdict(status(*ALL, other), RELEASE) is True


def test_switched_when_the_master_and_every_live_frontend_have_it() -> None:
    good = {"desired_sha256": "ab", "frontends": {"f": frontend(2)}}
    late = {"desired_sha256": "ab", "frontends": {"f": frontend(2, have=6)}}
    assert observe.is_switched(good, "ab")
    assert not observe.is_switched(good, "cd")
    assert not observe.is_switched(late, "ab")


def test_gone_when_no_process_of_the_release_is_left() -> None:
    assert not observe.is_gone(status(*ALL), "hello", 2)
    assert observe.is_gone(status(*ALL), "hello", 1)
