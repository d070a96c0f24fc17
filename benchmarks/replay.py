"""The ways that a stream of changes gets into the target: ours, a native subscription, and COPY as the bound.

Each works on a database of its own, a copy of one that has the first rows, and must leave the source's rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import BinaryIO

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from benchmarks.archives import to_toml
from benchmarks.figures import Figures, manage, server_cpu_s
from benchmarks.servers import checksum, copy_rows, drop_database, execute, make_database, value
from benchmarks.source import PUBLICATION, Source
from syncdata.changes.position import format_lsn
from syncsite.demo.postgres import PostgresServer

_BLOCK_BYTES = 1 << 18
_LOOK_EVERY_S = 0.005
_GIVE_UP_S = 1800
_MIGRATED = "bench_migrated"
_numbers = count(1)


@dataclass(slots=True, kw_only=True)
class Target:
    """The local side. *start* is what a run takes that finds nothing to do."""

    server: PostgresServer
    source: Source
    folder: Path
    start: Figures = field(default_factory=lambda: Figures(records=0, seconds=0.0))

    @property
    def template(self) -> str:
        return f"{self.source.database}_before"

    def make_template(self) -> None:
        """Make the database that each way begins with: tables, first rows, our own tables, the whitelist."""
        tables = self.source.workload.tables
        self._make_migrated()
        make_database(self.server, self.template, _MIGRATED)
        execute(self.server, self.template, *self.source.workload.schema)
        with (
            self.source.server.connect(self.source.database) as source,
            self.server.connect(self.template) as target,
        ):
            copy_rows(source, target, tables)
            target.cursor().executemany(
                "INSERT INTO tables_to_sync (table_name) VALUES (%s)", [(table,) for table in tables]
            )
        execute(self.server, self.template, "VACUUM ANALYZE")

    def _make_migrated(self) -> None:
        """Make the database that has our own tables and no others, unless there is one."""
        query = f"SELECT count(*) FROM pg_database WHERE datname = '{_MIGRATED}'"
        if value(self.server, "postgres", query) == "0":
            make_database(self.server, _MIGRATED)
            manage(self.write_config(_MIGRATED, {}), "migrate", "-v", "0")

    def write_config(self, database: str, archive: Mapping[str, object], **more: object) -> Path:
        keys = {
            "archive_backend": "local",
            "archive_dir": str(self.folder),
            "pg_host": self.server.host,
            "pg_port": self.server.port,
            "pg_user": self.server.user,
            "pg_password": self.server.password,
            "pg_database": database,
        }
        config = self.folder / "syncdata.toml"
        config.touch(mode=0o600)
        config.write_text(to_toml(keys | dict(archive) | more))
        return config

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The name of a new copy of the template, as long as the block runs."""
        name = f"bench_run_{next(_numbers)}"
        make_database(self.server, name, self.template)
        try:
            yield name
        finally:
            drop_database(self.server, name)

    def check(self, database: str) -> None:
        """Raise RuntimeError unless the rows there are the source's."""
        found = checksum(self.server, database, self.source.workload.tables)
        if found != self.source.checksum:
            raise RuntimeError(
                f"{self.source.workload.name}: {found}, but the source has {self.source.checksum}"
            )

    def ours(self, archive: Mapping[str, object]) -> Figures:
        """Apply all files of *archive*, some keys of a configuration. The seconds are the run's own."""
        with self.fresh() as database:
            config = self.write_config(database, archive)
            figures = self.timed(config, 0, "syncdata_start", "--once")
            with self.server.connect(database) as connection:
                row = connection.execute(
                    "SELECT records_synced, extract(epoch FROM last_sync_at - started_at)::float"
                    " FROM data_sync_runs"
                ).fetchone()
            self.check(database)
        assert row is not None
        return msgspec.structs.replace(figures, records=row[0], seconds=row[1])

    def timed(self, config: Path, records: int, *arguments: str) -> Figures:
        """Run a command; return what it took beyond a run that finds nothing to do."""
        before_s, started = server_cpu_s(self.server), time.monotonic()
        usage = manage(config, *arguments, "-v", "0")
        seconds = time.monotonic() - started
        return Figures(
            records=records,
            seconds=max(seconds - self.start.seconds, 0.001),
            client_s=max(usage.cpu_s - (self.start.client_s or 0), 0.0),
            server_s=server_cpu_s(self.server) - before_s,
            peak_mib=usage.peak_mib,
        )

    def native(self, records: int, last_commit_lsn: int) -> Figures:
        """Let a subscription take the same changes from a slot; the time is from its worker's start on."""
        slot = self.source.copy_slot()
        connection_text = make_conninfo(**self.source.server.params(self.source.database))
        with self.fresh() as database:
            subscription = f"bench_{database}"
            with self.server.connect(database, autocommit=True) as connection:
                connection.execute(
                    sql.SQL(
                        "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH (create_slot = false,"
                        " copy_data = false, enabled = false, slot_name = {})"
                    ).format(sql.Identifier(subscription), connection_text, sql.Identifier(PUBLICATION), slot)
                )
                before_s, source_before_s = server_cpu_s(self.server), server_cpu_s(self.source.server)
                connection.execute(f"ALTER SUBSCRIPTION {subscription} ENABLE")
                try:
                    seconds = self._until_caught_up(database, format_lsn(last_commit_lsn))
                    source_s = server_cpu_s(self.source.server) - source_before_s
                    server_s = server_cpu_s(self.server) - before_s
                finally:
                    for statement in ("DISABLE", "SET (slot_name = NONE)"):
                        connection.execute(f"ALTER SUBSCRIPTION {subscription} {statement}")
                    connection.execute(f"DROP SUBSCRIPTION {subscription}")
            self.check(database)
        return Figures(records=records, seconds=seconds, server_s=server_s, source_s=source_s)

    def _until_caught_up(self, database: str, lsn: str) -> float:
        """Return the seconds from the worker's start until the transaction at *lsn* is visible here."""
        started_query = (
            "SELECT extract(epoch FROM backend_start)::float FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type LIKE 'logical replication%worker'"
        )
        query = (
            "SELECT extract(epoch FROM clock_timestamp())::float FROM pg_subscription s"
            " JOIN pg_replication_origin_status o ON o.external_id = 'pg_' || s.oid"
            " JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()"
            " WHERE o.remote_lsn >= %s::pg_lsn"
        )
        give_up_at, started = time.monotonic() + _GIVE_UP_S, None
        with self.server.connect(database, autocommit=True) as connection:
            while time.monotonic() < give_up_at:
                started = started or connection.execute(started_query).fetchone()
                done = started and connection.execute(query, (lsn,)).fetchone()
                if started and done:
                    return float(done[0] - started[0])
                time.sleep(_LOOK_EVERY_S)
        raise RuntimeError("the subscription did not catch up")

    def copy(self) -> Figures:
        """COPY the source's last rows, made ready before, into the same tables, empty, with their indexes."""
        with self.fresh() as database, tempfile.TemporaryDirectory(dir=self.folder) as folder:
            tables = self.source.workload.tables
            execute(self.server, database, f"TRUNCATE {', '.join(tables)}", "CHECKPOINT")
            rows = sum(self._write_rows(table, Path(folder) / table) for table in tables)
            before_s = server_cpu_s(self.server)
            started = time.monotonic()
            with self.server.connect(database) as connection:
                for table in tables:
                    with (Path(folder) / table).open("rb") as file:
                        self._copy_in(connection, table, file)
            seconds = time.monotonic() - started
            server_s = server_cpu_s(self.server) - before_s
            self.check(database)
        return Figures(records=rows, seconds=seconds, server_s=server_s)

    def _copy_in(self, connection: psycopg.Connection, table: str, file: BinaryIO) -> None:
        with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            while block := file.read(_BLOCK_BYTES):
                copy.write(block)

    def _write_rows(self, table: str, path: Path) -> int:
        with self.source.server.connect(self.source.database) as connection, path.open("wb") as file:
            cursor = connection.cursor()
            with cursor.copy(f"COPY {table} TO STDOUT") as copy:
                for block in copy:
                    file.write(block)
            return cursor.rowcount

    def measure_start(self) -> None:
        """Find `start`: with a database without tables to sync, and an empty archive."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        with self.fresh() as database:
            execute(self.server, database, "DELETE FROM tables_to_sync")
            config = self.write_config(database, {"archive_dir": str(empty)})
            self.start = self.timed(config, 0, "syncdata_start", "--once")


@contextmanager
def new_target(server: PostgresServer, source: Source, folder: Path) -> Iterator[Target]:
    """The local side of *source*, with its first rows; the source's changes come later."""
    target = Target(server=server, source=source, folder=folder)
    try:
        target.make_template()
        target.measure_start()
        yield target
    finally:
        drop_database(server, target.template)
