"""Python apps as people push them, through the whole build, served over HTTP from the slug."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bareku.errors import BarekuError
from bareku.receive import sandbox

pytestmark = pytest.mark.slow

FLASK = 'from flask import Flask\napp = Flask(__name__)\n@app.get("/")\ndef index():\n    return "hello"\n'


def test_a_flask_app_is_built_and_served_and_its_second_build_is_the_same(bench: Any) -> None:
    files = {"app.py": FLASK, "requirements.txt": "flask\ngunicorn\n"}
    first = bench.build(files)
    assert first.built.runtime.startswith("python-3.")
    assert first.built.process_types == {"web": "gunicorn --bind 127.0.0.1:$PORT app:app"}
    with bench.serve(first) as url:
        assert bench.get(url) == "hello"
    second = bench.build(files)
    assert bench.lines[0].startswith("-----> Using the packages of the last build")
    assert second.sha256 == first.sha256
    with bench.serve(second) as url:
        assert bench.get(url) == "hello"


def test_a_slug_holds_bytecode_that_no_start_makes_again(bench: Any) -> None:
    packed = bench.build({"app.py": FLASK, "requirements.txt": "flask\n"})
    place = bench.folder / "place"
    subprocess.run(["unsquashfs", "-quiet", "-d", str(place), str(packed.path)], check=True,
                   capture_output=True)  # fmt: skip
    argv = [str(place / ".venv/bin/python"), "-v", "-c", "import app"]
    env = {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run(argv, env=env, capture_output=True, text=True).stderr
    assert "flask/__pycache__" in said
    compiled = [
        line for line in said.splitlines() if "code object from" in line and ".pyc" not in line
    ]
    assert [line for line in compiled if str(place) in line] == []


SAYS = """\
import http.server, os
import {module}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("{module} " + {module}.__name__).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
APP = {"app.py": SAYS.format(module="itsdangerous"), "Procfile": "web: python app.py\n"}
PROJECT = '[project]\nname = "hello"\nversion = "1"\nrequires-python = ">=3.9"\ndependencies = ["itsdangerous"]\n'
HATCH = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
SETUP = "from setuptools import setup\nsetup(name='hello', install_requires=['itsdangerous'], py_modules=[])\n"
VERSION = "2.2.0"


@pytest.fixture(scope="module")
def hashes() -> list[str]:
    """The hashes of a released package, as the index says them."""
    uv = sandbox.uv_program()
    assert uv
    argv = [str(uv), "pip", "compile", "-q", "--generate-hashes", "-"]
    wanted = f"itsdangerous=={VERSION}"
    done = subprocess.run(argv, input=wanted, capture_output=True, text=True, check=True)
    return re.findall(r"sha256:[0-9a-f]{64}", done.stdout)


def pipfile_lock(hashes: list[str], **more: object) -> str:
    entry = {"version": f"=={VERSION}", "hashes": hashes, "markers": "python_version >= '3.8'"}
    develop = {"no-such-package-of-bareku": {"version": "==1"}}
    return json.dumps({"_meta": more, "default": {"itsdangerous": entry}, "develop": develop})


def poetry_lock(hashes: list[str]) -> str:
    files = ", ".join(f'{{file = "x", hash = "{each}"}}' for each in hashes)
    return f"""
[[package]]
name = "itsdangerous"
version = "{VERSION}"
files = [{files}]
[package.dependencies]
pywin32-of-nobody = {{version = "*", markers = "sys_platform == 'win32'"}}
[[package]]
name = "pywin32-of-nobody"
version = "1"
files = []
[[package]]
name = "pytest-of-nobody"
version = "9"
files = []
"""


POETRY = (
    '[tool.poetry]\nname = "x"\n[tool.poetry.dependencies]\npython = "^3.9"\nitsdangerous = "*"\n'
)


