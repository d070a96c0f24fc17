"""What stands for production: a workload's database, a slot that has all its changes, and their archive.

Each reader gets a copy of the slot, so that all of them read the same changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.archives import Stream
from benchmarks.servers import checksum, drop_database, execute, make_database, value
from benchmarks.workloads import Workload
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.archiver import Archiver
from syncdata.capture.settings import CaptureSettings
from syncsite.demo.postgres import PostgresServer

PUBLICATION = "bench"
_DECLARED = "DECLARE k bigint; k2 bigint; c float8; t text; hit int; done int := 0;"
_slots = count(1)


@dataclass(slots=True, kw_only=True)
class Source:
    """*folder* holds what was archived; `work` has not been done when it is made."""

    server: PostgresServer
    workload: Workload
    folder: Path
    end_lsn: str = ""
    checksum: str = ""

    @property
    def database(self) -> str:
        return self.workload.database

    @property
    def backlog(self) -> str:
        return f"backlog_of_{self.database}"

    def work(self) -> None:
        """Do the workload's changes; its slot has them from then on."""
        execute(
            self.server,
            self.database,
            f"CREATE PUBLICATION {PUBLICATION} FOR TABLE {', '.join(self.workload.tables)}",
            f"SELECT pg_create_logical_replication_slot('{self.backlog}', 'pgoutput')",
            "CREATE PROCEDURE work() LANGUAGE plpgsql AS"
            f" $work$ {_DECLARED} BEGIN {self.workload.changes} END $work$",
        )
        execute(
            self.server,
            self.database,
            "SET synchronous_commit = off",
            "SELECT setseed(0.5)",
            "CALL work()",
            "CHECKPOINT",
        )
        self.end_lsn = value(self.server, self.database, "SELECT pg_current_wal_flush_lsn()")
        self.checksum = checksum(self.server, self.database, self.workload.tables)

    @property
    def _chain_slot(self) -> str:
        return f"chain_of_{self.database}"

    def archive(self) -> Stream:
        """Archive all changes into one file; return what is in it."""
        directory = self.folder / "archive"
        self._copy_backlog(self._chain_slot)
        directory.mkdir()
        settings = self.capture_settings(self._chain_slot, self.folder / "spool", rotate_bytes=1 << 40)
        Archiver(settings, lambda: open_archive(LocalSettings(directory=directory))).run_once(
            threading.Event()
        )
        return Stream(directory)

    def capture_settings(self, slot: str, spool_dir: Path, rotate_bytes: int = 1 << 26) -> CaptureSettings:
        return CaptureSettings(
            params=self.server.params(self.database),
            slot_name=slot,
            publication=PUBLICATION,
            spool_dir=spool_dir,
            rotate_s=3600,
            rotate_bytes=rotate_bytes,
        )

    def copy_slot(self) -> str:
        """Return the name of a new slot that stands where the changes begin; those before it are dropped."""
        name = f"copy_{next(_slots)}_of_{self.database}"
        self._drop_slots("copy_%")
        self._copy_backlog(name)
        return name

    def _copy_backlog(self, name: str) -> None:
        statement = f"SELECT pg_copy_logical_replication_slot('{self.backlog}', '{name}')"
        execute(self.server, self.database, statement)

    def _drop_slots(self, names: str) -> None:
        execute(
            self.server,
            self.database,
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active"
            f" AND database = current_database() AND slot_name LIKE '{names}'",
        )

    def types(self) -> dict[str, dict[str, str]]:
        """Return the type of each column, by table."""
        query = (
            "SELECT table_name::text, column_name::text, udt_name::text FROM information_schema.columns"
            " WHERE table_schema = 'public'"
        )
        found: dict[str, dict[str, str]] = {}
        with self.server.connect(self.database) as connection:
            for table, column, type_ in connection.execute(query):
                found.setdefault(table, {})[column] = type_
        return found

    def remove(self) -> None:
        self._drop_slots("%")
        drop_database(self.server, self.database)


@contextmanager
def new_source(server: PostgresServer, workload: Workload, folder: Path) -> Iterator[Source]:
    """A source with the workload's first rows, as long as the block runs."""
    source = Source(server=server, workload=workload, folder=folder)
    make_database(server, source.database)
    try:
        execute(server, source.database, *workload.schema, *workload.first_rows, "VACUUM ANALYZE")
        yield source
    finally:
        source.remove()
