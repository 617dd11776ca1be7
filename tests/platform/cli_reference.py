"""Renders docs/reference/cli.md: `python -m tests.platform.cli_reference > docs/reference/cli.md`."""

from __future__ import annotations

import os

from bareku.cli.main import VERBS, find, make_parser


def render() -> str:
    """The page, from the verbs' own help."""
    os.environ["COLUMNS"] = "100"  # argparse wraps at the terminal's width
    parts = [
        "# Command line",
        "",
        "The same verbs work on the machine, `bareku VERB`, and from anywhere over SSH,",
        "`ssh -p 2222 git@HOST VERB` (not `up` and `down`). `--root DIR` names Bareku's folder. `--json` prints one",
        "document. [Exit codes](exit-codes.md).",
    ]
    for verb in VERBS:
        text = make_parser(verb, find(verb)).format_help().rstrip()
        parts += ["", f"## {verb}", "```", text, "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(render(), end="")
