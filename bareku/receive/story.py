"""A push told from its tree to the live release: the steps in order, each a call."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from bareku import app as apps
from bareku import settings as settings_file
from bareku.app import AppSettings, Release
from bareku.errors import BarekuError
from bareku.paths import Root
from bareku.receive import (
    build,
    buildpack,
    checkout,
    collect,
    deploy,
    ledger,
    nodes,
    repository,
    ship,
    slug,
)
from bareku.receive.checkout import Tree
from bareku.receive.failpoint import reached
from bareku.receive.push import ZERO, Update
from bareku.receive.slug import Slug
from bareku.receive.transcript import Transcript


def tell(root: Root, app: str, update: Update, transcript: Transcript, *, user: str) -> None:
    """Deploy `update`. Call it from pre-receive with the app's lock held.

    Raises BarekuError after taking everything back; git then refuses the push.
    """
    deploy.settle(root, app)
    deploy.require_master(root)
    _check_ref(root, app, update)
    started_at = datetime.now(UTC)
    transcript.keep(root.builds / app / f"{started_at:%Y%m%d-%H%M%S}-{update.new[:8]}.log")
    settings = settings_file.load(root)
    options = apps.load_settings(root, app)
    env = apps.load_env(root, app)
    with nodes.connecting(root, settings) as opening, _scratch(root, app) as tree:
        exported = checkout.export(root.repository(app), update.new, tree, os.environ)
        reached("exported")
        made = _slug(root, app, tree, exported, options, env, update.new, transcript)
        release = Release(
            app=app,
            number=ledger.next_number(root, app),
            slug=made.uuid,
            commit=update.new,
            tree=exported.sha,
            env={**made.built.config_vars, **env},
            commands=dict(made.built.process_types),
            formation=apps.formation(app, made.built.process_types, options),
            hosts=[f"{app}.{settings.domain}", *options.domains],
            settings=options,
            buildpack=made.built.display_name,
            runtime=made.built.runtime,
            size_bytes=made.size_bytes,
            token=secrets.token_hex(16),
            created_at=started_at.isoformat(timespec="seconds"),
            created_by=user,
            reason=repository.subject(os.environ, root.repository(app), update.new),
        )
        reached("built")
        connections = opening.result()
        before = ledger.current(root, app)
        base = slug.find(root.slugs, before.slug) if before else None
        nodes.deliver(connections, made, transcript, base=base)
        reached("shipped")
        transcript.step("Set application runtime configuration.")
        console = nodes.Console(transcript, connections, release)
        deploy.begin(root, release, ref=update.ref, console=console)
        with deploy.taken_back_on_error(root, app):
            nodes.define(connections, app, made.uuid)
            reached("defined")
            kept = collect.needed(root)
            for connection in connections:
                ship.run(connection, ["collect", *sorted(kept)])
            collect.collect(root)
    transcript.fact(f"Application version: {release.number}")
    for kind, count in sorted(release.formation.items(), key=lambda item: item[0] != "web"):
        transcript.fact(f"Scale {kind} to {count} {'process' if count == 1 else 'processes'}.")
    transcript.step("Job done.")
    transcript.detail(settings.url(app))
    transcript.detail(f"to go back: git revert --no-edit HEAD && git push bareku {options.branch}")
    transcript.close()
    with deploy.taken_back_on_error(root, app):
        reached("accepted")


def _check_ref(root: Root, app: str, update: Update) -> None:
    """Under the lock, the branch must still be where the pusher saw it."""
    now = repository.resolve(root.repository(app), update.ref)
    if now != update.old:
        raise BarekuError(
            f"cannot deploy {app}: someone else has pushed meanwhile ({now[:8]})",
            hint="git pull --rebase bareku, then push again"
            if now != ZERO
            else "fetch, then push again",
        )


@contextlib.contextmanager
def _scratch(root: Root, app: str) -> Iterator[Path]:
    """The folder of this build, `scratch/<app>/app`; what an earlier one left is removed first."""
    work = root.path / "scratch" / app
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work / "app"
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _slug(
    root: Root,
    app: str,
    tree: Path,
    exported: Tree,
    options: AppSettings,
    env: Mapping[str, str],
    revision: str,
    transcript: Transcript,
) -> Slug:
    """The slug of the tree: the one that was built from the same before, or a new one."""
    pack = build.detect(tree, chosen=options.buildpacks, wanted=env.get("BUILDPACK_URL", ""))
    transcript.step(f"{pack.display_name} project detected.")
    if pack.runtime:
        transcript.detail(f"Running with {pack.runtime}.")
    if pack.also:
        transcript.detail(f"Also fits: {', '.join(pack.also)}; the file .buildpacks would choose.")
    name = slug.slug_id(exported.sha, buildpack.digest(pack, env), buildpack.stack(), pack.runtime)
    made = slug.find(root.slugs, name)
    if made is None:
        built = build.compile(
            tree,
            pack,
            cache=root.cache / app,
            env=env,
            revision=revision,
            output=transcript.build_line,
        )
        apps.formation(app, built.process_types, options)  # before the work of packing
        transcript.step("Building the slug file.")
        made = slug.pack(tree, root.slugs, name=name, built=built)
        build.keep(tree, root.cache / app)
    else:
        transcript.step("Taking the slug file that was built from the same tree before.")
    transcript.detail(f"Compiled slug size is {slug.human_size(made.size_bytes)}.")
    transcript.detail(f"Build: {made.uuid}")
    return made
