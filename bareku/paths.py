"""Where things are: the parts we ship, and the folders of one Bareku root."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def share() -> Path:
    """The folder that holds `hooks/` and `buildpacks/`: the checkout's, else the wheel's."""
    if override := os.environ.get("BAREKU_SHARE"):
        return Path(override)
    package = Path(__file__).resolve().parent
    if (package.parent / "pyproject.toml").is_file():
        return package.parent
    return package / "share"


def hooks() -> Path:
    """The git hooks, used through core.hooksPath."""
    return share() / "hooks"


def buildpacks() -> Path:
    """Our buildpacks, one folder each."""
    return share() / "buildpacks"


def default_root() -> Path:
    """`$BAREKU_ROOT`, else /var/lib/bareku for root, else a folder in the home."""
    if chosen := os.environ.get("BAREKU_ROOT"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/bareku")
    return Path.home() / ".local" / "share" / "bareku"


@dataclass(frozen=True, slots=True)
class Root:
    """The folders and files under one root; `path` is absolute."""

    path: Path

    # the repository node
    @property
    def settings(self) -> Path:
        return self.path / "bareku.yml"

    @property
    def repositories(self) -> Path:
        return self.path / "repositories"

    @property
    def apps(self) -> Path:
        return self.path / "apps"

    @property
    def releases(self) -> Path:
        return self.path / "releases"

    @property
    def slugs(self) -> Path:
        return self.path / "slugs"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def builds(self) -> Path:
        return self.path / "builds"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def nodes(self) -> Path:
        return self.path / "nodes.yml"

    @property
    def desired(self) -> Path:
        return self.path / "diprocd-master.json"

    @property
    def ssh(self) -> Path:
        return self.path / "ssh"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def logs(self) -> Path:
        return self.path / "log"

    # the app node and the frontend of the one-machine shape
    @property
    def node(self) -> Path:
        return self.path / "node"

    @property
    def frontend(self) -> Path:
        return self.path / "frontend"

    def repository(self, app: str) -> Path:
        return self.repositories / f"{app}.git"

    def app_settings(self, app: str) -> Path:
        return self.apps / f"{app}.yml"

    def app_env(self, app: str) -> Path:
        return self.apps / f"{app}.env"

    def slug(self, uuid: str) -> Path:
        return self.slugs / f"{uuid}.sqsh"
