"""What a node's processes shall be against what they are. Pure.

`plan` decides for each generation present or desired whether it is wanted now. It never stops
anything for lack of information: without a desired document everything present stays wanted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from diprocd.lifecycle import State
from diprocd.spec import Process

Key = tuple[str, str]  # (id, gen)

_NOT_IN_GEN = ("id", "index", "priority")


class Present(Struct, frozen=True):
    """One generation of a process that the worker holds."""

    id: str
    gen: str
    state: State
    exclusive: bool = False


class Plan(Struct, frozen=True):
    """Generations to have and to let go; those in neither wait for another to move first."""

    want: frozenset[Key]
    unwant: frozenset[Key]


def generation(process: Process) -> str:
    """12 hex digits that change when the process must be replaced to follow its entry."""
    entry = msgspec.to_builtins(process)
    for name in _NOT_IN_GEN:
        del entry[name]
    return hashlib.sha256(msgspec.json.encode(entry, order="sorted")).hexdigest()[:12]


def plan(
    desired: Mapping[str, tuple[str, bool]] | None,
    present: Iterable[Present],
    *,
    has_lease: bool = True,
) -> Plan:
    """Decide from `desired` (id -> gen, exclusive) or None when it is not known.

    A new generation is started beside the old one, which goes once the new one is ready; an
    exclusive process does it the other way round, and runs only while the lease holds.
    """
    by_id: dict[str, list[Present]] = {}
    for one in present:
        by_id.setdefault(one.id, []).append(one)
    want: set[Key] = set()
    unwant: set[Key] = set()
    for id_ in by_id.keys() | (desired or {}).keys():
        here = by_id.get(id_, [])
        if desired is None:
            kept = {(one.id, one.gen) for one in here if has_lease or not one.exclusive}
            want |= kept
            unwant |= {(one.id, one.gen) for one in here} - kept
        elif id_ not in desired:
            unwant |= {(id_, one.gen) for one in here}
        else:
            gen, exclusive = desired[id_]
            _replace(id_, gen, exclusive and not has_lease, exclusive, here, want, unwant)
    return Plan(frozenset(want), frozenset(unwant))


def _replace(
    id_: str,
    gen: str,
    is_barred: bool,
    exclusive: bool,
    here: list[Present],
    want: set[Key],
    unwant: set[Key],
) -> None:
    """One id that shall run as `gen`, with `here` the generations of it there are."""
    old = [one for one in here if one.gen != gen]
    new = next((one for one in here if one.gen == gen), None)
    if is_barred:
        unwant |= {(id_, one.gen) for one in here}
        return
    alone = exclusive or any(one.exclusive for one in old)
    if new is not None or not old or (len(old) == 1 and not alone):
        want.add((id_, gen))
    is_replaced = alone or (new is not None and new.state is State.RUNNING)
    serving = [one for one in old if one.state is State.RUNNING]
    kept = serving[-1:] if not is_replaced else []  # the newest that answers
    unwant |= {(id_, one.gen) for one in old if one not in kept}
