"""A table in every place that shows states: two commands, --check, metrics, and the admin."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.test import RequestFactory, override_settings
from django.urls import resolve, reverse
from prometheus_client.parser import text_string_to_metric_families

from syncdata.connections import AliasSession
from syncdata.errors import StatusError
from syncdata.monitoring import render_metrics
from tests.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What each view says of one table, while a daemon runs.

    ``hints`` are the remedies in ``list_tables --json``, ``problems`` those of ``syncdata_status --json``,
    ``refusal`` is the error that ends ``syncdata_status --check`` with status 1, empty for status 0. Of the
    metrics, ``healthy`` is syncdata_healthy and ``metric_states`` are the states in which the table is
    counted. ``page`` is the state in the dashboard's list of tables, and ``page_text`` the whole page.
    """

    state: str
    hints: tuple[str, ...]
    problems: tuple[str, ...]
    refusal: str
    healthy: float
    metric_states: tuple[str, ...]
    page: str
    page_text: str

    @property
    def green(self) -> list[str]:
        """Name the views that call the table healthy."""
        says = {
            "list_tables": self.state in ("active", "new"),
            "syncdata_status": not self.problems,
            "--check": not self.refusal,
            "syncdata_healthy": self.healthy == 1,
            "syncdata_table_state": self.metric_states in (("active",), ("new",)),
            "dashboard": self.page in ("active", "new"),
        }
        return [name for name, is_green in says.items() if is_green]

    @property
    def is_green(self) -> bool:
        """Tell whether all views call the table healthy."""
        return len(self.green) == 6


def look(world: World, table: str) -> Views:
    """Look at *table* in every view, as if a daemon ran that has just ended a cycle."""
    with _configured(world), _running_daemon(world):
        listed = json.loads(_run("list_tables", "--json"))
        status = json.loads(_run("syncdata_status", "--json"))
        body, _ = render_metrics(world.config)
        page = _dashboard()
        try:
            _run("syncdata_status", "--check")
            refusal = ""
        except StatusError as error:
            refusal = str(error)
    healthy, states = _samples(body.decode(), table)
    (row,) = [row for row in listed if row["table_name"] == table]
    hints = [row["error_hint"], *(mark["hint"] for mark in row["marks"])]
    return Views(
        state=row["state"],
        hints=tuple(hint for hint in hints if hint),
        problems=tuple(status["problems"]),
        refusal=refusal,
        healthy=healthy,
        metric_states=states,
        page=_state_on_page(page, table),
        page_text=html.unescape(re.sub(r"<[^>]+>", "", page)),
    )


@contextmanager
def _configured(world: World) -> Iterator[None]:
    """Make *world* the project's own configuration."""
    values = {
        "archive_backend": "local",
        "archive_dir": str(world.archive),
        "database": world.alias,
        "state_dir": str(world.state_dir),
        **world.options,
    }
    routers = ["syncdata.routers.SyncDataRouter"]
    try:
        with override_settings(SYNCDATA=values, DATABASE_ROUTERS=routers):
            yield
    finally:
        connections[world.alias].close()


@contextmanager
def _running_daemon(world: World) -> Iterator[None]:
    """Hold the lock by which everybody knows that a daemon runs; without one, no view is ever green."""
    session = AliasSession(world.alias)
    try:
        session.lock()
        yield
    finally:
        session.close()


def _run(command: str, *arguments: str) -> str:
    out = StringIO()
    call_command(command, *arguments, stdout=out)
    return out.getvalue()


def _dashboard() -> str:
    """Return the dashboard as a superuser sees it, who need not be in any database."""
    request = RequestFactory().get(reverse("admin:syncdata_dashboard_changelist"))
    request.user = User(username="ada", is_active=True, is_staff=True, is_superuser=True)
    view, arguments, keywords = resolve(request.path)
    response: Any = view(request, *arguments, **keywords)
    return str(response.render().content.decode())


def _samples(text: str, table: str) -> tuple[float, tuple[str, ...]]:
    """Return syncdata_healthy, and the states in which *table* is counted."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    (healthy,) = [sample.value for sample in samples if sample.name == "syncdata_healthy"]
    states = (
        sample.labels["state"]
        for sample in samples
        if sample.name == "syncdata_table_state" and sample.labels["table"] == table and sample.value
    )
    return healthy, tuple(states)


def _state_on_page(page: str, table: str) -> str:
    """Return the state that the dashboard's list of tables shows for *table*."""
    row = re.search(rf'<th scope="row"><a [^>]*>{re.escape(table)}</a>.*?</tr>', page, re.DOTALL)
    assert row is not None, f"{table} is not on the page"
    state = re.search(r'class="syncdata-state syncdata-([\w-]+)"', row[0])
    assert state is not None
    return state[1]
