"""Production fails over to a standby: the archiver goes on where it can prove that nothing is missing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from syncdata.capture import archiver as archiver_module
from syncdata.capture.chain import Chain, load_chain
from syncdata.conf import source_from_toml
from syncdata.errors import SourceChangedError
from syncdata.production import ProductionService
from syncsite.demo.postgres import embedded_binaries
from tests import processes
from tests.chains import archived_records
from tests.postgres import Database, other_servers
from tests.production import differences
from tests.standby import Pair, execute, until
from tests.world import World

SLOT = "syncdata_slot"


@dataclass
class Site:
    """A pair of servers, the archive, and a local side that follows."""

    pair: Pair
    world: World
    folder: Path
    number: int = 0

    def service(self, database: Database) -> ProductionService:
        """Production's side, pointed to *database*; the spool stays."""
        source = database.pg_keys | {"tables": ["users"], "slot_name": SLOT, "rotate_seconds": 1}
        keys = {"archive_backend": "local", "archive_dir": str(self.archive_dir), "source": source}
        return ProductionService(source_from_toml(keys, {}, self.folder / "syncdata.toml"))

    @property
    def archive_dir(self) -> Path:
        return Path(self.world.options["archive_dir"])

    @property
    def chain(self) -> Chain:
        chain = load_chain(self.folder / "spool")
        assert chain is not None
        return chain

    def write(self, database: Database) -> None:
        self.number += 1
        execute(
            database.server,
            f"INSERT INTO users VALUES ({self.number}, 'new')",
            f"UPDATE users SET name = 'changed' WHERE id = {self.number - 1}",
        )

    def archive(self, database: Database) -> None:
        self.service(database).run_once(threading.Event())

    def begin(self) -> ProductionService:
        """Set production up, and let the local side begin with a snapshot."""
        execute(self.pair.primary, "CREATE TABLE users (id int PRIMARY KEY, name text)")
        self.write(self.pair.old)
        service = self.service(self.pair.old)
        service.setup()
        service.take_snapshots(stop=threading.Event())
        self.world.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
        self.world.whitelist("users")
        self.write(self.pair.old)
        self.archive(self.pair.old)
        self.require_equal(self.pair.old)
        return service

    def require_equal(self, database: Database) -> None:
        self.world.sync()
        assert differences(database, self.world.database, ["users"]) == []
        assert self.world.rows("SELECT state, error FROM data_sync_checkpoints") == [("active", None)]

    def run(self, *arguments: str) -> None:
        """Run a command of the local side in a process of its own."""
        path = self.folder / "local.toml"
        path.touch(mode=0o600)
        path.write_text(self.world.toml)
        variables = {name: text for name, text in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        done = processes.run("manage.py", *arguments, env=variables | {"DATA_SYNC_CONFIG": str(path)})
        assert done.returncode == 0, done.stderr


@pytest.fixture
def make_site(
    make_pair: Callable[[Path], Pair],
    make_world: Callable[..., World],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Path], Site]:
    monkeypatch.setattr(archiver_module, "_FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(archiver_module, "_LAST_RETRY_S", 0.5)

    def make(binaries: Path) -> Site:
        archive_dir = tmp_path / "shared"
        archive_dir.mkdir()
        return Site(make_pair(binaries), make_world(archive_dir=str(archive_dir)), tmp_path)

    return make


def test_after_a_failover_the_archiver_goes_on_with_the_slot_that_the_standby_kept(
    make_site: Callable[[Path], Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(embedded_binaries())
    pair = site.pair
    service = site.begin()
    pair.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'", "SELECT pg_reload_conf()")
    epoch = site.chain.epoch
    stop = threading.Event()
    daemon = threading.Thread(target=service.run_loop, args=(stop,))
    daemon.start()
    try:
        pair.wait_for_slot(SLOT, lambda: site.write(pair.old))
        site.write(pair.old)
        # The primary goes while the archiver reads; what the standby lacks is in no archive either.
        pair.fail_over()
    finally:
        stop.set()
        daemon.join()
    (problem,) = [p for p in site.service(pair.new).get_status().problems if p.kind == "timeline"]
    assert str(problem).startswith("the source is on timeline 2, the chain on 1")
    site.number += 10  # beyond what was lost, if anything
    site.write(pair.new)
    site.archive(pair.new)
    assert "the source has failed over from timeline 1 to 2; nothing is missing" in caplog.text
    site.require_equal(pair.new)
    assert (site.chain.epoch, site.chain.timeline, site.chain.first_timeline) == (epoch, 2, 1)
    archived_records(site.archive_dir)
    assert not [p for p in site.service(pair.new).get_status().problems if p.kind == "timeline"]
    # Snapshots of the new timeline belong to the same source, too.
    site.service(pair.new).take_snapshots(stop=threading.Event())
    site.write(pair.new)
    site.archive(pair.new)
    site.run("resync", "users")
    site.require_equal(pair.new)


def test_a_standby_that_lacks_what_is_archived_or_shown_by_a_snapshot_ends_the_epoch(
    make_site: Callable[[Path], Site],
) -> None:
    site = make_site(embedded_binaries())
    pair = site.pair
    service = site.begin()

    def move_on() -> None:
        site.write(pair.old)
        site.archive(pair.old)

    pair.wait_for_slot(SLOT, move_on)
    pair.wait_for_standby()
    pair.cut_off_standby()
    site.write(pair.old)
    # Only a snapshot has what is lost now; it is of the chain, and local machines may have begun with it.
    service.take_snapshots(stop=threading.Event())
    chain = site.chain
    pair.fail_over()
    with pytest.raises(
        SourceChangedError, match="SHD_SYN_104.*which the new server does not have.*--new-epoch"
    ):
        site.archive(pair.new)
    assert site.chain == chain
    new = site.service(pair.new)
    new.begin_epoch()
    new.take_snapshots(stop=threading.Event())
    site.number += 10
    site.write(pair.new)
    site.archive(pair.new)
    site.world.sync()
    site.run("resync", "--all")
    site.require_equal(pair.new)


def test_where_standbys_keep_no_slots_a_failover_is_told_and_a_new_epoch_heals_everyone(
    make_site: Callable[[Path], Site],
) -> None:
    site = make_site([*other_servers().values()][-1])
    pair = site.pair
    site.begin()
    pair.wait_for_standby()
    pair.fail_over()
    site.write(pair.new)
    with pytest.raises(
        SourceChangedError, match="SHD_SYN_104.*timeline 1 to 2.*no replication slot.*--new-epoch"
    ):
        site.archive(pair.new)
    kinds = {problem.kind for problem in site.service(pair.new).get_status().problems}
    assert {"timeline", "no-slot"} <= kinds
    new = site.service(pair.new)
    new.setup()
    new.begin_epoch()
    new.take_snapshots(stop=threading.Event())
    site.write(pair.new)
    site.archive(pair.new)
    site.world.sync()
    ((state, error),) = site.world.rows("SELECT state, error FROM data_sync_checkpoints")
    assert (state, error.partition(":")[0]) == ("blocked", "SHD_SYN_061")
    site.run("resync", "--all")
    site.require_equal(pair.new)


def test_an_archiver_that_finds_a_standby_waits_until_it_takes_over(
    make_site: Callable[[Path], Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(embedded_binaries())
    pair = site.pair
    site.begin()

    def move_on() -> None:
        site.write(pair.old)
        site.archive(pair.old)

    pair.wait_for_slot(SLOT, move_on)
    pair.wait_for_standby()
    stop = threading.Event()
    daemon: Any = threading.Thread(target=site.service(pair.new).run_loop, args=(stop,))
    daemon.start()
    try:
        until(lambda: "the source is a standby" in caplog.text)
        pair.fail_over()
        until(lambda: site.chain.timeline == 2)
    finally:
        stop.set()
        daemon.join()
    site.write(pair.new)
    site.archive(pair.new)
    site.require_equal(pair.new)
