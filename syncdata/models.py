"""The five tables of syncdata: their columns, defaults and indexes.

The engine reads and writes them with SQL of its own, in the transaction that holds the rows, so every
default is a database default. Where the predecessor has the table, its columns come first and in its
order, so that an adopted table (see :mod:`syncdata.adoption`) equals a created one.
"""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.functions import RandomUUID
from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Now

from syncdata.engine.changes import format_lsn, parse_lsn
from syncdata.engine.errors import WhitelistAddError
from syncdata.engine.whitelist import parse_syncable


class LsnField(models.Field):
    """A WAL position: ``X/Y`` text here, ``pg_lsn`` in the database, which alone may compare it."""

    description = "WAL position"

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "pg_lsn"

    def to_python(self, value: Any) -> str | None:
        if value is None or value == "":
            return None
        try:
            return format_lsn(parse_lsn(value))
        except ValueError as error:
            raise ValidationError("%(value)s is not an LSN.", params={"value": value}) from error

    def get_prep_value(self, value: Any) -> Any:
        value = super().get_prep_value(value)
        return self.to_python(value) if isinstance(value, str) else value


class TableToSync(models.Model):
    """A row of the whitelist: this table follows the archive."""

    id = models.AutoField(primary_key=True)
    table_name = models.TextField(
        "table", help_text="For example users, or shop.users for a table outside the schema public."
    )
    creator = models.TextField("added by", null=True, blank=True, editable=False)
    created_at = models.DateTimeField("added at", null=True, db_default=Now(), editable=False)

    class Meta:
        db_table = "tables_to_sync"
        verbose_name = "table to sync"
        verbose_name_plural = "tables to sync"
        constraints = [
            models.UniqueConstraint(
                fields=["table_name"],
                name="tables_to_sync_table_name_key",
                violation_error_message="This table is in the whitelist already.",
            )
        ]

    def __str__(self) -> str:
        return self.table_name

    def clean(self) -> None:
        try:
            self.table_name = str(parse_syncable(self.table_name))
        except WhitelistAddError as error:
            raise ValidationError({"table_name": str(error)}) from error


class SyncLog(models.Model):
    """What one file, snapshot, resync or clear did to one table. Append-only."""

    class Status(models.TextChoices):
        SUCCESS = "SUCCESS", "SUCCESS"
        FAILED = "FAILED", "FAILED"

    class Action(models.TextChoices):
        SYNC = "sync", "sync"
        RESYNC = "resync", "resync"
        CLEAR = "clear", "clear"
        SNAPSHOT = "snapshot", "snapshot"

    id = models.UUIDField(primary_key=True, db_default=RandomUUID())
    table_name = models.TextField("table")
    status = models.TextField(choices=Status)
    rows_synced = models.IntegerField(db_default=0)
    archive_ref = models.TextField("change file", null=True)
    error_detail = models.TextField("error", null=True)
    # NULL only where the predecessor left it so: a time that nobody recorded is not made up.
    sync_time = models.DateTimeField("time", null=True, db_default=Now())
    action = models.TextField(choices=Action, db_default=Action.SYNC.value)
    records_added = models.BigIntegerField("added", db_default=0)
    records_updated = models.BigIntegerField("updated", db_default=0)
    records_deleted = models.BigIntegerField("deleted", db_default=0)
    records_truncated = models.BigIntegerField("truncated", db_default=0)
    records_missing = models.BigIntegerField("missing", db_default=0)
    duration_ms = models.BigIntegerField("duration (ms)", db_default=0)

    class Meta:
        db_table = "data_sync_logs"
        verbose_name = "sync log entry"
        verbose_name_plural = "sync log"
        indexes = [
            models.Index(fields=["table_name", "sync_time"], name="idx_sync_logs_table_time"),
            models.Index(fields=["status"], name="idx_sync_logs_status"),
            models.Index(fields=["-sync_time", "-id"], name="idx_sync_logs_time"),
        ]

    def __str__(self) -> str:
        return f"{self.table_name} {self.action} {self.status}"


