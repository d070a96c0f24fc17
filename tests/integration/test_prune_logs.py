"""The audit log keeps what it is told to keep, and loses the rest in small batches."""

from __future__ import annotations

import io
from collections.abc import Callable
from threading import Event

import pytest
from django.core.management import call_command

from syncdata.apply.state import pruning
from syncdata.errors import RequestError
from tests.world import World, insert

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"


def fill(world: World, *days: float | None) -> None:
    """Add entries that are so many days old; None: without a time, as only the predecessor left some."""
    for age in days:
        moment = "NULL" if age is None else f"now() - interval '{age} days'"
        world.execute(
            f"INSERT INTO data_sync_logs (table_name, status, sync_time) VALUES ('t', 'SUCCESS', {moment})"
        )


def ages(world: World) -> list[int | None]:
    return [
        None if age is None else round(age)
        for (age,) in world.rows(
            "SELECT extract(epoch FROM now() - sync_time)::float / 86400 FROM data_sync_logs"
            " ORDER BY sync_time DESC NULLS LAST"
        )
    ]


def test_entries_older_than_so_many_days_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH_ENTRIES", 2)
    fill(world, 1, 29, 31, 40, 50, 60, None)
    with world.service() as service:
        assert service.prune_logs(30, dry_run=True)[0] == 4
        assert ages(world) == [1, 29, 31, 40, 50, 60, None]
        assert service.prune_logs(30)[0] == 4
        assert ages(world) == [1, 29, None]
        assert service.prune_logs(30)[0] == 0


def test_the_daemon_prunes_the_log_in_small_batches_and_then_rests(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncdata.apply.run.BATCH_ENTRIES", 2)
    monkeypatch.setattr(pruning, "BATCH_ENTRIES", 2)
    world = make_world(log_keep_days=30)
    fill(world, 29, 31, 40, 50)
    with world.service() as service, service._worker.running(600) as run:
        stop = Event()
        run.cycle(stop)
        assert ages(world) == [29, 31]
        run.cycle(stop)
        assert ages(world) == [29]
        fill(world, 70)
        run.cycle(stop)
        assert ages(world) == [29, 70], "it has done so today"


def test_nothing_goes_unless_it_is_asked_for(world: World) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")
    fill(world, 4000)
    world.write(FIRST, [insert("t", id=1)])
    world.sync()
    assert ages(world) == [0, 4000]


def test_the_command_says_what_it_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncdata.management.commands.prune_logs.load_config", lambda: world.config)
    fill(world, 1, 31, 32)
    with pytest.raises(RequestError, match="log_keep_days is 0.*--keep-days N"):
        call_command("prune_logs")
    out = io.StringIO()
    call_command("prune_logs", "--keep-days", "30", "--dry-run", stdout=out)
    call_command("prune_logs", "--keep-days", "31", stdout=out)
    told = out.getvalue().splitlines()
    assert told[0].startswith("would go: 2 entries of the audit log from before 20")
    assert told[1].startswith("removed: 2 entries")
    assert ages(world) == [1]
