"""Apps of other runtimes and builds by other means, pushed to a running Bareku."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.platform.rig import Bareku, Repository

pytestmark = pytest.mark.slow

SYSTEM = "/usr/local/bin:/usr/bin:/bin"
NODE = (
    "require('http').createServer((q, s) => s.end('node')).listen(process.env.PORT, '127.0.0.1');\n"
)
PROGRAM = (
    '#!/bin/sh\nexec python3 -m http.server --bind 127.0.0.1 --directory "$HOME/site" "$PORT"\n'
)


@pytest.mark.parametrize(
    ("app", "needs", "files", "page"),
    [
        ("site", "", {"index.html": "static"}, "static"),
        ("nodeapp", "npm", {"package.json": '{"scripts": {"start": "node x.js"}}', "x.js": NODE}, "node"),
        ("phpapp", "php", {"index.php": "<?php echo 'p', 'hp';"}, "php"),
        ("own", "", {"bin/serve": PROGRAM, "Procfile": "web: sh bin/serve\n", "site/index.html": "own"}, "own"),
    ],
)  # fmt: skip
def test_an_app_of_any_runtime_goes_live(
    bareku: Bareku,
    new_repository: Callable[[str], Repository],
    app: str,
    needs: str,
    files: dict[str, str],
    page: str,
) -> None:
    if needs and shutil.which(needs, path=SYSTEM) is None:
        pytest.skip(f"needs the program {needs}")
    repository = new_repository(app)
    repository.commit(files)
    said = repository.push()
    assert bareku.get(app) == (200, page), said


def test_two_buildpacks_of_the_apps_own_choice_build_one_app(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("both")
    repository.commit(
        {
            ".buildpacks": "procfile\npython\n",
            "Procfile": "web: sh bin/serve\n",
            "bin/serve": 'exec python -m http.server --directory "$HOME/site" "$PORT"\n',
            "app.py": "",
            "site/index.html": "both",
        }
    )
    said = repository.push()
    assert "Procfile and Python project detected." in said
    assert bareku.get("both") == (200, "both"), said


def test_a_changed_line_ships_what_differs_and_a_revert_ships_nothing(
    bareku: Bareku, new_repository: Callable[[str], Repository]
) -> None:
    repository = new_repository("lean")
    app = "from flask import Flask\napp = Flask(__name__)\n@app.get('/')\ndef page(): return '%s'\n"
    repository.commit({"app.py": app % "one", "requirements.txt": "flask\ngunicorn\n"})
    first = repository.push()
    assert "Installing the packages of requirements.txt" in first
    repository.commit({"app.py": app % "two"})
    second = repository.push()
    assert "Using the packages of the last build" in second
    assert bareku.get("lean") == (200, "two")
    repository.git("revert", "--no-edit", "HEAD")
    third = repository.push()
    assert "Taking the slug file that was built from the same tree before." in third
    assert bareku.get("lean") == (200, "one")
