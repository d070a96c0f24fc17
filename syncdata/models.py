"""The tables of syncdata: their columns, defaults and indexes.

`apply` reads and writes them with SQL of its own, in the transaction that holds the rows, so every
default is a database default. Where the predecessor has the table, its columns come first and in its
order, so that an adopted table (see :mod:`syncdata.predecessor.adoption`) equals a created one. An error's
text stands beside its parts as data: nothing takes the text apart.
"""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.functions import RandomUUID
from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from syncdata.apply.whitelist import parse_syncable
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.errors import WhitelistAddError


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
        _("table"), help_text=_("For example users, or shop.users for a table outside the schema public.")
    )
    creator = models.TextField(_("added by"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("added at"), null=True, db_default=Now(), editable=False)

    class Meta:
        db_table = "tables_to_sync"
        verbose_name = _("table to sync")
        verbose_name_plural = _("tables to sync")
        permissions = [
            ("resync_table", _("Can rebuild tables from the archive")),
            ("pause_table", _("Can pause and resume tables")),
            ("retry_table", _("Can have blocked tables tried again at once")),
            ("skip_record", _("Can skip a record that blocks a table")),
            ("clear_table", _("Can empty tables and sync them anew")),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["table_name"],
                name="tables_to_sync_table_name_key",
                violation_error_message=_("This table is in the whitelist already."),
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
    """An entry of the audit log: the effect of one file, snapshot or action on one table. Append-only."""

    class Status(models.TextChoices):
        SUCCESS = "SUCCESS", "SUCCESS"
        FAILED = "FAILED", "FAILED"

    class Action(models.TextChoices):
        SYNC = "sync", "sync"
        RESYNC = "resync", "resync"
        CLEAR = "clear", "clear"
        SNAPSHOT = "snapshot", "snapshot"
        PAUSE = "pause", "pause"
        RESUME = "resume", "resume"
        SKIP = "skip", "skip"
        WHOLE = "whole", "whole"

    id = models.UUIDField(primary_key=True, db_default=RandomUUID())
    table_name = models.TextField(_("table"))
    status = models.TextField(choices=Status)
    rows_synced = models.IntegerField(db_default=0)
    archive_ref = models.TextField(_("change file"), null=True)
    error_detail = models.TextField(_("error"), null=True)
    # NULL only in the predecessor's rows, which may lack the time; no time is made up for them.
    sync_time = models.DateTimeField(_("time"), null=True, db_default=Now())
    action = models.TextField(choices=Action, db_default=Action.SYNC.value)
    records_added = models.BigIntegerField(_("added"), db_default=0)
    records_updated = models.BigIntegerField(_("updated"), db_default=0)
    records_deleted = models.BigIntegerField(_("deleted"), db_default=0)
    records_truncated = models.BigIntegerField(_("truncated"), db_default=0)
    records_missing = models.BigIntegerField(_("missing"), db_default=0)
    duration_ms = models.BigIntegerField(_("duration (ms)"), db_default=0)
    requested_by = models.TextField(_("asked for by"), null=True)

    class Meta:
        db_table = "data_sync_logs"
        verbose_name = _("sync log entry")
        verbose_name_plural = _("sync log")
        indexes = [
            models.Index(fields=["table_name", "sync_time"], name="idx_sync_logs_table_time"),
            models.Index(fields=["status"], name="idx_sync_logs_status"),
            models.Index(fields=["-sync_time", "-id"], name="idx_sync_logs_time"),
            # Indexes for searches, and for rare entries: finding a hundred by time would read the whole log.
            models.Index(fields=["archive_ref"], opclasses=["text_pattern_ops"], name="idx_sync_logs_ref"),
            models.Index(
                fields=["-sync_time", "-id"],
                name="idx_sync_logs_errors",
                condition=models.Q(error_detail__isnull=False),
            ),
            models.Index(
                fields=["-sync_time", "-id"],
                name="idx_sync_logs_actions",
                condition=~models.Q(action="sync"),
            ),
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
    table_name = models.TextField(_("table"))
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    period_type = models.TextField(_("period"), choices=PeriodType)
    records_added = models.BigIntegerField(_("added"), db_default=0)
    records_updated = models.BigIntegerField(_("updated"), db_default=0)
    records_deleted = models.BigIntegerField(_("deleted"), db_default=0)

    class Meta:
        db_table = "data_sync_metrics"
        verbose_name = _("metric")
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
    """The checkpoint of one table: how far its records have been durably applied. Only `apply` writes it.

    ``record_number`` records of ``file`` are applied; ``commit_lsn`` is the last applied commit's, or that of
    the snapshot the rows came from. The ``file_*`` counts are those of ``file`` so far: when it is finished
    they move to the log.
    """

    class State(models.TextChoices):
        ACTIVE = "active", "active"
        BLOCKED = "blocked", "blocked"
        PAUSED = "paused", "paused"

    table_name = models.TextField(_("table"))
    file = models.TextField(_("change file"), db_default="")
    file_size = models.BigIntegerField(_("file size in bytes"), null=True)
    file_finished = models.BooleanField(db_default=False)
    record_number = models.BigIntegerField(db_default=0)
    commit_lsn = LsnField(_("commit LSN"), null=True)
    last_lsn = LsnField(_("LSN of the newest record"), null=True)
    source_id = models.TextField(_("source"), db_default="")
    state = models.TextField(choices=State, db_default=State.ACTIVE.value)
    error = models.TextField(null=True)
    error_code = models.TextField(null=True)
    error_file = models.TextField(null=True)
    error_line = models.BigIntegerField(null=True)
    error_hint = models.TextField(null=True)
    # The records that an operator has said to skip, each with who said so.
    skips = models.JSONField(db_default=models.Value([], models.JSONField()))
    # Why the table is not simply active, though no error holds it: apply/state/marks.py.
    marks = models.JSONField(db_default=models.Value([], models.JSONField()))
    # The table as production published it at the checkpoint (changes/catalog.py); NULL without a catalog.
    published = models.JSONField(null=True)
    # The oid of the local table that the rows went to: one made anew under the same name has another. It
    # means something only in the database where it was noted, as this table's own oid tells.
    local_oid = models.BigIntegerField(null=True)
    home_oid = models.BigIntegerField(null=True)
    blocked_at = models.DateTimeField(null=True)
    last_change_at = models.DateTimeField(null=True)
    last_sync_at = models.DateTimeField(_("last sync"), null=True)
    rows_synced = models.BigIntegerField(db_default=0)
    records_added = models.BigIntegerField(_("added"), db_default=0)
    records_updated = models.BigIntegerField(_("updated"), db_default=0)
    records_deleted = models.BigIntegerField(_("deleted"), db_default=0)
    records_truncated = models.BigIntegerField(_("truncated"), db_default=0)
    records_missing = models.BigIntegerField(_("missing"), db_default=0)
    file_added = models.BigIntegerField(db_default=0)
    file_updated = models.BigIntegerField(db_default=0)
    file_deleted = models.BigIntegerField(db_default=0)
    file_truncated = models.BigIntegerField(db_default=0)
    file_missing = models.BigIntegerField(db_default=0)
    file_duration_ms = models.BigIntegerField(db_default=0)

    class Meta:
        db_table = "data_sync_checkpoints"
        verbose_name = _("table checkpoint")
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
    pid = models.IntegerField(_("process id"))
    sync_frequency = models.IntegerField(_("sync frequency (s)"))
    started_at = models.DateTimeField(_("started"), db_default=Now())
    stopped_at = models.DateTimeField(_("stopped"), null=True)
    last_sync_at = models.DateTimeField(_("last sync"), null=True)
    records_synced = models.BigIntegerField(db_default=0)
    errors = models.BigIntegerField(db_default=0)
    # Those among them that nobody foresaw, and that should be reported.
    unexpected_errors = models.BigIntegerField(db_default=0)
    last_error = models.TextField(null=True)
    error_code = models.TextField(null=True)
    error_file = models.TextField(null=True)
    error_line = models.BigIntegerField(null=True)
    error_hint = models.TextField(null=True)
    # The archive's head.json as it was read last, and when it was first seen like that.
    head = models.JSONField(null=True)
    head_read_at = models.DateTimeField(null=True)
    head_changed_at = models.DateTimeField(null=True)
    # The files that the newest cycle found and that some table still has to go through.
    waiting_files = models.IntegerField(db_default=0)
    waiting_bytes = models.BigIntegerField(db_default=0)

    class Meta:
        db_table = "data_sync_runs"
        verbose_name = _("run of the daemon")
        verbose_name_plural = _("runs of the daemon")

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid}"


class SyncMinute(models.Model):
    """The records applied in one minute of the last two days.

    ``lag_s``: the greatest age, when it was applied, of the newest change of a batch.
    """

    minute = models.DateTimeField(primary_key=True)
    records_added = models.BigIntegerField(db_default=0)
    records_updated = models.BigIntegerField(db_default=0)
    records_deleted = models.BigIntegerField(db_default=0)
    records_truncated = models.BigIntegerField(db_default=0)
    lag_s = models.FloatField(null=True)

    class Meta:
        db_table = "data_sync_minutes"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.minute:%Y-%m-%d %H:%M}"


class SyncRequest(models.Model):
    """An operator's request to the daemon, for some tables, and its outcome."""

    class Action(models.TextChoices):
        RESYNC = "resync", _("resync")
        PAUSE = "pause", _("pause")
        RESUME = "resume", _("resume")
        RETRY = "retry", _("retry")
        SKIP = "skip", _("skip a record")
        CLEAR = "clear", _("clear")

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        RUNNING = "running", _("running")
        DONE = "done", _("done")
        FAILED = "failed", _("failed")

    action = models.TextField(choices=Action)
    table_names = ArrayField(models.TextField(), verbose_name=_("tables"))
    place = models.TextField(db_default="", help_text=_("The record to skip, as file:line."))
    requested_by = models.TextField(_("asked for by"), db_default="")
    requested_at = models.DateTimeField(_("asked for at"), db_default=Now())
    state = models.TextField(choices=State, db_default=State.WAITING.value)
    attempts = models.IntegerField(db_default=0)
    progress = models.TextField(db_default="")
    error = models.TextField(null=True)
    error_code = models.TextField(null=True)
    error_file = models.TextField(null=True)
    error_line = models.BigIntegerField(null=True)
    error_hint = models.TextField(null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)

    class Meta:
        db_table = "data_sync_requests"
        verbose_name = _("request")
        indexes = [
            models.Index(
                fields=["id"],
                name="idx_sync_requests_open",
                condition=models.Q(state__in=["waiting", "running"]),
            )
        ]

    def __str__(self) -> str:
        return f"{self.action} {', '.join(self.table_names)}"


class SyncVerification(models.Model):
    """What came of one check: some rows of a table held to what production had at the same position.

    ``position`` and ``commit_lsn`` are the checkpoint's. ``is_equal`` is NULL where the rows could not be
    compared, for the ``reason``; ``seen`` and ``is_last`` are the check's (changes/verification.py).
    ``is_of_number``: the number of all rows was compared, and nothing else.
    """

    table_name = models.TextField(_("table"))
    round = models.BigIntegerField()
    chunk = models.BigIntegerField()
    bounds = models.TextField(db_default="")
    position = models.TextField(db_default="")
    commit_lsn = LsnField(_("commit LSN"), null=True)
    rows = models.BigIntegerField(db_default=0)
    rows_here = models.BigIntegerField(db_default=0)
    seen = models.BigIntegerField(db_default=0)
    is_of_number = models.BooleanField(db_default=False)
    is_last = models.BooleanField(db_default=False)
    is_equal = models.BooleanField(_("equal"), null=True)
    reason = models.TextField(db_default="")
    verified_at = models.DateTimeField(_("verified"), db_default=Now())

    class Meta:
        db_table = "data_sync_verifications"
        verbose_name = _("verification")
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(
                fields=["table_name", "round", "chunk"],
                name="data_sync_verifications_table_name_round_chunk_key",
            )
        ]

    def __str__(self) -> str:
        return f"{self.table_name} {self.bounds}"


class Dashboard(SyncRun):
    """A proxy without rows of its own: it gives the dashboard its place and its permission in the admin."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("dashboard")
        verbose_name_plural = _("dashboard")
