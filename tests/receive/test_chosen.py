"""Buildpacks that an app or its owner names: several in order, by name, path and URL."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bareku import paths
from bareku.errors import BarekuError
from bareku.receive import build
from bareku.receive.build import Built
from bareku.receive.buildpack import Buildpack, parse_choices, read_text


def make(home: Path, **scripts: str) -> Path:
    for script, text in {"detect": f"echo {home.name}", "compile": "true", **scripts}.items():
        file = home / "bin" / script
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    return home


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "work" / "app"
    folder.mkdir(parents=True)
    (folder / "README").touch()
    return folder


def compiled(tree: Path, found: Buildpack) -> tuple[Built, list[str]]:
    lines: list[str] = []
    built = build.compile(
        tree, found, cache=tree.parent / "c", env={}, revision="5" * 40, output=lines.append
    )
    return built, lines


def test_several_buildpacks_run_in_order_each_with_the_exports_before(
    tmp_path: Path, tree: Path
) -> None:
    packs = [
        make(tmp_path / "one", compile="echo 'export TOOL=one:$TOOL' > export; touch $2/cached",
             release="echo 'default_process_types: {web: one, a: one}'"),
        make(tmp_path / "two", compile="echo $TOOL; ls $2; echo 'export TOOL=two:$TOOL' > export"),
        make(tmp_path / "three", compile="echo $TOOL; ls $1",
             release="echo 'default_process_types: {web: three}'"),
    ]  # fmt: skip
    found = build.detect(tree, chosen=[str(path) for path in packs])
    assert found.display_name == "one and two and three"
    built, lines = compiled(tree, found)
    assert lines == ["       one:", "       cached", "       two:one:", "       README"]
    assert built.process_types == {"web": "three"}


def test_a_named_buildpack_that_does_not_take_the_app_is_told_with_its_reason(
    tmp_path: Path, tree: Path
) -> None:
    pack = make(tmp_path / "picky", detect="echo 'no Foofile here' >&2; exit 1")
    with pytest.raises(BarekuError, match="picky does not take the app: no Foofile here"):
        build.detect(tree, chosen=[str(pack)])


def test_the_apps_buildpacks_file_chooses_ours_by_name(tree: Path) -> None:
    (tree / ".buildpacks").write_text("# which\nheroku/python\n\n")
    (tree / "app.py").touch()
    assert build.detect(tree).path == paths.buildpacks() / "python"


def test_the_digest_of_several_depends_on_each_and_on_the_order(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    digests = {
        build.digest(one),
        build.digest(Buildpack(two, "", before=(one,))),
        build.digest(Buildpack(one, "", before=(two,))),
    }
    (one / "bin" / "compile").write_text("changed")
    digests.add(build.digest(Buildpack(two, "", before=(one,))))
    assert len(digests) == 4


def test_config_vars_that_a_build_heeds_make_another_slug(tmp_path: Path) -> None:
    python = paths.buildpacks() / "python"
    plain = build.digest(python)
    assert build.digest(python, {"GREETING": "hi"}) == plain
    assert build.digest(python, {"DISABLE_COLLECTSTATIC": "1"}) != plain
    foreign = make(tmp_path / "one")
    assert build.digest(foreign, {"GREETING": "hi"}) != build.digest(foreign, {"GREETING": "ho"})


@pytest.mark.slow
def test_buildpack_url_comes_before_the_apps_file_and_may_be_no_path(
    tmp_path: Path, tree: Path
) -> None:
    (tree / ".buildpacks").write_text("node\n")
    (tree / "app.py").touch()
    assert build.detect(tree, wanted="heroku/python").name == "python"
    with pytest.raises(BarekuError, match="neither one of ours nor a URL"):
        build.detect(tree, wanted=str(make(tmp_path / "one")))


@contextlib.contextmanager
def git_daemon(folder: Path) -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    program = (
        Path(subprocess.check_output(["git", "--exec-path"], text=True).strip()) / "git-daemon"
    )
    process = subprocess.Popen(
        [
            str(program),
            "--listen=127.0.0.1",
            f"--port={port}",
            f"--base-path={folder}",
            "--export-all",
        ],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.02)
    try:
        yield f"git://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_buildpack_is_cloned_from_its_url_at_the_ref_that_is_named(
    tmp_path: Path, tree: Path
) -> None:
    home = make(tmp_path / "git" / "heroku-buildpack-x", compile="echo first")
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    for words in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["commit", "-q", "-m", "1"],
        ["tag", "v1"],
    ):
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*"]
        subprocess.run([*git, *words], cwd=home, env=env, check=True)
    make(home, compile="echo second; [ -w . ]")
    subprocess.run([*git, "commit", "-q", "-a", "-m", "2"], cwd=home, env=env, check=True)
    said, digests = [], set()
    with git_daemon(tmp_path / "git") as url:
        for number, ref in enumerate(("", "#v1", "#nothing")):
            app = tmp_path / f"work{number}" / "app"
            app.mkdir(parents=True)
            (app / ".buildpacks").write_text(f"{url}/heroku-buildpack-x{ref}\n")
            if ref == "#nothing":
                with pytest.raises(BarekuError, match="cannot fetch the buildpack git://"):
                    build.detect(app)
                continue
            found = build.detect(app)
            digests.add(build.digest(found))
            said += compiled(app, found)[1]
    assert said == ["       second", "       first"]
    assert len(digests) == 2


@pytest.mark.parametrize(
    "line",
    ["nothing-of-ours", "/etc", "../x", "ssh://git@host/x", "git@host:x", "ext::sh -c id",
     "https://host/x#--upload-pack=id", "--upload-pack=id", "lib"],
)  # fmt: skip
def test_what_is_no_buildpack_is_refused(line: str) -> None:
    with pytest.raises(BarekuError, match="neither one of ours nor a URL"):
        parse_choices([line], is_trusted=False)


def test_a_path_is_taken_from_the_admin_only(tmp_path: Path) -> None:
    pack = make(tmp_path / "mine")
    assert parse_choices([str(pack)], is_trusted=True)[0].path == pack
    with pytest.raises(BarekuError):
        parse_choices([str(pack)], is_trusted=False)


def test_a_misspelt_name_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BarekuError) as caught:
        parse_choices(["pyhton"], is_trusted=False)
    assert caught.value.hint == "did you mean 'python'?"


def test_a_text_file_may_be_a_link_inside_the_app_only(tree: Path) -> None:
    (tree / "deploy").mkdir()
    (tree / "deploy" / "Procfile").write_text("web: x\n")
    (tree / "Procfile").symlink_to("deploy/Procfile")
    assert read_text(tree, "Procfile") == "web: x\n"
    (tree / "other").symlink_to("../secret")
    (tree.parent / "secret").write_text("s")
    with pytest.raises(BarekuError, match="a link out of the app"):
        read_text(tree, "other")
