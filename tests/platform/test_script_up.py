"""The README's first command, from outside: `script/up --once`, twice."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs() -> list[str]:
    """What two runs print."""
    found = []
    for _ in range(2):
        done = subprocess.run(
            ["script/up", "--once"],
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        found.append(done.stdout)
    return found


def test_it_works_twice_and_proves_the_page(runs: list[str]) -> None:
    for text in runs:
        assert re.search(r"^http://hello\.localhost:\d+/$", text, re.MULTILINE)
        assert "GET / -> 200" in text
        assert "Bareku is down." in text


def test_transcript_in_the_readme_is_what_a_push_prints(runs: list[str]) -> None:
    readme = (TOP / "README.md").read_text()
    shown = readme.split("<!-- transcript -->")[1].split("<!-- /transcript -->")[0]
    shown = shown.strip().removeprefix("```").removesuffix("```").strip()
    assert masked(transcript(shown)) == masked(transcript(runs[0]))


def transcript(text: str) -> list[str]:
    """From the push command to the ref, without what git prints of its own progress."""
    lines = [line.rstrip() for line in text.splitlines()]
    start = lines.index("$ git push bareku master")
    end = next(n for n, line in enumerate(lines) if "master -> master" in line)
    return [line for line in lines[start : end + 1] if not line.startswith(("To ", " * "))]


def masked(lines: list[str]) -> list[str]:
    """Without versions, times, sizes, names and ports."""
    text = "\n".join(lines)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"\+ [a-z0-9-]+==\S+", "+ PACKAGE", text)
    text = re.sub(r"\d+(\.\d+)*(ms|s|KB|MB)\b", "N", text)
    text = re.sub(r"\d+", "N", text)
    return list(dict.fromkeys(text.splitlines()))  # equal lines in a row: packages come and go
