"""The work beside a running archiver, without a source: when it warns, and when it is silent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from syncdata.archive.retention import Removals
from syncdata.capture import housekeeper
from syncdata.capture.housekeeper import Housekeeper, SourceView, Watch
from syncdata.capture.publication import Part, Published, load_parts
from syncdata.capture.slot import Slot
from syncdata.changes.names import TableName
from syncdata.errors import Problem, SourceConnectionError

USERS, ORDERS = TableName("public", "users"), TableName("public", "orders")


def slot(retained_bytes: int) -> Slot:
    return Slot(
        name="syncdata_slot",
        plugin="pgoutput",
        database="shop",
        is_temporary=False,
        active_pid=812,
        reader="role archiver, pid 812",
        wal_status="reserved",
        confirmed_lsn=0x16B3D50,
        wal_lsn=0x16B3D60,
        retained_bytes=retained_bytes,
        limit_bytes=1000,
    )


def keeper(
    view: Callable[[], SourceView] = lambda: SourceView(slot=None, unpublished=()),
    prune: Callable[[], Removals] = lambda: Removals(),
    prune_every_s: float = 0.0,
) -> Housekeeper:
    return Housekeeper(view, prune, prune_every_s=prune_every_s, stop=threading.Event())


def test_a_warning_is_logged_when_it_comes_up_and_again_after_it_went_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = iter(
        [
            SourceView(slot=slot(850), unpublished=()),
            SourceView(slot=slot(900), unpublished=(USERS,)),  # another number, and another danger
            SourceView(slot=slot(950), unpublished=(USERS, ORDERS)),
            SourceView(slot=slot(100), unpublished=()),
            SourceView(slot=slot(850), unpublished=()),
        ]
    )
    logged = []
    kept = keeper(lambda: next(seen))
    for _ in range(5):
        caplog.clear()
        kept.watch_source()
        logged.append([record.getMessage().split()[0:2] for record in caplog.records])
    assert logged == [[["the", "WAL"]], [["not", "published,"]], [], [], [["the", "WAL"]]]


def test_what_is_altered_after_the_first_look_is_told_until_the_archiver_starts_anew(tmp_path: Path) -> None:
    whole, narrow = Part(), Part(columns=("id",))

    def look(watch: Watch, parts: dict[TableName, Part]) -> list[str]:
        seen.append(SourceView(slot=None, unpublished=(), published=Published(parts=parts)))
        return [fault.table for fault in watch().faults]

    seen: list[SourceView] = []
    watch = Watch(lambda: seen[-1], tmp_path)
    assert look(watch, {USERS: whole}) == []
    assert look(watch, {USERS: whole, ORDERS: narrow}) == []  # published later, and as it came
    assert len(look(watch, {USERS: narrow, ORDERS: whole})) == 2
    assert load_parts(tmp_path) == {USERS: whole, ORDERS: narrow}
    assert len(look(watch, {USERS: narrow, ORDERS: narrow})) == 1
    # An archiver that is started anew tells once what was altered meanwhile, and takes it as it is.
    anew = Watch(lambda: seen[-1], tmp_path)
    assert len(look(anew, {USERS: narrow, ORDERS: narrow})) == 1
    assert look(anew, {USERS: narrow, ORDERS: narrow}) == []
    assert load_parts(tmp_path)[USERS] == narrow


def test_a_copy_that_fails_is_tried_again_soon_and_then_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, tried_at_s, is_broken = 1000.0, [], True

    def copy() -> list[TableName]:
        tried_at_s.append(now_s)
        if is_broken:
            raise SourceConnectionError("production is away", hint="wait")
        return []

    def look_for(seconds: int) -> None:
        nonlocal now_s
        for _ in range(seconds):
            with suppress(SourceConnectionError):
                kept.copy_rewritten()
            now_s += 1.0

    monkeypatch.setattr("syncdata.capture.housekeeper.time.monotonic", lambda: now_s)
    kept = Housekeeper(
        lambda: SourceView(slot=None, unpublished=()),
        lambda: Removals(),
        prune_every_s=0.0,
        copy=copy,
        stop=threading.Event(),
    )
    look_for(3600)
    pauses = [later - earlier for earlier, later in pairwise(tried_at_s)]
    assert pauses[0] <= 10 and pauses[1] <= 20
    assert max(pauses) <= 300 and len(pauses) < 35
    is_broken = False
    look_for(400)
    is_broken, tried_at_s[:] = True, []
    look_for(60)
    assert tried_at_s[1] - tried_at_s[0] <= 10


def test_each_table_with_a_fault_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    faults = [Problem(kind="identity", text=f"table {table}", table=table) for table in ("users", "orders")]
    views = iter([SourceView(slot=None, unpublished=(), faults=tuple(faults[:n])) for n in (1, 2, 2)])
    kept = keeper(lambda: next(views))
    for _ in range(3):
        kept.watch_source()
    assert [record.getMessage() for record in caplog.records] == ["table users", "table orders"]


def test_the_reason_why_nothing_can_go_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    without_snapshot = iter([(USERS,), (USERS,), (), (USERS,), (USERS, ORDERS)])
    kept = keeper(prune=lambda: Removals(without_snapshot=next(without_snapshot)))
    logged = []
    for _ in range(5):
        caplog.clear()
        kept.prune_archive()
        logged.append(len(caplog.records))
    assert logged == [1, 0, 0, 1, 1]


def test_a_source_that_is_away_is_logged_and_looked_at_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeper, "_FIRST_WATCH_S", 0.01)
    monkeypatch.setattr(housekeeper, "_WATCH_EVERY_S", 0.01)
    answers: Iterator[SourceView] = iter([SourceView(slot=slot(100), unpublished=())])
    is_back, is_pruned = threading.Event(), threading.Event()

    def view() -> SourceView:
        if not caplog.records:
            raise SourceConnectionError("the source is away")
        is_back.set()
        return next(answers, SourceView(slot=None, unpublished=()))

    def prune() -> Removals:
        is_pruned.set()
        return Removals()

    with caplog.at_level(logging.WARNING), keeper(view, prune, prune_every_s=0.02):
        assert is_back.wait(10)
        assert is_pruned.wait(10)
    assert caplog.records[0].getMessage() == "SHD_SYN_101: the source is away"