@pytest.mark.parametrize("kind", ["Pipfile.lock", "poetry.lock", "uv.lock"])
def test_a_locked_app_gets_exactly_what_its_lock_holds(
    bench: Any, hashes: list[str], kind: str, tmp_path: Path
) -> None:
    files = dict(APP)
    if kind == "Pipfile.lock":
        files |= {kind: pipfile_lock(hashes), "Pipfile": "[packages]\nitsdangerous = '*'\n"}
    elif kind == "poetry.lock":
        files |= {kind: poetry_lock(hashes), "pyproject.toml": POETRY}
    else:
        (tmp_path / "pyproject.toml").write_text(PROJECT)
        subprocess.run([str(sandbox.uv_program()), "lock", "-q"], cwd=tmp_path, check=True)
        files |= {kind: (tmp_path / kind).read_text(), "pyproject.toml": PROJECT}
    with bench.serve(bench.build(files)) as url:
        assert bench.get(url) == "itsdangerous itsdangerous"
    assert any(VERSION in line for line in bench.lines)
    assert not any("nobody" in line for line in bench.lines)
    assert f"-----> Installing the packages of {kind} with uv." in bench.lines


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"Pipfile.lock": "{"}, "Pipfile.lock is broken"),
        ({"Pipfile.lock": '{"default": {"a": {}}}'}, "a of Pipfile.lock has neither a version"),
        ({"poetry.lock": "[[package", "pyproject.toml": POETRY}, "poetry.lock is broken"),
        ({"poetry.lock": "", "pyproject.toml": POETRY}, "poetry.lock does not hold itsdangerous"),
        ({"requirements.txt": "<<<<<<< HEAD\nflask\n"}, "requirements.txt cannot be read"),
        ({"requirements.txt": "flask==99.99\n"}, "there is no 'flask==99.99' in the package index"),
        ({"uv.lock": 'version = 1\nrequires-python = ">=3.9"\n', "pyproject.toml": PROJECT},
         "uv.lock does not fit pyproject.toml"),
        ({"pyproject.toml": PROJECT.replace(">=3.9", ">=3.99")}, "asks for Python '>=3.99'"),
        ({"requirements.txt": "", "runtime.txt": "python-2.7.18\n"}, "asks for Python '2.7.18'"),
        ({"requirements.txt": "", ".python-version": "# ours\n3.11.99\n"}, "this machine has 3."),
        ({"Pipfile.lock": '{"_meta": {"requires": {"python_version": "3.6"}}, "default": {}}'},
         "asks for Python '3.6'"),
    ],
)  # fmt: skip
def test_what_cannot_be_installed_is_told_in_one_line(
    bench: Any, files: dict[str, str], said: str
) -> None:
    with pytest.raises(BarekuError) as caught:
        bench.build({**APP, **files})
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_package_that_is_not_the_locked_one_is_refused(bench: Any, hashes: list[str]) -> None:
    wrong = ["sha256:" + "0" * 64 for _ in hashes]
    with pytest.raises(BarekuError, match="its hash differs"):
        bench.build({**APP, "Pipfile.lock": pipfile_lock(wrong)})


@pytest.mark.parametrize(
    "files",
    [
        {"Pipfile": "[packages]\nitsdangerous = '>=2'\n"},
        {"pyproject.toml": PROJECT},
        {"pyproject.toml": PROJECT + HATCH, "hello/__init__.py": ""},
        {"setup.py": SETUP},
        {"requirements.txt": "-r base.txt\n", "base.txt": "itsdangerous\n"},
    ],
    ids=["Pipfile", "pyproject", "package", "setup.py", "nested"],
)
def test_an_app_is_installed_from_whatever_names_its_packages(
    bench: Any, files: dict[str, str]
) -> None:
    with bench.serve(bench.build({**APP, **files})) as url:
        assert bench.get(url) == "itsdangerous itsdangerous"


def test_programs_that_pip_installs_start_anywhere(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "uv_program", lambda: None)
    packed = bench.build({"app.py": FLASK, "pyproject.toml": PROJECT.replace(
        '"itsdangerous"', '"flask", "gunicorn"')})  # fmt: skip
    assert "-----> Installing the packages of pyproject.toml with pip." in bench.lines
    with bench.serve(packed) as url:
        assert bench.get(url) == "hello"


def test_an_app_without_any_requirements_has_python_on_its_path(bench: Any) -> None:
    packed = bench.build({"app.py": SAYS.format(module="json"), "Procfile": "web: python app.py\n"})
    with bench.serve(packed) as url:
        assert bench.get(url) == "json json"


