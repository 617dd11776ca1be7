"""Changes without a push: environment, formation, restart, rollback; no request is lost."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.platform.rig import Bareku, Repository, Visitor, await_until
from tests.platform.test_first_light import APP, plain

pytestmark = pytest.mark.slow

GREETER = APP.replace('b"%s"', 'os.environ.get("GREETING", "none").encode()')


@pytest.fixture
def greeter(bareku: Bareku, new_repository: Callable[[str], Repository]) -> Repository:
    repository = new_repository("greeter")
    repository.commit({**plain(""), "app.py": GREETER})
    repository.push()
    return repository


def test_changes_reach_the_visitors_and_none_is_lost(bareku: Bareku, greeter: Repository) -> None:
    env = bareku.root.app_env("greeter")
    with Visitor(bareku, "greeter") as visitor:
        done = bareku.run("config:set", "greeter", "GREETING=good day", "OTHER=x y $z")
        assert done.stdout == "Set GREETING, OTHER on greeter; it runs v2.\n"
        assert bareku.get("greeter") == (200, "good day")
        assert bareku.run("config:get", "greeter", "OTHER").stdout == "x y $z\n"
        assert env.read_text().startswith("# Environment of greeter")
        bareku.run("ps:scale", "greeter", "web=2")
        assert len(bareku.processes("greeter")) >= 2
        assert bareku.run("ps:scale", "greeter").stdout == "web=2\n"
        before = {p["pid"] for p in bareku.processes("greeter") if p["release"] == 3}
        bareku.run("ps:restart", "greeter")
        await_until(
            lambda: {p["release"] for p in bareku.processes("greeter")} == {4}, 10, "old ones gone"
        )
        assert not before & {p["pid"] for p in bareku.processes("greeter")}
        bareku.run("config:unset", "greeter", "GREETING")
        assert bareku.get("greeter") == (200, "none")
        bareku.run("releases:rollback", "greeter")
        assert bareku.get("greeter") == (200, "good day")
        bareku.run("releases:rollback", "greeter", "5")
        assert bareku.get("greeter") == (200, "none")
        undo = bareku.run("releases:rollback", "greeter", "v2").stdout
        assert "To undo this: bareku releases:rollback greeter v7" in undo
        assert bareku.get("greeter") == (200, "good day")
    assert visitor.failures == []
    assert json.loads(bareku.run("config", "greeter", "--json").stdout)["GREETING"] == "good day"
    assert bareku.run("ps:scale", "greeter").stdout == "web=1\n"
    listed = json.loads(bareku.run("releases", "greeter", "--json").stdout)
    assert [r["release"] for r in listed] == list(range(1, 9))
    assert [r["is_current"] for r in listed] == [False] * 7 + [True]


def test_bad_environment_is_taken_back_and_the_file_stays(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("picky")
    picky = 'import os\nassert os.environ.get("MODE") != "bad", "no such mode"\n' + APP % "fine"
    repository.commit({**plain(""), "app.py": picky})
    repository.push()
    before = bareku.root.app_env("picky").read_text()
    with Visitor(bareku, "picky") as visitor:
        refused = bareku.run("config:set", "picky", "MODE=bad", check=False)
    assert refused.returncode == 1
    assert "no such mode" in refused.stderr
    assert bareku.root.app_env("picky").read_text() == before
    assert [p["release"] for p in bareku.processes("picky")] == [1]
    assert visitor.failures == []


@pytest.mark.parametrize(
    ("words", "reason", "code"),
    [
        (["config:set", "greeter", "NO_VALUE"], "is not KEY=value", 2),
        (["config:set", "greeter", "1A=x"], "not a variable name", 1),
        (["config:get", "greeter", "NOPE"], "does not set it", 1),
        (["config:unset", "greeter", "NOPE"], "does not set it", 1),
        (["ps:scale", "greeter", "wbe=2"], "no such process type", 1),
        (["ps:scale", "greeter", "web"], "not like web=2", 2),
        (["releases:rollback", "greeter", "v99"], "not among the earlier releases", 1),
        (["config:set", "nobody", "A=1"], "no app has this name", 20),
    ],
)
def test_bad_change_says_why_and_changes_nothing(
    bareku: Bareku, greeter: Repository, words: list[str], reason: str, code: int
) -> None:
    done = bareku.run(*words, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert reason in done.stderr
    assert bareku.run("releases", "greeter", "--json").stdout.count('"release"') == 1


def test_change_before_the_first_push_is_refused(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    new_repository("unborn")
    done = bareku.run("config:set", "unborn", "A=1", check=False)
    assert "nothing was deployed yet" in done.stderr


def test_same_change_over_ssh(bareku: Bareku, greeter: Repository) -> None:
    import subprocess

    host, port = bareku.settings.ssh.split(":")
    done = subprocess.run(
        [
            "ssh", "-F", "none", "-i", str(greeter.key), "-p", port, "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={bareku.root.ssh / 'known_hosts'}", f"git@{host}",
            "config:set greeter 'GREETING=it costs $5'",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout == "Set GREETING on greeter; it runs v2.\n", done.stderr
    assert bareku.get("greeter") == (200, "it costs $5")
    [_, second] = json.loads(bareku.run("releases", "greeter", "--json").stdout)
    assert second["created_by"] == "ada"
