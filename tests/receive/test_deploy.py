"""Ledger, journal and desired state on disk; no daemon runs, so nothing can be waited for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bareku import settings
from bareku.app import AppSettings, Release, formation
from bareku.errors import BarekuError
from bareku.paths import Root
from bareku.receive import change, collect, deploy, desired, journal, ledger, repository
from bareku.receive.journal import Entry, Phase
from bareku.settings import Settings

REF = "refs/heads/master"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    for folder in (root.repositories, root.apps, root.journal, root.run / "diprocd"):
        folder.mkdir(parents=True)
    settings.create(root, Settings())
    repository.create(root.repository("hello"), "master")
    return root


def release(number: int, commit: str = "c" * 40, **changes: Any) -> Release:
    made = Release(
        app="hello",
        number=number,
        slug="2765e91b-50c4-4d04-b92c-f38f82661b2a",
        commit=commit,
        tree="t" * 40,
        env={"A": "1"},
        commands={"web": "serve", "release": "migrate"},
        formation={"web": 2},
        hosts=["hello.localhost"],
        settings=AppSettings(),
        buildpack="Python",
        runtime="python-3.11",
        size_bytes=4096,
        token="t0ken",
        created_at="2026-01-31T12:00:00+00:00",
        created_by="ada",
        reason="Say hello",
    )
    return msgspec.structs.replace(made, **changes)


class Silent:
    def step(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def last_lines(self, process: str) -> list[str]:
        return []


def entry(phase: Phase, number: int, previous: int | None, commit: str = "c" * 40) -> Entry:
    return Entry(
        app="hello", phase=phase, release=number, previous=previous, ref=REF, commit=commit
    )


def published(root: Root) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(root.desired.read_bytes())
    return document


def runs(root: Root) -> list[str]:
    return sorted(published(root)["apps"].get("hello", {"releases": {}})["releases"])


def routed(root: Root) -> list[int]:
    return [route["release"] for route in published(root)["routes"]]


def commit_to(root: Root) -> str:
    """A real commit on the deploy branch."""
    git = ["git", "--git-dir", str(root.repository("hello"))]
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    tree = subprocess.run([*git, "mktree"], input="", capture_output=True, text=True, check=True)
    made = subprocess.run(
        [*git, *who, "commit-tree", "-m", "x", tree.stdout.strip()],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    subprocess.run([*git, "update-ref", REF, made], check=True)
    return made


def test_first_number_is_one_and_numbers_count_up(root: Root) -> None:
    assert ledger.next_number(root, "hello") == 1
    ledger.write(root, release(1))
    ledger.make_current(root, release(1))
    assert (ledger.current_number(root, "hello"), ledger.next_number(root, "hello")) == (1, 2)


def test_manifest_is_read_back_and_only_its_owner_reads_it(root: Root) -> None:
    ledger.write(root, release(1))
    assert ledger.load(root, "hello", 1) == release(1)
    assert (root.releases / "hello" / "1.json").stat().st_mode & 0o777 == 0o600


def test_making_current_twice_writes_one_line(root: Root) -> None:
    for _ in range(2):
        ledger.make_current(root, release(1))
    assert len((root.apps / "hello.versions").read_text().splitlines()) == 1


def test_release_being_prepared_runs_its_command_and_nothing_else(root: Root) -> None:
    for number in (1, 2):
        ledger.write(root, release(number))
    ledger.make_current(root, release(1))
    journal.write(root, entry(Phase.PREPARING, 2, 1))
    desired.publish(root)
    [command] = published(root)["apps"]["hello"]["releases"]["2"]["processes"].values()
    assert command["cmd"][-1] == "migrate"
    assert command["restart"] == "never"
    assert routed(root) == [1]


def test_release_under_check_runs_beside_and_is_not_routed(root: Root) -> None:
    for number in (1, 2):
        ledger.write(root, release(number))
    ledger.make_current(root, release(1))
    journal.write(root, entry(Phase.CHECKING, 2, 1))
    desired.publish(root)
    assert (runs(root), routed(root)) == (["1", "2"], [1])


def test_switched_release_is_routed_while_the_old_one_still_runs(root: Root) -> None:
    for number in (1, 2):
        ledger.write(root, release(number))
    ledger.make_current(root, release(1))
    journal.write(root, entry(Phase.SWITCHED, 2, 1))
    desired.publish(root)
    assert (runs(root), routed(root)) == (["1", "2"], [2])


def test_release_command_is_no_process(root: Root) -> None:
    ledger.write(root, release(1))
    ledger.make_current(root, release(1))
    desired.publish(root)
    assert list(published(root)["apps"]["hello"]["releases"]["1"]["processes"]) == ["web"]


def test_same_state_is_not_written_again(root: Root) -> None:
    desired.publish(root)
    before = root.desired.stat().st_ino
    desired.publish(root)
    assert root.desired.stat().st_ino == before


def test_taken_push_is_made_current_by_settling(root: Root) -> None:
    commit = commit_to(root)
    ledger.write(root, release(1, commit))
    journal.write(root, entry(Phase.SWITCHED, 1, None, commit))
    deploy.settle(root, "hello")
    assert ledger.current_number(root, "hello") == 1
    assert journal.read(root, "hello") is None
    assert (runs(root), routed(root)) == (["1"], [1])


@pytest.mark.parametrize("phase", list(Phase))
def test_push_that_git_did_not_take_is_taken_back_by_settling(root: Root, phase: Phase) -> None:
    ledger.write(root, release(1))
    ledger.make_current(root, release(1))
    ledger.write(root, release(2))
    journal.write(root, entry(phase, 2, 1))
    deploy.settle(root, "hello")
    assert ledger.current_number(root, "hello") == 1
    assert (runs(root), routed(root)) == (["1"], [1])
    assert not (root.releases / "hello" / "2.json").exists()


def test_push_that_died_while_checking_is_taken_back_even_if_git_has_the_commit(root: Root) -> None:
    commit = commit_to(root)
    ledger.write(root, release(1, commit))
    journal.write(root, entry(Phase.CHECKING, 1, None, commit))
    deploy.settle(root, "hello")
    assert ledger.current_number(root, "hello") is None
    assert runs(root) == []


def test_settling_repeats_a_commit_that_was_cut_short(root: Root) -> None:
    commit = commit_to(root)
    ledger.write(root, release(1, commit))
    ledger.make_current(root, release(1, commit))
    journal.write(root, entry(Phase.SWITCHED, 1, None, commit))
    deploy.settle(root, "hello")
    assert ledger.numbers(root, "hello") == [1]
    assert journal.read(root, "hello") is None


def test_deploy_without_a_master_is_refused_and_taken_back(root: Root) -> None:
    with pytest.raises(BarekuError, match="diprocd master is not running"):
        deploy.begin(root, release(1), ref=REF, console=Silent())
    assert journal.read(root, "hello") is None
    assert runs(root) == []
    assert not (root.releases / "hello" / "1.json").exists()


@pytest.mark.parametrize(
    ("types", "set_", "expected"),
    [
        (["web"], {}, {"web": 1}),
        (["web", "worker", "release"], {}, {"web": 1}),
        (["web", "worker"], {"web": 3, "worker": 2}, {"web": 3, "worker": 2}),
        (["web"], {"web": 0}, {"web": 0}),
        (["worker"], {"worker": 1}, {"worker": 1}),
    ],
)
def test_formation(types: list[str], set_: dict[str, int], expected: dict[str, int]) -> None:
    commands = dict.fromkeys(types, "x")
    assert formation("hello", commands, AppSettings(formation=set_)) == expected


def test_app_of_which_nothing_would_run_is_refused() -> None:
    with pytest.raises(BarekuError, match="no `web` process type"):
        formation("hello", {"worker": "x", "release": "y"}, AppSettings())


def test_formation_of_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(BarekuError) as caught:
        formation("hello", {"web": "x", "worker": "y"}, AppSettings(formation={"wrker": 1}))
    assert caught.value.hint == "did you mean 'worker'?"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "formation: {web: 2}\n"),
        ("branch: main  # ours\n", "branch: main  # ours\nformation: {web: 2}\n"),
        ("formation: {web: 1}\nbranch: main\n", "formation: {web: 2}\nbranch: main\n"),
        ("formation:\n  web: 1\n# n\nbranch: x\n", "formation: {web: 2}\n# n\nbranch: x\n"),
        ("a: 1\nformation:\n  web: 1\n", "a: 1\nformation: {web: 2}\n"),
    ],
)
def test_scaling_changes_one_line_of_the_settings(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "hello.yml"
    path.write_text(before)
    assert change.settings_text(path, {"web": 2}).decode() == after


def slug_name(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012d}"


def test_slugs_that_no_kept_release_needs_are_removed(root: Root) -> None:
    root.app_settings("hello").write_text("keep_releases: 2\n")
    root.slugs.mkdir()
    for number in range(1, 5):
        (root.slugs / f"{slug_name(number)}.sqsh").write_bytes(b"x")
        (root.slugs / f"{slug_name(number)}.json").write_bytes(b"{}")
        ledger.write(root, release(number, slug=slug_name(number)))
        ledger.make_current(root, release(number, slug=slug_name(number)))
    ledger.write(root, release(5, slug=slug_name(1)))  # a deploy in flight takes an old one again
    journal.write(root, entry(Phase.CHECKING, 5, 4))
    assert collect.needed(root) == {slug_name(n) for n in (1, 3, 4)}
    assert collect.collect(root) == [slug_name(2)]
    assert not (root.slugs / f"{slug_name(2)}.json").exists()