def test_a_wheel_that_the_app_brings_along_is_found(bench: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "vendored_thing").mkdir(parents=True)
    (source / "vendored_thing" / "__init__.py").touch()
    text = PROJECT.replace("hello", "vendored-thing").replace('["itsdangerous"]', "[]") + HATCH
    (source / "pyproject.toml").write_text(text)
    subprocess.run([str(sandbox.uv_program()), "build", "-q", "--wheel"], cwd=source, check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    files = {
        "app.py": SAYS.format(module="vendored_thing"),
        "Procfile": "web: python app.py\n",
        "requirements.txt": "vendored-thing\n",
    }
    with bench.serve(
        bench.build(files, binary={f"vendor/{wheel.name}": wheel.read_bytes()})
    ) as url:
        assert bench.get(url) == "vendored_thing vendored_thing"


def test_a_gunicorn_that_needs_setuptools_gets_it(bench: Any) -> None:
    packed = bench.build({"app.py": FLASK, "requirements.txt": "flask\ngunicorn==20.0.4\n"})
    with bench.serve(packed) as url:
        assert bench.get(url) == "hello"


def test_a_fastapi_app_has_a_default_process(bench: Any) -> None:
    app = "from fastapi import FastAPI\napi = FastAPI()\n@api.get('/')\ndef index(): return 'hi'\n"
    packed = bench.build({"main.py": app, "requirements.txt": "fastapi\nuvicorn\n"})
    assert packed.built.process_types == {"web": "uvicorn --host 127.0.0.1 --port $PORT main:api"}
    with bench.serve(packed) as url:
        assert bench.get(url) == '"hi"'


DJANGO = {
    "manage.py": "import os, sys\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site1.settings')\n"
    "from django.core.management import execute_from_command_line as run\nrun(sys.argv)\n",
    "site1/__init__.py": "",
    "site1/settings.py": "import os\nSECRET_KEY = os.environ.get('KEY', 'x')\nROOT_URLCONF = 'site1.urls'\n"
    "ALLOWED_HOSTS = ['*']\nINSTALLED_APPS = ['django.contrib.staticfiles']\nSTATIC_URL = '/s/'\n"
    "STATIC_ROOT = 'collected'\nSTATICFILES_DIRS = ['assets']\n",
    "site1/urls.py": "from django.http import HttpResponse\nfrom django.urls import path\n"
    "urlpatterns = [path('', lambda r: HttpResponse('django'))]\n",
    "site1/wsgi.py": "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site1.settings')\n"
    "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n",
    "assets/logo.txt": "logo\n",
    "requirements.txt": "django\ngunicorn\n",
}


def test_a_django_app_is_served_with_its_static_files_collected(bench: Any) -> None:
    packed = bench.build(DJANGO)
    assert packed.built.process_types == {"web": "gunicorn --bind 127.0.0.1:$PORT site1.wsgi"}
    assert "-----> Collecting static files." in bench.lines
    with bench.serve(packed) as url:
        assert bench.get(url) == "django"
    assert (bench.folder / "place" / packed.uuid / "collected" / "logo.txt").exists()


def test_a_collectstatic_that_fails_fails_the_build_unless_it_is_left_out(bench: Any) -> None:
    files = {**DJANGO, "site1/settings.py": DJANGO["site1/settings.py"] + "1 / 0\n"}
    with pytest.raises(BarekuError, match="set DISABLE_COLLECTSTATIC=1"):
        bench.build(files)
    bench.build(files, env={"DISABLE_COLLECTSTATIC": "1"})


def test_a_build_that_fails_after_its_packages_keeps_them(bench: Any) -> None:
    files = {"app.py": FLASK, "requirements.txt": "flask\n"}
    failing = {**files, "bin/post_compile": "#!/bin/sh\nexit 1\n"}
    with pytest.raises(BarekuError):
        bench.build(failing, executable=["bin/post_compile"])
    bench.build(files)
    assert bench.lines[0].startswith("-----> Using the packages of the last build")


def test_the_apps_own_steps_run_with_its_config_vars(bench: Any) -> None:
    hook = "#!/bin/sh\necho $0 $GREETING >> made\npython -c 'import itsdangerous' && echo found\n"
    files = {**APP, "requirements.txt": "itsdangerous\n", "bin/post_compile": hook}
    packed = bench.build(files, env={"GREETING": "hi"}, executable=["bin/post_compile"])
    assert "       found" in bench.lines
    with bench.serve(packed):
        assert (
            bench.folder / "place" / packed.uuid / "made"
        ).read_text() == "bin/post_compile hi\n"


def test_a_package_that_does_not_exist_is_named(bench: Any) -> None:
    missing = "surely-no-such-package-of-bareku"
    with pytest.raises(BarekuError) as caught:
        bench.build({"app.py": FLASK, "requirements.txt": f"{missing}==1.0\n"})
    assert caught.value.message == (
        "cannot build with the python buildpack: no package called "
        f"'{missing}' was found in the package index; it is named in requirements.txt"
    )
    assert not (bench.folder / "cache" / "venv").exists()


def test_a_python_that_is_not_here_is_told_with_the_choices(bench: Any) -> None:
    with pytest.raises(BarekuError, match=r"asks for Python '3.4'; this machine has 3\.\d+"):
        bench.build({"app.py": FLASK, "requirements.txt": "flask\n", ".python-version": "3.4\n"})
