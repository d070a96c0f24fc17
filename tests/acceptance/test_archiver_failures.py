"""What goes wrong around the archiver: each time it says what, loses nothing, and goes on when it can."""

from __future__ import annotations

import datetime as dt
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Self

import pytest

from syncdata.archive.archive import Archive, open_archive
from syncdata.archive.local import LocalSettings, LocalStorage
from syncdata.archive.sftp import SftpSettings
from syncdata.capture import archiver as archiver_module
from syncdata.capture import opening, session, uploader
from syncdata.capture.archiver import Archiver
from syncdata.capture.chain import CHAIN_FILE_NAME, Chain, load_chain, save_chain
from syncdata.capture.refusals import SlotInUseError
from syncdata.capture.replication import ReplicationConnection
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.slot import Slot, read_slot
from syncdata.changes.reader import inspect
from syncdata.errors import (
    DeliveryError,
    SlotError,
    SourceChangedError,
    SourceSetupError,
    SpoolError,
    SyncError,
)
from syncsite.demo.postgres import PostgresServer, embedded_binaries
from tests.chains import archived_records
from tests.disks import remount
from tests.production import Production
from tests.sshd import SshServer
from tests.world import World

PATIENCE_S = 30.0


@dataclass
class Site:
    """A production side with a journal, whose numbers say what is in the archive."""

    production: Production
    open_archive: Callable[[], Archive]
    directory: Path  # where the archive's files lie
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def write(self, transactions: int = 3, text: str = "") -> None:
        self.production.execute(
            *(f"INSERT INTO journal VALUES ({next(self.numbers)}, '{text}')" for _ in range(transactions))
        )

    def archiver(self, **changed: Any) -> Archiver:
        return Archiver(self.settings, self.open_archive, **changed)

    @property
    def settings(self) -> CaptureSettings:
        return self.production.settings

    def run_once(self) -> None:
        self.archiver().run_once(threading.Event())

    def daemon(self) -> Daemon:
        return Daemon(self.archiver())

    def archived(self) -> list[int]:
        """The numbers in the archive, whose chain is checked."""
        records = archived_records(self.directory)
        return [int(record.data["number"]) for record in records if record.data and record.table == "journal"]

    def journal(self) -> list[int]:
        return [number for (number,) in self.production.rows("SELECT number FROM journal ORDER BY number")]

    def require_all(self) -> None:
        """Once everything is mended, the archive holds each transaction once."""
        self.run_once()
        assert self.archived() == self.journal()

    @property
    def chain(self) -> Chain:
        chain = load_chain(self.production.spool_dir)
        assert chain is not None
        return chain

    @property
    def slot(self) -> Slot:
        with self.production.connect() as connection:
            slot = read_slot(connection, self.production.slot_name)
        assert slot is not None
        return slot


class Daemon:
    """A running archiver; leaving stops it."""

    def __init__(self, archiver: Archiver) -> None:
        self._archiver = archiver
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._archiver.run_loop(self._stop)
        except BaseException as error:
            self.error = error


