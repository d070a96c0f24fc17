"""What goes when the files of before a privacy policy are removed, and what has to be there first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.archive.retention import PolicyInForce, Removals, find_older_than_policy, is_alike
from syncdata.changes.catalog import PublishedTable
from syncdata.changes.filenames import snapshot_name
from syncdata.changes.names import TableName
from tests.catalogs import column, put, table
from tests.framed import Writer, file_name, stamp

USERS, ORDERS, AUDIT = (TableName("public", name) for name in ("users", "orders", "audit"))
SOURCE = "7000/1/syncdata_slot/1"

RAW = table("users", "id integer", "email text", "notes text")
MASKED = table(
    "users",
    "id integer",
    column("email", "text", number=2, privacy="email", privacy_id="e1"),
    column("notes", "text", number=3, privacy="withheld"),
    column_list=("id", "email"),
)
# No rule of it says anything else than keep.
OPEN = table("orders", "id integer", "total numeric", oid=16385)
LAST = file_name(5)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    """Five change files; the policy came behind the third one."""
    archive = tmp_path / "archive"
    archive.mkdir()
    writer = Writer(archive)
    for number in range(1, 6):
        writer.changes(number, [(number * 100, [{"table": "users", "op": "TRUNCATE"}])])
    return writer


def snapshot(writer: Writer, number: int, name: str, catalog: str, *, prev: int) -> str:
    writer.snapshot(number, name, prev * 100 + 50, [{"id": "1"}], prev=prev, catalog=catalog)
    return snapshot_name(stamp(number), TableName("public", name))


def found(
    writer: Writer,
    *now: PublishedTable,
    tables: Sequence[TableName] = (USERS, ORDERS),
    withheld: Sequence[TableName] = (),
    last_before: str | None = file_name(3),
) -> Removals:
    policy = PolicyInForce(
        tables={entry.table: entry for entry in now}, withheld=withheld, last_before=last_before
    )
    archive = open_archive(LocalSettings(directory=writer.archive))
    return find_older_than_policy(archive, tables, policy, source_id=SOURCE)


def test_files_of_before_go_when_each_table_has_a_snapshot_under_the_policy(writer: Writer) -> None:
    raw, masked = put(writer.archive, RAW, OPEN), put(writer.archive, MASKED, OPEN)
    old = snapshot(writer, 2, "users", raw, prev=1)
    snapshot(writer, 12, "users", masked, prev=4)
    snapshot(writer, 13, "orders", masked, prev=3)
    removals = found(writer, MASKED, OPEN)
    assert [file.name for file in removals.files] == [old, *(file_name(number) for number in (1, 2, 3))]
    assert not removals.reason


@pytest.mark.parametrize(
    ("entries", "prev"),
    [
        pytest.param((RAW, OPEN), 4, id="taken under other rules"),
        pytest.param((MASKED, OPEN), 2, id="it goes on from a file of before"),
    ],
)
def test_nothing_goes_while_a_table_needs_a_file_of_before(
    writer: Writer, entries: tuple[PublishedTable, ...], prev: int
) -> None:
    snapshot(writer, 12, "users", put(writer.archive, *entries), prev=prev)
    snapshot(writer, 13, "orders", put(writer.archive, MASKED, OPEN), prev=4)
    removals = found(writer, MASKED, OPEN)
    assert removals.files == ()
    assert removals.without_snapshot == (USERS,)
    assert "no snapshot under the privacy policy that is in force of users;" in removals.reason
    assert "archive_changes --snapshot users'" in removals.reason


def test_a_table_that_no_snapshot_was_taken_of_is_named(writer: Writer) -> None:
    snapshot(writer, 12, "users", put(writer.archive, MASKED, OPEN), prev=4)
    assert found(writer, MASKED, OPEN).without_snapshot == (ORDERS,)


def test_a_table_that_is_not_published_by_mistake_keeps_its_files(writer: Writer) -> None:
    snapshot(writer, 12, "users", put(writer.archive, MASKED, OPEN), prev=4)
    assert found(writer, MASKED, tables=(USERS, ORDERS)).without_snapshot == (ORDERS,)
    assert found(writer, tables=(USERS,)).without_snapshot == (USERS,)


def test_of_a_withheld_table_all_snapshots_go(writer: Writer) -> None:
    raw = put(writer.archive, RAW, table("audit", "id integer", oid=16386))
    snapshot(writer, 12, "users", put(writer.archive, MASKED), prev=4)
    audited = snapshot(writer, 14, "audit", raw, prev=4)
    removals = found(writer, MASKED, tables=(USERS, AUDIT), withheld=(AUDIT,))
    assert [file.name for file in removals.snapshots] == [audited]


def test_where_everything_is_withheld_nothing_goes(writer: Writer) -> None:
    removals = found(writer, tables=(AUDIT,), withheld=(AUDIT,))
    assert removals.files == ()
    assert removals.reason


def test_an_older_snapshot_under_the_same_rules_stays(writer: Writer) -> None:
    raw, masked = put(writer.archive, RAW, OPEN), put(writer.archive, MASKED, OPEN)
    snapshot(writer, 2, "orders", raw, prev=1)
    snapshot(writer, 12, "orders", masked, prev=4)
    snapshot(writer, 11, "users", masked, prev=4)
    snapshot(writer, 13, "users", masked, prev=4)
    assert found(writer, MASKED, OPEN).snapshots == ()


def test_a_broken_snapshot_of_before_goes_too(writer: Writer) -> None:
    masked = put(writer.archive, MASKED)
    broken = snapshot(writer, 2, "users", masked, prev=1)
    (writer.archive / broken).write_bytes(b"\x1f\x8b broken")
    snapshot(writer, 12, "users", masked, prev=4)
    assert [file.name for file in found(writer, MASKED, tables=(USERS,)).snapshots] == [broken]


def test_the_newest_change_file_stays_though_it_is_of_before(writer: Writer) -> None:
    snapshot(writer, 12, "users", put(writer.archive, MASKED), prev=5)
    removals = found(writer, MASKED, tables=(USERS,), last_before=LAST)
    assert [file.name for file in removals.change_files] == [file_name(number) for number in (1, 2, 3, 4)]
    assert f"{LAST} is the newest change file, and stays" in removals.reason


def test_where_no_file_was_there_before_only_snapshots_can_be_of_before(writer: Writer) -> None:
    snapshot(writer, 12, "users", put(writer.archive, MASKED), prev=1)
    assert found(writer, MASKED, tables=(USERS,), last_before=None).files == ()


def changed(of: int = 0, /, **changes: object) -> PublishedTable:
    """Return the masked table with changes of a column, or of itself."""
    if not of:
        return msgspec.structs.replace(MASKED, **changes)
    columns = [
        msgspec.structs.replace(entry, **changes) if entry.number == of else entry for entry in MASKED.columns
    ]
    return msgspec.structs.replace(MASKED, columns=tuple(columns))


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(RAW, id="no policy"),
        pytest.param(changed(2, privacy_id="e2"), id="another key or rule"),
        pytest.param(changed(3, number=4), id="a column that has gone since"),
        pytest.param(changed(column_list=("id", "email", "notes")), id="a column that travelled"),
        pytest.param(changed(row_filter="tenant = 1"), id="other rows"),
        pytest.param(changed(oid=1), id="another table of the name"),
    ],
)
def test_rows_under_other_rules_are_of_before(before: PublishedTable) -> None:
    assert not is_alike(before, MASKED)


def test_rows_under_the_same_rules_are_not_whatever_else_has_changed() -> None:
    assert is_alike(MASKED, MASKED)
    assert is_alike(MASKED, changed(columns=(*MASKED.columns, column("age", "integer", number=9))))
    assert is_alike(changed(2, type="character varying(80)"), MASKED)
    assert is_alike(changed(3, name="remarks"), MASKED)
