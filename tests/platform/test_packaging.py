"""The wheel, built by way of the sdist and installed in a fresh virtualenv, has everything."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SHIPPED = ("hooks", "buildpacks")


def run(*argv: str | Path, cwd: Path, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in {"BAREKU_SHARE", "PYTHONPATH"}}
    done = subprocess.run(
        [str(a) for a in argv], cwd=cwd, env={**clean, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would give a newcomer: ignored files are not in it."""
    target = tmp_path_factory.mktemp("checkout")
    names = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=TOP).split("\0")
    for name in filter(None, names):
        source = TOP / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target / name) if source.stat().st_dev == target.stat().st_dev else (
                target / name
            ).write_bytes(source.read_bytes())
            (target / name).chmod(source.stat().st_mode)
    return target


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = "import hatchling.build as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    sdist = run(sys.executable, "-c", build, "build_sdist", out, cwd=checkout).split()[-1]
    with tarfile.open(out / sdist) as archive:
        archive.extractall(out / "unpacked")
    [source] = (out / "unpacked").iterdir()
    name = run(sys.executable, "-c", build, "build_wheel", out, cwd=source).split()[-1]
    return out / name


def expected() -> dict[str, bool]:
    """Every file of hooks/ and buildpacks/ in git, and whether it is executable."""
    names = run("git", "ls-files", "-co", "--exclude-standard", *SHIPPED, cwd=TOP).split()
    return {n: bool((TOP / n).stat().st_mode & 0o100) for n in names if (TOP / n).is_file()}


def test_hooks_and_buildpacks_are_in_the_wheel_with_their_modes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {
            info.filename.removeprefix("bareku/share/"): bool(info.external_attr >> 16 & 0o100)
            for info in archive.infolist()
            if info.filename.startswith("bareku/share/")
        }
    assert found == expected()
    assert found["hooks/pre-receive"]
    assert found["buildpacks/python/bin/compile"]


def test_only_our_four_packages_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "appnode", "bareku", "diprocd", "frontend",
    }  # fmt: skip


def test_installed_wheel_finds_hooks_and_buildpacks(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "-q", "--python", sys.executable, venv, cwd=tmp_path)
    run(uv, "pip", "install", "-q", wheel, cwd=tmp_path, VIRTUAL_ENV=str(venv))
    code = (
        "import os\nfrom bareku import paths\n"
        "print(paths.hooks(), os.access(paths.hooks() / 'pre-receive', os.X_OK),"
        " os.access(paths.buildpacks() / 'python' / 'bin' / 'detect', os.X_OK))"
    )
    out = run(venv / "bin/python", "-c", code, cwd=tmp_path)
    assert out.split() == [
        str(next(venv.glob("lib/*/site-packages/bareku/share/hooks"))),
        "True",
        "True",
    ]
    assert run(venv / "bin/bareku", "--version", cwd=tmp_path).startswith("bareku ")
    for program in ("diprocd", "bareku-frontend", "bareku-handler", "bareku-appnode"):
        assert run(venv / "bin" / program, "--help", cwd=tmp_path)
