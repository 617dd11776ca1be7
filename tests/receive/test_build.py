"""Buildpacks of the public contract, written for these tests, run confined."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from bareku import paths
from bareku.errors import BarekuError
from bareku.receive import build, contract, group, sandbox
from bareku.receive.build import Built, Limits
from bareku.receive.sandbox import Kind

KINDS = [
    kind if kind is sandbox.available() else pytest.param(kind, marks=pytest.mark.slow)
    for kind in Kind
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """Each way of confining a build that this machine has."""
    wanted: Kind = request.param
    if wanted is Kind.ROOT and sandbox.available() is not Kind.ROOT:
        pytest.skip("needs root and mount namespaces")
    if wanted is Kind.USER and not sandbox.is_possible(Kind.USER):
        pytest.skip("needs user namespaces")
    monkeypatch.setattr(sandbox, "available", lambda: wanted)
    return wanted


class Site:
    """A place to build in: an app's tree, a cache, buildpacks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.packs: list[Path] = []
        self.lines: list[str] = []
        self._count = 0
        self.tree = Path()
        self.new()

    def new(self, files: Mapping[str, str] | None = None) -> Path:
        self._count += 1
        self.tree = self.folder / f"work{self._count}" / "app"
        for name, text in (files or {"README": ""}).items():
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / name).write_text(text)
        return self.tree

    def pack(self, name: str, **scripts: str) -> Path:
        """A buildpack with these scripts; `detect` says yes unless it is given."""
        home = self.folder / "packs" / name
        scripts.setdefault("detect", f"echo {name}")
        scripts.setdefault("compile", "true")
        for script, text in scripts.items():
            file = home / "bin" / script
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("#!/usr/bin/env bash\n" + textwrap.dedent(text) + "\n")
            file.chmod(0o755)
        self.packs.append(home)
        return home

    def build(self, env: Mapping[str, str] | None = None, limits: Limits | None = None) -> Built:
        found = build.detect(self.tree, self.packs)
        return build.compile(
            self.tree, found, cache=self.cache, env=env or {}, revision="5" * 40,
            output=self.lines.append, limits=limits,
        )  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_first_buildpack_that_says_yes_takes_the_app(kind: Kind, site: Site) -> None:
    site.pack("no", detect="exit 1")
    site.pack("broken", detect="kill -9 $$")
    site.pack("yes", detect="echo Yes; echo more; echo noise >&2")
    site.pack("late")
    found = build.detect(site.tree, site.packs)
    assert (found.name, found.display_name, found.also) == ("yes", "Yes", ("late",))


def test_an_app_that_no_buildpack_knows_is_told_what_was_looked_for(site: Site) -> None:
    site.new({"requirement.txt": "flask\n", "src/x.c": ""})
    site.pack("no", detect="exit 1")
    with pytest.raises(BarekuError) as caught:
        build.detect(site.tree, site.packs)
    assert "requirement.txt, src/" in caught.value.message
    assert "is 'requirement.txt' meant to be 'requirements.txt'?" in caught.value.hint
    assert "package.json" in caught.value.hint


