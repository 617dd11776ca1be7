"""Lock files of other tools as requirement lines, without those tools."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType

import pytest

from bareku import paths


@pytest.fixture(scope="module")
def locked() -> ModuleType:
    """The helper of the Python buildpack, which is no package of ours."""
    file = paths.buildpacks() / "python" / "lib" / "locked.py"
    spec = importlib.util.spec_from_file_location("locked", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # nothing beside its files
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def poetry(*packages: tuple[str, str, dict[str, object]]) -> str:
    """A poetry.lock: (name, version, dependencies) each, one hash each."""
    text = ""
    for name, version, dependencies in packages:
        text += f'[[package]]\nname = "{name}"\nversion = "{version}"\n'
        text += f'files = [{{file = "x", hash = "sha256:{name}"}}]\n[package.dependencies]\n'
        for other, wanted in dependencies.items():
            text += f"{other} = {wanted}\n"
    return text


def project(**dependencies: object) -> dict[str, object]:
    return {"tool": {"poetry": {"dependencies": {"python": "^3.9", **dependencies}}}}


def test_only_what_the_app_leads_to_is_installed(locked: ModuleType) -> None:
    text = poetry(("Flask", "3.0", {"click": '">=8"'}), ("click", "8.1", {}), ("pytest", "8.0", {}))
    assert list(locked.from_poetry_lock(text, project(flask="*"))) == [
        "click==8.1 \\\n    --hash=sha256:click",
        "Flask==3.0 \\\n    --hash=sha256:Flask",
    ]


def test_what_only_another_system_needs_keeps_its_marker_down_the_line(locked: ModuleType) -> None:
    windows = "sys_platform == 'win32'"
    text = poetry(
        ("click", "8.1", {"colorama": f'{{version = "*", markers = "{windows}"}}'}),
        ("colorama", "0.4", {"deeper": '"*"'}),
        ("deeper", "1", {}),
    )
    lines = [line.split(" \\")[0] for line in locked.from_poetry_lock(text, project(click="*"))]
    assert lines == ["click==8.1", f"colorama==0.4 ; ({windows})", f"deeper==1 ; ({windows})"]


def test_what_is_needed_anyway_loses_the_marker(locked: ModuleType) -> None:
    text = poetry(
        ("a", "1", {"c": '{version = "*", markers = "x == \'1\'"}'}),
        ("b", "1", {"c": '"*"'}),
        ("c", "1", {}),
    )
    lines = [line.split(" \\")[0] for line in locked.from_poetry_lock(text, project(a="*", b="*"))]
    assert lines == ["a==1", "b==1", "c==1"]


def test_packages_that_need_each_other_end(locked: ModuleType) -> None:
    text = poetry(("a", "1", {"b": '"*"'}), ("b", "1", {"a": '"*"'}))
    assert len(list(locked.from_poetry_lock(text, project(a="*")))) == 2


def test_a_package_of_a_git_repository_keeps_its_commit(locked: ModuleType) -> None:
    text = poetry(("a", "1", {})) + (
        '[package.source]\ntype = "git"\nurl = "https://host/a.git"\nresolved_reference = "abc"\n'
    )
    assert list(locked.from_poetry_lock(text, project(a="*"))) == ["a @ git+https://host/a.git@abc"]


def test_a_pipfile_lock_gives_extras_markers_and_hashes(locked: ModuleType) -> None:
    entry = {
        "version": "==1.2",
        "extras": ["async"],
        "markers": "python_version >= '3.8'",
        "hashes": ["sha256:b", "sha256:a"],
    }
    text = json.dumps(
        {
            "default": {"django": entry, "own": {"git": "https://host/own.git", "ref": "abc"}},
            "develop": {"x": {}},
        }
    )
    assert list(locked.from_pipfile_lock(text)) == [
        "django[async]==1.2 ; python_version >= '3.8' \\\n    --hash=sha256:a \\\n    --hash=sha256:b",
        "own @ git+https://host/own.git@abc",
    ]


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("", True), (">=3.9", True), (">=3.9,<4", True), (">=3.12", False), ("<3.11", False),
        ("^3.9", True), ("^2.7", False), ("^4.0", False), ("~3.11", True), ("~3.10", False),
        ("~=3.9", True), ("~=3.11.0", True), ("~=3.12.0", False), ("3.11.*", True), ("==3.11.*", True),
        ("==3.10.*", False), ("!=3.11.*", False), (">3.11", True), (">3.11.2", False), ("<=3.11", False), ("<=3.12", True), ("==3.11.2", True),
        (">=3.11.3", False), ("surely not a version", True),
    ],
)  # fmt: skip
def test_a_version_range_is_read_as_its_tool_means_it(
    locked: ModuleType, wanted: str, fits: bool
) -> None:
    assert locked.fits((3, 11, 2), wanted) is fits