class SyncMetric(models.Model):
    """Records applied to one table in one period, counted in the transaction that applied them."""

    class PeriodType(models.TextChoices):
        FREQ = "FREQ", "FREQ"
        WEEK = "WEEK", "WEEK"
        MONTH = "MONTH", "MONTH"

    id = models.AutoField(primary_key=True)
    table_name = models.TextField("table")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    period_type = models.TextField("period", choices=PeriodType)
    records_added = models.BigIntegerField("added", db_default=0)
    records_updated = models.BigIntegerField("updated", db_default=0)
    records_deleted = models.BigIntegerField("deleted", db_default=0)

    class Meta:
        db_table = "data_sync_metrics"
        verbose_name = "metric"
        constraints = [
            models.UniqueConstraint(
                fields=["table_name", "period_start", "period_type"],
                name="data_sync_metrics_table_name_period_start_period_type_key",
            )
        ]
        indexes = [
            models.Index(fields=["table_name", "period_start"], name="idx_sync_metrics_table_period"),
            models.Index(fields=["-period_start", "-id"], name="idx_sync_metrics_period"),
        ]

    def __str__(self) -> str:
        return f"{self.table_name} {self.period_type} {self.period_start:%Y-%m-%d %H:%M}"


class Checkpoint(models.Model):
    """How far one table's records have been durably applied. Written by the engine only.

    ``record_number`` records of ``file`` are applied; ``commit_lsn`` is the last applied commit's, or that of
    the snapshot the rows came from.
    The ``file_*`` counts are those of ``file`` so far: when it is finished they move to the log.
    """

    class State(models.TextChoices):
        ACTIVE = "active", "active"
        BLOCKED = "blocked", "blocked"

    table_name = models.TextField("table")
    file = models.TextField("change file", db_default="")
    file_size = models.BigIntegerField("file size in bytes", null=True)
    file_finished = models.BooleanField(db_default=False)
    record_number = models.BigIntegerField(db_default=0)
    commit_lsn = LsnField("commit LSN", null=True)
    last_lsn = LsnField("LSN of the newest record", null=True)
    source_id = models.TextField("source", db_default="")
    state = models.TextField(choices=State, db_default=State.ACTIVE.value)
    error = models.TextField(null=True)
    blocked_at = models.DateTimeField(null=True)
    last_change_at = models.DateTimeField(null=True)
    last_sync_at = models.DateTimeField("last sync", null=True)
    rows_synced = models.BigIntegerField(db_default=0)
    records_added = models.BigIntegerField("added", db_default=0)
    records_updated = models.BigIntegerField("updated", db_default=0)
    records_deleted = models.BigIntegerField("deleted", db_default=0)
    records_truncated = models.BigIntegerField("truncated", db_default=0)
    records_missing = models.BigIntegerField("missing", db_default=0)
    file_added = models.BigIntegerField(db_default=0)
    file_updated = models.BigIntegerField(db_default=0)
    file_deleted = models.BigIntegerField(db_default=0)
    file_truncated = models.BigIntegerField(db_default=0)
    file_missing = models.BigIntegerField(db_default=0)
    file_duration_ms = models.BigIntegerField(db_default=0)

    class Meta:
        db_table = "data_sync_checkpoints"
        constraints = [
            models.UniqueConstraint(fields=["table_name"], name="data_sync_checkpoints_table_name_key")
        ]

    def __str__(self) -> str:
        return f"{self.table_name} at {self.position or 'the start'}"

    @property
    def position(self) -> str:
        """``file:record``, or an empty string before the first file."""
        return f"{self.file}:{self.record_number}" if self.file else ""


class SyncRun(models.Model):
    """One run of the daemon, from start to stop."""

    host = models.TextField()
    pid = models.IntegerField("process id")
    sync_frequency = models.IntegerField("sync frequency (s)")
    started_at = models.DateTimeField("started", db_default=Now())
    stopped_at = models.DateTimeField("stopped", null=True)
    last_sync_at = models.DateTimeField("last sync", null=True)
    records_synced = models.BigIntegerField(db_default=0)
    errors = models.BigIntegerField(db_default=0)
    last_error = models.TextField(null=True)

    class Meta:
        db_table = "data_sync_runs"
        verbose_name = "daemon run"

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid}"