def test_compile_gets_the_contracts_arguments_and_nothing_of_ours(
    kind: Kind, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", ".")
    monkeypatch.setenv("AWS_SECRET", "s")
    monkeypatch.setenv("BAREKU_ROOT", "/x")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example.org/simple")
    site.pack(
        "p",
        compile="""
        env | sort > $1/environment
        cat > $1/stdin
        pwd > $1/cwd
        echo "$HOME $STACK $SOURCE_VERSION" > $1/facts
        cat $3/GREETING > $1/greeting; ls $3 > $1/vars
        [ -d $2 ] && [ -w $2 ] && [ -w . ] && touch export
        """,
    )
    site.build({"GREETING": "two\nlines ", "EMPTY": "", "bad-name": "x"})
    tree = site.tree
    text = (tree / "environment").read_text()
    names = {line.partition("=")[0] for line in text.splitlines()}
    assert not {n for n in names if n.startswith(("GIT_", "AWS", "BAREKU", "GREETING"))}
    assert "PIP_INDEX_URL=https://mirror.example.org/simple\n" in text
    home = "/app" if kind is not Kind.NONE else str(tree)
    assert (tree / "facts").read_text() == f"{home} heroku-22 {'5' * 40}\n"
    assert (tree / "stdin").read_text() == ""
    assert (tree / "greeting").read_text() == "two\nlines "
    assert (tree / "vars").read_text() == "EMPTY\nGREETING\n"
    assert (tree / "cwd").read_text().endswith("/buildpacks/p\n")
    assert not (tree.parent / "env").exists(), "the config vars stay on disk"


def test_process_types_of_release_and_procfile_are_joined(kind: Kind, site: Site) -> None:
    site.new({"Procfile": "web: mine\nclock: tick\n"})
    site.pack(
        "p",
        release="""
        [ "$#" = 1 ] && [ -f $1/Procfile ]
        echo "---"
        echo "addons: []"
        echo "config_vars: {A: 1, B: x}"
        echo "default_process_types: {web: theirs, worker: work}"
        """,
    )
    built = site.build()
    assert built.process_types == {"web": "mine", "worker": "work", "clock": "tick"}
    assert built.config_vars == {"A": "1", "B": "x"}
    assert (built.display_name, built.runtime, built.isolation) == ("p", "", str(kind))


@pytest.mark.parametrize("text", ["", "--- {}\n", "---\n", "---\nconfig_vars:\n"])
def test_a_release_that_says_nothing_is_fine(text: str) -> None:
    assert contract.parse_release(text) == ({}, {})


@pytest.mark.parametrize(
    "text",
    ["- a\n", "default_process_types: x\n", "default_process_types: {web: [a]}\n", "a: [\n",
     "x: !!python/object/apply:os.system [id]\n", "default_process_types: {we/b: x}\n",
     "a: " + "x" * 70_000],
)  # fmt: skip
def test_a_release_that_is_not_the_contracts_is_refused(text: str) -> None:
    with pytest.raises(BarekuError, match=r"^cannot "):
        contract.parse_release(text)


@pytest.mark.slow
def test_output_comes_line_by_line_while_the_build_runs(kind: Kind, site: Site) -> None:
    site.pack("p", compile="echo '-----> One'; echo two >&2; sleep 1; printf 'end'")
    times: list[tuple[str, float]] = []
    found = build.detect(site.tree, site.packs)
    build.compile(
        site.tree, found, cache=site.cache, env={}, revision="5" * 40,
        output=lambda line: times.append((line, time.monotonic())),
    )  # fmt: skip
    assert [line for line, _ in times] == ["-----> One", "       two", "       end"]
    assert times[2][1] - times[0][1] > 0.8


def test_a_failed_build_is_refused_with_the_buildpacks_own_reason(kind: Kind, site: Site) -> None:
    site.pack("p", compile="echo ' !     no package called x'; echo after; exit 3")
    with pytest.raises(BarekuError, match="p buildpack: no package called x"):
        site.build()
    site.packs.clear()
    site.new()
    site.pack("q", compile="exit 3")
    with pytest.raises(BarekuError, match="ended with exit code 3"):
        site.build()


@pytest.mark.slow
def test_a_failed_release_script_fails_the_build(kind: Kind, site: Site) -> None:
    site.pack("p", release="echo why >&2; exit 2")
    with pytest.raises(BarekuError, match="bin/release ended with exit code 2: why"):
        site.build()


@pytest.mark.slow
def test_the_cache_changes_only_when_a_build_succeeds(kind: Kind, site: Site) -> None:
    site.pack(
        "p", compile="cat $2/n 2>/dev/null; rm -f $2/n; cat $1/next > $2/n; exit $(cat $1/rc)"
    )
    for following, code in (("1", "0"), ("2", "1"), ("3", "0")):
        site.new({"next": following, "rc": code})
        if code == "1":
            with pytest.raises(BarekuError):
                site.build()
        else:
            site.build()
    assert site.lines == ["       1", "       1"]
    assert (site.cache / "n").read_text() == "3"


@pytest.mark.slow
def test_a_cache_that_is_whole_at_every_moment_survives_a_failed_build(
    kind: Kind, site: Site
) -> None:
    home = site.pack("p", compile="ls $2; touch $2/$(cat $1/next); exit $(cat $1/rc)")
    (home / "cache-is-atomic").touch()
    for following, code in (("1", "0"), ("2", "1"), ("3", "0")):
        site.new({"next": following, "rc": code})
        with contextlib.suppress(BarekuError):
            site.build()
    assert site.lines == ["       1", "       1", "       2"]
    assert sorted(path.name for path in site.cache.iterdir()) == ["1", "2", "3"]


@pytest.mark.slow
def test_what_a_build_lends_the_tree_goes_back_into_the_cache(kind: Kind, site: Site) -> None:
    script = r"""
        [ ! -d $2/kept/it ] || { mv $2/kept/it $1/lent; cat $1/lent/x; }
        mkdir -p $1/lent && echo whole > $1/lent/x && printf 'lent\tkept/it\n' > $2/.keep
    """
    (site.pack("p", compile=script) / "cache-is-atomic").touch()
    for _ in range(2):
        site.new()
        site.build()
        assert (site.tree / "lent" / "x").exists()
        build.keep(site.tree, site.cache)
        assert not (site.tree / "lent").exists()
    assert site.lines == ["       whole"]


@pytest.mark.parametrize(
    "note",
    [
        "../../secret\tkept",
        "link\tkept",
        "lent\t../../stolen",
        "lent\tout/stolen",
        "lent",
        "\t",
        "lent\t/etc/x",
    ],
)
def test_nothing_outside_is_moved_into_or_out_of_the_cache(site: Site, note: str) -> None:
    site.cache.mkdir()
    secret = site.folder / "secret"
    secret.mkdir()
    (site.tree / "link").symlink_to(secret)
    (site.tree / "lent").mkdir()
    (site.cache / "out").symlink_to(site.folder)
    (site.cache / ".keep").write_text(note + "\n")
    before = sorted(path.name for path in site.folder.iterdir())
    build.keep(site.tree, site.cache)
    assert sorted(path.name for path in site.folder.iterdir()) == before
    assert sorted(path.name for path in site.cache.iterdir()) == ["out"]
    assert secret.is_dir()


def test_a_build_cannot_write_outside_nor_see_other_builds(site: Site, kind: Kind) -> None:
    if kind is Kind.NONE:
        pytest.skip("without namespaces only the user's own rights hold it")
    secret = site.folder / "secret"
    secret.write_text("deploy key")
    site.pack(
        "p",
        compile=f"""
        echo "$(id -u) $(cat {secret} 2>&1)" > $1/out
        for place in / /usr /etc /opt /proc/sys/kernel /bareku /bareku/bin/uv /dev; do
            touch $place/x 2>/dev/null && echo wrote $place >> $1/out
        done
        echo >> /etc/passwd 2>/dev/null && echo wrote passwd >> $1/out
        ls /root /home /var/lib 2>/dev/null >> $1/out
        true
        """,
    )
    site.build()
    out = (site.tree / "out").read_text().splitlines()
    assert out[0].startswith("32767 cat: ")
    own = {"wrote /", "wrote /bareku", "wrote /dev"} if kind is Kind.USER else set()
    assert set(out[1:]) <= own


@pytest.mark.root
def test_our_root_below_opt_is_hidden_from_builds(site: Site) -> None:
    if sandbox.available() is not Kind.ROOT:
        pytest.skip("needs root to write below /opt")
    with tempfile.TemporaryDirectory(dir="/opt", prefix="bareku-") as root:
        (Path(root) / "secret").write_text("deploy key")
        site.tree = Path(root) / "scratch" / "hello" / "app"
        site.tree.mkdir(parents=True)
        Path(root).chmod(0o755)
        site.pack("p", compile=f"cat {root}/secret; ls -A {root}; ls /opt | grep -c bareku-; true")
        site.build()
    assert not any("deploy key" in line or "scratch" in line for line in site.lines)
    assert site.lines[-1].strip() == "1"  # the folder is there, and closed


@pytest.mark.slow
def test_the_buildpack_of_a_build_is_its_own_copy(kind: Kind, site: Site) -> None:
    home = site.pack("p", compile="echo x > bin/compile; echo y > export")
    before = (home / "bin" / "compile").read_text()
    site.build()
    assert (home / "bin" / "compile").read_text() == before
    assert not (home / "export").exists()


@pytest.mark.parametrize("content", [b"web: \xff\n", b"web: a\n" * 20_000, None])
def test_a_procfile_that_is_none_is_refused(kind: Kind, site: Site, content: bytes | None) -> None:
    if content is None:
        (site.tree / "Procfile").mkdir()
    else:
        (site.tree / "Procfile").write_bytes(content)
    with pytest.raises(BarekuError, match="cannot read Procfile"):
        build.read_procfile(site.tree)


@pytest.mark.parametrize("made", ["ln -s /etc/passwd $1/Procfile", "mkfifo $1/Procfile"])
@pytest.mark.slow
def test_a_procfile_that_the_build_makes_a_trap_is_refused(
    kind: Kind, site: Site, made: str
) -> None:
    site.pack("p", compile=made)
    with pytest.raises(BarekuError, match="cannot read Procfile"):
        site.build()


@pytest.mark.slow
def test_a_build_that_hangs_is_ended_with_all_that_it_started(kind: Kind, site: Site) -> None:
    mark = f"31.{os.getpid()}"
    site.pack("p", compile=f"(setsid sleep {mark} &) ; sleep {mark} & echo started; wait; sleep 60")
    started = time.monotonic()
    with pytest.raises(BarekuError, match="it took longer than 1 s"):
        site.build(limits=Limits(timeout_s=1))
    assert time.monotonic() - started < 5
    assert site.lines == ["       started"]
    assert not running(mark)


@pytest.mark.slow
def test_daemons_of_a_build_end_with_it(kind: Kind, site: Site) -> None:
    mark = f"32.{os.getpid()}"
    site.pack("p", compile=f"setsid sleep {mark} & disown; (nohup sleep {mark} >/dev/null &)")
    started = time.monotonic()
    site.build()
    assert time.monotonic() - started < 5
    assert not running(mark)


def running(mark: str) -> list[str]:
    """Command lines of the sleeps that carry the mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"sleep" and mark.encode() in words:
            found.append(str(entry))
    return found


@pytest.mark.slow
def test_a_build_that_fills_the_disk_is_ended(kind: Kind, site: Site) -> None:
    site.pack("p", compile="for n in $(seq 400); do head -c 4M /dev/zero > $1/$n; done; sleep 30")
    with pytest.raises(BarekuError, match="it wrote more than 64 MiB"):
        site.build(limits=Limits(disk_bytes=64 * 2**20))


@pytest.mark.slow
def test_a_build_that_forks_for_ever_harms_nobody(kind: Kind, site: Site) -> None:
    if kind is Kind.NONE:
        pytest.skip("without namespaces the limit is that of the whole user")
    mark = f"33.{os.getpid()}"
    quotas = sandbox.Quotas(processes=64)
    site.pack(
        "p", compile=f"bomb() {{ sleep {mark} & bomb & bomb & wait; }}; bomb 2>/dev/null; sleep 30"
    )
    with pytest.raises(BarekuError):
        site.build(limits=Limits(timeout_s=3, quotas=quotas))
    assert not running(mark)


@pytest.mark.root
@pytest.mark.slow
def test_a_build_that_eats_memory_is_ended_with_the_reason(site: Site) -> None:
    with group.around_a_build(2**30, 100) as around:
        if not any("memory" in str(folder) for folder in around.folders):
            pytest.skip("this machine lets us make no memory group")
    # many processes, each below the limit of one
    eater = "python3 -c 'x = bytearray(40 << 20); import time; time.sleep(20)' &"
    site.pack("p", compile=f"for n in 1 2 3 4 5 6; do {eater} done; wait -n; exit $?")
    with pytest.raises(BarekuError, match="it needs more than 100 MiB of memory"):
        site.build(limits=Limits(memory_bytes=100 * 2**20, timeout_s=30))
    assert not any(folder.exists() for folder in around.folders)


@pytest.mark.slow
def test_a_build_that_prints_without_end_is_cut_short(kind: Kind, site: Site) -> None:
    site.pack("p", compile="head -c 300M /dev/zero | tr '\\0' x; yes | head -c 300M; echo last")
    site.build()
    assert sum(map(len, site.lines)) < 5 * 2**20
    assert "prints too much" in site.lines[-1]


def test_a_file_larger_than_the_quota_cannot_be_written(kind: Kind, site: Site) -> None:
    site.pack("p", compile="head -c 3M /dev/zero > $1/big")
    quotas = sandbox.Quotas(file_bytes=2**20)
    with pytest.raises(BarekuError, match="cannot build"):
        site.build(limits=Limits(quotas=quotas))
    assert (site.tree / "big").stat().st_size == 2**20


def test_our_buildpacks_are_whole() -> None:
    folders = {p.name for p in paths.buildpacks().iterdir() if p.is_dir() and p.name != "lib"}
    assert {p.name for p in build.ours()} == folders
    for home in build.ours():
        for script in ("detect", "compile", "release"):
            assert stat.S_IMODE((home / "bin" / script).stat().st_mode) & 0o111, f"{home} {script}"


def test_a_buildpacks_digest_changes_with_its_files_and_library(tmp_path: Path) -> None:
    shutil.copytree(paths.buildpacks(), tmp_path / "b")
    before = build.digest(tmp_path / "b" / "python")
    assert before == build.digest(paths.buildpacks() / "python")
    (tmp_path / "b" / "python" / "lib" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "b" / "python" / "lib" / "__pycache__" / "x.pyc").write_text("made by a test")
    assert build.digest(tmp_path / "b" / "python") == before
    with (tmp_path / "b" / "lib" / "output.sh").open("a") as file:
        file.write("# more\n")
    assert build.digest(tmp_path / "b" / "python") != before


def test_a_cache_that_has_grown_too_large_loses_its_downloads(tmp_path: Path) -> None:
    for name in ("uv", "venv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(os.urandom(2 * 2**20))
    library = paths.buildpacks() / "lib" / "cache.sh"
    for most, left in ((100, ["uv", "venv"]), (3, ["venv"])):
        script = f'set -eu; . {library}; bound_cache "$0" {most} uv pip'
        subprocess.run(["bash", "-c", script, str(tmp_path)], check=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_shellcheck_is_content_with_the_libraries() -> None:
    files = [str(path) for path in paths.buildpacks().rglob("*.sh")]
    assert subprocess.run(["shellcheck", *files], capture_output=True).returncode == 0
