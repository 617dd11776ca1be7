"""What a verb is: its one-line help, its arguments, what it does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bareku import settings as settings_file
from bareku.paths import Root


@dataclass(frozen=True, slots=True)
class Context:
    """Where a verb works and for whom."""

    root: Root
    user: str

    def settings(self) -> settings_file.Settings:
        """The settings of this Bareku. Raises BarekuError when there is none."""
        return settings_file.load(self.root)


@dataclass(frozen=True, slots=True)
class Command:
    """One verb of the command line."""

    help: str
    run: Callable[[Context, argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    example: str = ""


def print_json(document: object) -> None:
    """One document to stdout."""
    json.dump(document, sys.stdout, indent=1)
    print()


def print_table(rows: Sequence[Sequence[object]]) -> None:
    """Columns with two blanks between them, one record a line."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)] if texts else []
    for row in texts:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that every listing has."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_app(parser: argparse.ArgumentParser) -> None:
    """The app that the verb is about."""
    parser.add_argument("app", metavar="APP", help="the app")
