"""Errors are data: with every message in other words nothing changes but text."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from syncdata import connections as session
from syncdata.apply.state import queue
from syncdata.errors import DiscoveryError, Problem, SyncError
from tests.world import World, insert

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"
THIRD = "changes_20260205_103002.json"
ACTIONS = ("resync", "pause", "resume", "retry", "skip", "clear")
# They tell the time, or guard a form: no two pages have the same.
VARYING = ("title", "datetime")


class Shape(HTMLParser):
    """The tags of a page with their attributes: what remains when its text is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("name") == "csrfmiddlewaretoken":
            return
        kept = (f"{name}={value}" for name, value in given.items() if name not in VARYING)
        self.tags.append((tag, *kept))


def shape(page: str) -> list[tuple[str, ...]]:
    parser = Shape()
    parser.feed(page)
    return parser.tags


class OneDatabase:
    """Sends all models, the users too, to the database of the world."""

    alias = ""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return self.alias

    db_for_write = db_for_read


def reword(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say all messages, hints and problems in other words; different ones stay different."""

    def other(text: str) -> str:
        return f"(words {zlib.crc32(text.encode())}: x)" if text else ""

    make_error, make_problem = SyncError.__init__, Problem.__init__

    def make_reworded_error(self: SyncError, message: str, *, hint: str = "", **place: Any) -> None:
        make_error(self, other(message), hint=other(hint), **place)

    def make_reworded_problem(self: Problem, *, kind: str, text: str = "", **parts: Any) -> None:
        make_problem(self, kind=kind, text=other(text), **parts)

    monkeypatch.setattr(SyncError, "__init__", make_reworded_error)
    monkeypatch.setattr(SyncError, "__str__", lambda self: other(f"{self.code} {self.place} {self.message}"))
    monkeypatch.setattr(Problem, "__init__", make_reworded_problem)


def state_of(world: World) -> list[Any]:
    """Return all that status and audit say, but no text of an error."""
    with world.service() as service:
        status = service.get_status()
    return [
        *(
            (problem.kind, problem.table, problem.reason and problem.reason.code, bool(problem.reason))
            for problem in status.problems
        ),
        *((t.table_name, t.state, t.checkpoint, t.error_code, t.blocking_place) for t in status.tables),
        *world.rows(
            "SELECT table_name, action, status, archive_ref, requested_by, error_detail IS NULL"
            " FROM data_sync_logs ORDER BY sync_time, table_name"
        ),
        *world.rows("SELECT action, state, error_code, error_file, error_line FROM data_sync_requests"),
        *world.rows("SELECT errors, error_code, error_line FROM data_sync_runs ORDER BY id"),
    ]


def pages_of(world: World, client: Client) -> list[Any]:
    """Return the shape of the dashboard, the whitelist and every page that asks back, while a daemon runs."""
    seen: list[Any] = []
    with world.connect() as lock:
        lock.execute("SELECT pg_advisory_lock(%s, %s)", session._LOCK_KEYS)
        for page in ("dashboard", "tabletosync"):
            response = client.get(reverse(f"admin:syncdata_{page}_changelist"))
            seen.append(shape(response.content.decode()))
        for action in ACTIONS:
            for table in ("users", "orders"):
                url = reverse("admin:syncdata_tabletosync_ask", args=[action])
                response = client.get(url, {"table": table})
                seen.append((action, table, shape(response.content.decode())))
    return seen


def live_through_errors(world: World, client: Client) -> list[Any]:
    """Block, look, skip and go on, as an operator would; return all that was seen."""
    client.force_login(User.objects.create_superuser("ada"))
    world.execute(
        "CREATE TABLE users (id int PRIMARY KEY, n int)", "CREATE TABLE orders (id int PRIMARY KEY)"
    )
    world.whitelist("users", "orders")
    world.write(FIRST, [insert("users", id=1, n=1), insert("orders", id=1)])
    world.write(SECOND, [insert("users", id=2, n="bad"), insert("users", id=3, n=3)])
    world.write(THIRD, ["no record", insert("orders", id=2)])
    seen: list[Any] = []

    def look() -> None:
        seen.extend([state_of(world), pages_of(world, client)])

    world.sync()
    look()
    for table in ("users", "orders"):
        with world.service() as service:
            (place,) = (t.blocking_place for t in service.list_tables() if t.table_name == table)
            seen.append((place, service.skip_record(table, place, requested_by="ada")))
        world.sync()
        look()
    with world.connect() as connection:
        queue.submit(connection, "pause", ["nobody"], requested_by="ada")
    world.sync()
    look()
    world.archive.rename(world.archive.with_name("away"))
    with pytest.raises(DiscoveryError):
        world.sync()
    look()
    assert world.rows("SELECT id FROM users ORDER BY id") == [(1,), (3,)]
    assert world.rows("SELECT id FROM orders ORDER BY id") == [(1,), (2,)]
    return seen


def test_with_every_message_in_other_words_nothing_changes_but_text(
    make_world: Callable[..., World], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SECURE_SSL_REDIRECT = False
    settings.DATABASE_ROUTERS = [OneDatabase()]
    seen = []
    for change in (lambda _: None, reword):
        world = make_world()
        OneDatabase.alias = world.alias
        change(monkeypatch)
        seen.append(live_through_errors(world, Client()))
    assert seen[0][2] == (f"{SECOND}:1", ["users"]), "the file's name holds blanks"
    assert seen[0] == seen[1]
