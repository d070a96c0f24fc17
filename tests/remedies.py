"""An operator who does what a message says, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from syncdata.errors import ResyncError
from tests.production import PUBLICATION, Production
from tests.world import World

_NAME = r"""(?:"[^"]+"|\w+)(?:\.(?:"[^"]+"|\w+))*"""
_STEP = re.compile(
    rf"archive_changes --snapshot (?P<snapshot>{_NAME})"
    rf"|\bresync (?P<resync>{_NAME})'"
    rf"|remove_tables (?P<remove>{_NAME})'"
    r"|(?P<setup>setup_logical_replication)"
    r"|(?P<sql>(?:ALTER TABLE|DROP|CREATE) (?:[^;'\"]|\"[^\"]*\"|'[^']*')+?)(?=;|$| \(then|, then|'|\n)"
)


def steps_of(hints: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the steps that *hints* name, in their order: what to do, and with what."""
    for hint in hints:
        for found in _STEP.finditer(hint):
            assert found.lastgroup is not None
            yield found.lastgroup, found[found.lastgroup]


def follow(
    hints: Iterable[str], production: Production, world: World, *, words: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Do what *hints* say, each step once; return the steps. *words*: what to put for their ellipses."""
    done: list[tuple[str, str]] = []
    for kind, what in steps_of(hints):
        for ellipsis, meant in words.items():
            what = what.replace(ellipsis, meant)
        if (kind, what) in done:
            continue
        _do(kind, what, production, world)
        done.append((kind, what))
    return done


def _do(kind: str, what: str, production: Production, world: World) -> None:
    if kind == "snapshot":
        production.archive()
        production.snapshot(what)
    elif kind == "setup":
        published = f"SELECT tablename FROM pg_publication_tables WHERE pubname = '{PUBLICATION}'"
        if ("t",) not in production.rows(published):
            production.publish("t")
    elif kind == "sql":
        world.execute(what)
    else:
        with world.service() as service:
            if kind == "remove":
                service.remove_tables([what])
            else:
                with suppress(ResyncError):  # it is in the table's state, with the next remedy
                    service.resync(what)