def until(is_so: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files end soon, and what failed is tried again soon."""
    monkeypatch.setattr(archiver_module, "_FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(archiver_module, "_LAST_RETRY_S", 0.5)
    monkeypatch.setattr(uploader, "_FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(uploader, "_LAST_RETRY_S", 0.5)
    monkeypatch.setattr(session, "FEEDBACK_EVERY_S", 0.2)


def site_of(production: Production, open_archive: Callable[[], Archive], directory: Path) -> Site:
    production.execute(
        "CREATE TABLE journal (number int PRIMARY KEY, note text)", "CREATE TABLE private (v int)"
    )
    production.publish("journal")
    production.options.setdefault("rotate_s", 0.1)
    return Site(production, open_archive, directory)


@pytest.fixture
def site(make_production: Callable[..., Production]) -> Site:
    production = make_production()
    return site_of(production, production.open_archive, production.archive_dir)


@pytest.fixture
def far_site(make_production: Callable[..., Production], sshd: SshServer) -> Iterator[Site]:
    """A site whose archive is on a backup host."""
    yield site_of(make_production(), lambda: open_archive(sshd.settings()), sshd.archive_dir)


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop, break and replace."""
    server = PostgresServer(binaries=embedded_binaries())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_site(own_server: PostgresServer, make_production: Callable[..., Production]) -> Site:
    production = make_production(own_server)
    return site_of(production, production.open_archive, production.archive_dir)


def shut_down(server: PostgresServer, patience_s: float = 15) -> None:
    """A fast shutdown, as an administrator orders it; it waits for those who read the WAL."""
    process = server._process
    assert process is not None
    process.send_signal(signal.SIGINT)
    process.wait(patience_s)
    server._process = None


# The archive


def test_a_host_that_goes_away_and_comes_back_gets_everything(
    far_site: Site, sshd: SshServer, caplog: pytest.LogCaptureFixture
) -> None:
    with far_site.daemon() as daemon:
        far_site.write()
        until(lambda: far_site.archived() == [1, 2, 3])
        sshd.stop()
        far_site.write()
        until(lambda: "SHD_SYN_060" in caplog.text)
        sshd.start()
        until(lambda: far_site.archived() == far_site.journal())
        assert daemon.error is None
    far_site.require_all()


def test_uploads_that_are_cut_are_done_once(far_site: Site, sshd: SshServer) -> None:
    cuts = iter(range(8))

    class Cut(Archive):
        def put(self, name: str, content: BinaryIO) -> None:
            if name.startswith("changes_"):
                threading.Timer(0.02 * next(cuts, 1), sshd.cut).start()
            super().put(name, content)

    far_site.open_archive = lambda: Cut(sshd.settings().open_storage(spool_dir=None))
    with far_site.daemon() as daemon:
        for _ in range(6):
            # Random, so that it is as long when it is compressed.
            far_site.production.execute(
                f"INSERT INTO journal SELECT {next(far_site.numbers)},"
                " string_agg(gen_random_uuid()::text, '') FROM generate_series(1, 100000)"
            )
        until(lambda: far_site.archived() == far_site.journal())
        assert daemon.error is None
    assert next(cuts, None) is None or next(cuts) > 4
    far_site.open_archive = lambda: open_archive(sshd.settings())
    far_site.require_all()


def test_a_host_that_refuses_our_key_is_waited_for(
    far_site: Site, sshd: SshServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings: SftpSettings = sshd.settings(key_file=sshd.other_key_file)
    far_site.open_archive = lambda: open_archive(settings)
    far_site.write()
    with far_site.daemon() as daemon:
        until(lambda: "SHD_SYN_060" in caplog.text)
        sshd.authorize(sshd.other_key_file)
        until(lambda: far_site.archived() == [1, 2, 3])
        assert daemon.error is None


def test_an_archive_directory_that_is_not_mounted_is_waited_for(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    away = site.directory.with_name("away")
    site.write()
    site.run_once()
    site.directory.rename(away)
    site.write()
    with site.daemon() as daemon:
        until(lambda: "SHD_SYN_061" in caplog.text)
        away.rename(site.directory)
        until(lambda: site.archived() == site.journal())
        site.directory.rename(away)
        site.write()
        until(lambda: "SHD_SYN_107" in caplog.text)
        away.rename(site.directory)
        until(lambda: site.archived() == site.journal())
        assert daemon.error is None
    site.require_all()


def test_a_full_archive_pauses_and_goes_on_when_there_is_space(
    site: Site, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.open_archive, site.directory = lambda: open_archive(LocalSettings(directory=small_disk)), small_disk
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_000_000))
    with site.daemon() as daemon:
        for _ in range(8):
            site.production.execute(
                f"INSERT INTO journal SELECT {next(site.numbers)}, string_agg(gen_random_uuid()::text, '')"
                " FROM generate_series(1, 2500)"
            )
            time.sleep(0.15)
        until(lambda: "SHD_SYN_107" in caplog.text)
        assert "full" in caplog.text
        filler.unlink()
        until(lambda: site.archived() == site.journal())
        assert daemon.error is None
    site.require_all()


def test_a_read_only_archive_pauses_and_goes_on_when_it_can_be_written(
    site: Site, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.open_archive, site.directory = lambda: open_archive(LocalSettings(directory=small_disk)), small_disk
    with site.daemon() as daemon:
        site.write()
        until(lambda: site.archived() == site.journal())
        remount(small_disk, "ro")
        site.write()
        until(lambda: "SHD_SYN_107" in caplog.text)
        remount(small_disk, "rw")
        until(lambda: site.archived() == site.journal())
        assert daemon.error is None
    site.require_all()


def test_while_the_archive_refuses_only_some_files_wait(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.production.options["rotate_bytes"] = 1
    site.run_once()
    (site.directory / "changes_20990101_000000.json.zst").mkdir()  # its name is taken, by no file
    archiver = site.archiver(clock=lambda: dt.datetime(2099, 1, 1, tzinfo=dt.UTC))
    with Daemon(archiver) as daemon:
        site.write(30)
        until(lambda: "SHD_SYN_107" in caplog.text)
        until(lambda: len(list(site.production.spool_dir.glob("changes_*"))) == session.MOST_WAITING)
        time.sleep(0.5)
        assert len(list(site.production.spool_dir.glob("changes_*"))) == session.MOST_WAITING
        (site.directory / "changes_20990101_000000.json.zst").rmdir()
        until(lambda: site.archived() == site.journal())
        assert daemon.error is None


@pytest.mark.parametrize("is_emptied", [True, False])
def test_another_archive_is_not_taken_for_ours(site: Site, is_emptied: bool) -> None:
    site.write()
    site.run_once()
    for path in site.directory.glob("changes_*"):
        path.unlink()
    if not is_emptied:
        (site.directory / "changes_20200101_000000.json").write_text("")
    site.write()
    with pytest.raises(
        SourceChangedError, match="SHD_SYN_104: the archive's newest change file is .*chain's"
    ):
        site.run_once()


def test_newer_files_of_others_in_the_archive_stop_us(site: Site) -> None:
    site.write()
    site.run_once()
    foreign = site.directory / "changes_20990101_000000.json"
    foreign.write_text("")
    with pytest.raises(SourceChangedError, match="SHD_SYN_104: the archive's newest .*_20990101_000000"):
        site.run_once()
    foreign.unlink()
    site.write()
    site.require_all()


# The spool


def test_a_full_spool_says_so_and_goes_on_when_there_is_space(
    site: Site, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.production.spool_dir = small_disk
    site.write()
    site.production.execute(
        f"INSERT INTO journal SELECT {next(site.numbers)}, string_agg(gen_random_uuid()::text, '')"
        " FROM generate_series(1, 100000)"
    )
    with site.daemon() as daemon:
        until(lambda: "SHD_SYN_106" in caplog.text)
        assert "No space left" in caplog.text
        remount(small_disk, "size=64m")
        until(lambda: site.archived() == site.journal())
        assert daemon.error is None
    site.require_all()


def test_a_read_only_spool_says_so_and_goes_on_when_it_can_be_written(
    site: Site, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.production.spool_dir = small_disk
    with site.daemon() as daemon:
        site.write()
        until(lambda: site.archived() == site.journal() and not list(small_disk.glob("changes_*")))
        until(
            lambda: (
                subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=False).returncode == 0
            )
        )
        site.write()
        until(lambda: "SHD_SYN_106" in caplog.text)
        remount(small_disk, "rw")
        until(lambda: site.archived() == site.journal())
        assert daemon.error is None
    site.require_all()


def test_a_waiting_file_that_is_lost_is_sent_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.run_once()
    away = site.directory.with_name("away")
    with site.daemon() as daemon:
        until(lambda: site.slot.active_pid is not None)
        site.directory.rename(away)
        site.write()
        until(lambda: any(record.levelname == "ERROR" for record in caplog.records))
        for path in site.production.spool_dir.glob("changes_*"):
            path.unlink()
        away.rename(site.directory)
        until(lambda: site.archived() == site.journal())
        assert daemon.error is None
        assert "SHD_SYN_106" in caplog.text
    site.require_all()


def test_a_lost_state_without_idle_progress_continues_the_chain(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.ReplicationSession, "_confirm_idle", lambda self: None)
    site.write()
    site.run_once()
    before = site.chain
    (site.production.spool_dir / CHAIN_FILE_NAME).unlink()
    site.write()
    site.require_all()
    assert (site.chain.epoch, site.chain.seq) == (before.epoch, before.seq + 1)


def test_a_lost_state_with_idle_progress_needs_a_person(site: Site) -> None:
    site.write()
    site.run_once()
    site.production.execute("INSERT INTO private VALUES (1)")
    site.run_once()
    (site.production.spool_dir / CHAIN_FILE_NAME).unlink()
    site.write()
    with pytest.raises(
        SourceChangedError, match="SHD_SYN_104: .*: the state of the chain is lost.*--new-epoch"
    ):
        site.run_once()
    site.archiver().begin_epoch()
    site.require_all()


def test_a_lost_state_and_a_half_file_in_the_archive_need_a_person(site: Site) -> None:
    site.write()
    site.run_once()
    (site.production.spool_dir / CHAIN_FILE_NAME).unlink()
    (newest,) = site.directory.glob("changes_*")
    content = newest.read_bytes()
    newest.write_bytes(content[:-5])
    with pytest.raises(SourceChangedError, match=r"SHD_SYN_104: .*newest change file is not whole"):
        site.run_once()


def test_a_broken_state_waits_for_a_person(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.write()
    site.run_once()
    state = site.production.spool_dir / CHAIN_FILE_NAME
    whole = state.read_bytes()
    state.write_bytes(whole[:20])
    site.write()
    with site.daemon() as daemon:
        until(lambda: "the state of the chain is broken" in caplog.text)
        state.write_bytes(whole)
        until(lambda: site.archived() == site.journal())
        assert daemon.error is None


def test_a_clock_that_goes_back_gives_names_that_go_on(site: Site) -> None:
    clock = iter(
        dt.datetime(2026, 2, 5, tzinfo=dt.UTC) - number * dt.timedelta(seconds=7) for number in count()
    )
    for _ in range(5):
        site.write()
        site.archiver(clock=lambda: next(clock)).run_once(threading.Event())
    assert site.archived() == site.journal()


# The source


def test_a_source_that_crashes_again_and_again_loses_nothing(
    own_site: Site, own_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    with own_site.daemon() as daemon:
        for _ in range(3):
            own_site.write()
            until(lambda: own_site.archived() == own_site.journal())
            own_site.write()
            own_server.restart()
            until(lambda: own_site.archived() == own_site.journal())
        own_server.crash()
        until(lambda: "Connection refused" in caplog.text)
        own_server._launch()
        own_site.write()
        until(lambda: own_site.archived() == own_site.journal())
        assert "SHD_SYN_101" in caplog.text
        assert daemon.error is None
    own_site.require_all()


def test_a_source_that_shuts_down_is_not_kept_from_it_by_an_open_file(
    own_site: Site, own_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "syncdata")
    own_site.production.options["rotate_s"] = 3600
    with own_site.daemon() as daemon:
        # The slot is in use a moment before the session reads: a shutdown in between is met as a lost source.
        until(lambda: "archiving what commits after" in caplog.text)
        own_site.write()
        shut_down(own_server)
        assert own_site.archived() == [1, 2, 3]
        own_server._launch()
        own_site.write()
        until(lambda: own_site.slot.active_pid is not None)
        assert daemon.error is None
    assert own_site.archived() == own_site.journal()


@pytest.mark.parametrize("transactions", [3, 30])  # read, and too many to be read
def test_a_source_that_shuts_down_is_not_kept_from_it_by_an_archive_that_is_away(
    own_site: Site, own_server: PostgresServer, caplog: pytest.LogCaptureFixture, transactions: int
) -> None:
    own_site.production.options["rotate_bytes"] = 1
    away = own_site.directory.with_name("away")
    with own_site.daemon() as daemon:
        until(lambda: own_site.slot.active_pid is not None)
        own_site.directory.rename(away)
        own_site.write(transactions)
        until(lambda: "SHD_SYN_107" in caplog.text)
        shut_down(own_server)
        away.rename(own_site.directory)
        own_server._launch()
        until(lambda: own_site.archived() == own_site.journal())
        assert daemon.error is None
    own_site.require_all()


def test_a_terminated_session_is_opened_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with site.daemon() as daemon:
        for _ in range(3):
            until(lambda: site.slot.active_pid is not None)
            site.write()
            site.production.execute(f"SELECT pg_terminate_backend({site.slot.active_pid})")
            until(lambda: site.archived() == site.journal())
        assert "SHD_SYN_101" in caplog.text
        assert daemon.error is None


def test_a_slot_that_another_reads_is_waited_for(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with ReplicationConnection(site.settings.params) as other:
        other.start(site.settings.slot_name, site.settings.publication)
        site.write()
        with site.daemon() as daemon:
            until(lambda: "SHD_SYN_103" in caplog.text)
            assert "is in use" in caplog.text
            other._connection.close()
            until(lambda: site.archived() == site.journal())
            assert daemon.error is None


def test_a_slot_that_another_goes_on_reading_is_said_at_last(site: Site) -> None:
    with ReplicationConnection(site.settings.params) as other:
        other.start(site.settings.slot_name, site.settings.publication)
        with pytest.raises(SlotInUseError, match="SHD_SYN_103"):
            site.run_once()


def test_two_archivers_on_one_slot_never_archive_the_same(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.write()
    site.run_once()
    other_spool = tmp_path / "other"
    shutil.copytree(site.production.spool_dir, other_spool)
    settings = Production(
        site.production.database,
        site.production.archive_dir,
        other_spool,
        site.production.slot_name,
        site.production.options,
    ).settings
    with site.daemon() as daemon:
        until(lambda: site.slot.active_pid is not None)
        with Daemon(Archiver(settings, site.open_archive)) as other:
            until(lambda: other.error or "is in use" in caplog.text)
            site.write()
            until(lambda: site.archived() == site.journal())
            until(lambda: other.error is not None)
        assert isinstance(other.error, SlotError | SourceChangedError)
        assert daemon.error is None
    site.require_all()


def test_a_slot_that_is_gone_needs_a_person(site: Site) -> None:
    site.production.drop_slot()
    with pytest.raises(SlotError, match=r"SHD_SYN_103: .*no replication slot .*setup_logical_replication"):
        site.run_once()
    site.production.create_slot()
    site.write()
    site.run_once()
    site.production.drop_slot()
    with pytest.raises(SlotError, match=r"SHD_SYN_103: .*no replication slot .*--new-epoch"):
        site.run_once()


def _recreate(site: Site) -> None:
    site.production.drop_slot()
    site.production.create_slot()


def _advance(site: Site) -> None:
    site.production.execute(
        f"SELECT pg_replication_slot_advance('{site.production.slot_name}', pg_current_wal_lsn())"
    )


@pytest.mark.parametrize("disturb", [_recreate, _advance])
def test_a_slot_that_others_moved_needs_a_person(site: Site, disturb: Callable[[Site], None]) -> None:
    site.write()
    site.run_once()
    site.write()
    disturb(site)
    site.write()
    with pytest.raises(SlotError, match=r"SHD_SYN_103: .*beyond what was confirmed.*--new-epoch"):
        site.run_once()
    before = site.chain
    site.archiver().begin_epoch()
    site.run_once()
    assert site.archived() == [1, 2, 3, 7, 8, 9]  # the hole, but the chain says that there is one
    assert site.chain.epoch != before.epoch


def test_a_slot_that_is_moved_in_the_last_moment_is_noticed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write()
    site.run_once()
    site.write()
    start = ReplicationConnection.start

    def start_late(
        stream: ReplicationConnection, slot: str, publication: str, *, with_messages: bool = False
    ) -> None:
        _advance(site)
        start(stream, slot, publication, with_messages=with_messages)

    monkeypatch.setattr(ReplicationConnection, "start", start_late)
    with pytest.raises(SlotError, match="SHD_SYN_103: .*beyond what was confirmed"):
        site.run_once()


def test_a_slot_of_another_plugin_is_refused(site: Site) -> None:
    site.production.drop_slot()
    site.production.execute(f"SELECT pg_create_physical_replication_slot('{site.production.slot_name}')")
    with pytest.raises(SlotError, match="SHD_SYN_103: .*not of the plugin pgoutput"):
        site.run_once()


@pytest.mark.parametrize("then", [[], ["CREATE PUBLICATION syncdata FOR TABLE journal"]])
def test_a_publication_that_was_missing_for_a_while_leaves_no_silent_hole(
    any_postgres: PostgresServer, make_production: Callable[..., Production], then: list[str]
) -> None:
    production = make_production(any_postgres)
    site = site_of(production, production.open_archive, production.archive_dir)
    site.write()
    site.run_once()
    site.production.execute("DROP PUBLICATION syncdata")
    site.write()
    site.production.execute(*then)
    site.write()
    for _ in range(2):
        with pytest.raises(SourceSetupError, match=r"SHD_SYN_102: .*publication .*--drop"):
            site.run_once()
    assert site.archived() == [1, 2, 3]


def test_a_slot_whose_wal_was_removed_needs_a_person(own_site: Site) -> None:
    own_site.write()
    own_site.run_once()
    own_site.production.execute(
        "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'",
        "SELECT pg_reload_conf()",
        *("INSERT INTO private VALUES (1)", "SELECT pg_switch_wal()", "CHECKPOINT") * 4,
    )
    until(lambda: own_site.slot.is_lost)
    with pytest.raises(SlotError, match=r"SHD_SYN_103: .*has removed WAL.*--new-epoch"):
        own_site.run_once()


def test_another_system_in_the_sources_place_is_refused(own_site: Site, own_server: PostgresServer) -> None:
    own_site.write()
    own_site.run_once()
    own_server.crash()
    other = PostgresServer(binaries=own_server.binaries, port=own_server.port, password=own_server.password)
    other.start()
    try:
        name = own_site.production.database.name
        with other.connect(autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        with pytest.raises(SourceChangedError, match="SHD_SYN_104: the source is another system"):
            own_site.run_once()
    finally:
        other.stop()
    own_server._launch()
    own_site.write()
    own_site.require_all()


def test_another_timeline_with_the_same_slot_goes_on(own_site: Site, own_server: PostgresServer) -> None:
    """Where something is missing it does not: see test_failover.py."""
    own_site.write()
    own_site.run_once()
    epoch = own_site.chain.epoch
    shut_down(own_server)
    (own_server._data / "standby.signal").touch()
    own_server._launch()
    own_site.production.execute("SELECT pg_promote()")
    own_site.write()
    own_site.require_all()
    assert (own_site.chain.timeline, own_site.chain.epoch) == (2, epoch)


def test_a_source_that_was_restored_from_an_older_copy_is_refused(
    own_site: Site, own_server: PostgresServer, tmp_path: Path
) -> None:
    own_site.write()
    own_site.run_once()
    shut_down(own_server)
    copy = own_server._data.with_name("copy")
    subprocess.run(["cp", "-a", str(own_server._data), str(copy)], check=True)
    own_server._launch()
    own_site.write(transactions=5, text="x" * 100_000)
    own_site.run_once()
    shut_down(own_server)
    shutil.rmtree(own_server._data)
    copy.rename(own_server._data)
    own_server._launch()
    with pytest.raises(SourceChangedError, match="SHD_SYN_104: .*restored from an older copy"):
        own_site.run_once()


def test_a_new_epoch_that_is_cut_short_can_be_begun_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.run_once()
    _leave_a_file_in_the_spool(site)
    for failing in (1, 2):
        calls = count(1)

        def save_or_fail(directory: Path, chain: Chain, calls: Any = calls, failing: int = failing) -> None:
            if next(calls) == failing:
                raise SpoolError("cut short")
            save_chain(directory, chain)

        monkeypatch.setattr(opening, "save_chain", save_or_fail)
        with pytest.raises(SpoolError, match="cut short"):
            site.archiver().begin_epoch()
    monkeypatch.setattr(opening, "save_chain", save_chain)
    site.archiver().begin_epoch()
    site.write()
    site.run_once()
    names = sorted(path.name for path in site.directory.glob("changes_*"))
    headers = []
    for name in names:
        with (site.directory / name).open("rb") as stream:
            headers.append(inspect(stream, name).header)
    assert [header.seq for header in headers if header] == [1, 1]
    assert set(site.archived()) == set(site.journal())


def _leave_a_file_in_the_spool(site: Site) -> None:
    """Archive until a file is finished, and no further."""

    class Refusing(Archive):
        def put(self, name: str, content: BinaryIO) -> None:
            raise DeliveryError("not now")

    site.write()
    refusing = Archiver(site.settings, lambda: Refusing(LocalStorage(site.directory)))
    with pytest.raises(SyncError, match="not now"):
        refusing.run_once(threading.Event())
    assert list(site.production.spool_dir.glob("changes_*"))


def test_an_idle_sources_slot_goes_on_and_pins_no_wal(site: Site) -> None:
    with site.daemon():
        until(lambda: site.slot.active_pid is not None)
        before = site.slot
        site.production.execute(*["INSERT INTO private SELECT generate_series(1, 10000)"] * 3)
        end = site.slot.wal_lsn
        until(lambda: (site.slot.confirmed_lsn or 0) >= end)
        site.production.execute("CHECKPOINT")  # it logs what runs, which the slot needs to go on
        site.production.execute("INSERT INTO private VALUES (1)", "CHECKPOINT")
        until(lambda: site.slot.retained_bytes < 100_000)
        assert site.slot.confirmed_lsn != before.confirmed_lsn
    assert site.archived() == []
    assert site.chain.seq == 0


def test_what_was_archived_through_every_disturbance_can_be_read(
    far_site: Site, sshd: SshServer, world: World
) -> None:
    world.execute("CREATE TABLE journal (number int PRIMARY KEY, note text)")
    world.options |= {"archive_dir": str(sshd.archive_dir)}
    world.whitelist("journal")
    with far_site.daemon():
        for number in range(4):
            far_site.write(20, text=f"né {number}")
            sshd.cut()
            far_site.production.execute(
                f"UPDATE journal SET note = note || '!' WHERE number % 3 = {number % 3}"
            )
            if far_site.slot.active_pid:
                far_site.production.execute(f"SELECT pg_terminate_backend({far_site.slot.active_pid})")
    far_site.run_once()
    world.sync()
    query = "SELECT * FROM journal ORDER BY number"
    assert world.rows(query) == far_site.production.rows(query)
