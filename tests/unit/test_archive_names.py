from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.changes.filenames import (
    check_name,
    is_change_file,
    newest_first,
    parse_snapshot_name,
    snapshot_file,
    snapshot_name,
    temporary_name,
)
from syncdata.changes.names import TableName

STAMP = "20260205_103000"
identifiers = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (TableName("public", "users"), "public.users.json.gz"),
        (TableName("public", "Order"), "public.Order.json.gz"),
        (TableName("my.schema", "t"), "my%2Eschema.t.json.gz"),
        (TableName("a/b", 'c\\d"e%'), 'a%2Fb.c%5Cd"e%25.json.gz'),
        (TableName("straße", "line\nbreak\x85"), "straße.line%0Abreak%C2%85.json.gz"),
    ],
)
def test_a_snapshot_file_is_named_by_its_table(table: TableName, expected: str) -> None:
    assert snapshot_name(STAMP, table) == f"snapshot_{STAMP}/{expected}"


@given(schema=identifiers, name=identifiers)
def test_every_table_comes_back_from_its_name_which_is_one_file_in_one_directory(
    schema: str, name: str
) -> None:
    table = TableName(schema, name)
    file_name = snapshot_name(STAMP, table)
    assert parse_snapshot_name(file_name) == (STAMP, table)
    assert file_name.count("/") == 1 and not any(ord(character) < 32 for character in file_name)


@given(tail=st.text() | st.builds("{}.{}.json.gz".format, st.text(), st.text()))
def test_a_name_that_is_read_is_the_one_that_would_be_written(tail: str) -> None:
    name = f"snapshot_{STAMP}/{tail}"
    parsed = parse_snapshot_name(name)
    assert parsed is None or snapshot_name(*parsed) == name


@pytest.mark.parametrize(
    "name",
    [
        f"snapshot_{STAMP}/users.json.gz",
        f"snapshot_{STAMP}/public.users.json",
        f"snapshot_{STAMP}/public.users.json.gz.tmp",
        f"snapshot_{STAMP}/public.users.json.gz.part",
        f"snapshot_{STAMP}/.public.users.json.gz.part",
        f"snapshot_{STAMP}/.public.users.json.gz",
        f"snapshot_{STAMP}/a.b.c.json.gz",
        f"snapshot_{STAMP}/public.%75sers.json.gz",  # not how we write it
        f"snapshot_{STAMP}/public.%FF.json.gz",
        f"snapshot_{STAMP}/public.\udcff.json.gz",
        f"snapshot_{STAMP}/../public.users.json.gz",
        "snapshot_now/public.users.json.gz",
        f"backup/snapshot_{STAMP}/public.users.json.gz",
        "public.users.json.gz",
    ],
)
def test_other_names_are_no_snapshot_files(name: str) -> None:
    assert parse_snapshot_name(name) is None
    with pytest.raises(ValueError, match="neither"):
        check_name(name)


def test_a_snapshot_needs_a_time() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        snapshot_name("yesterday", TableName("public", "users"))


@pytest.mark.parametrize("name", ["changes_1.json.zst", f"snapshot_{STAMP}/public.users.json.gz"])
def test_a_temporary_name_is_hidden_beside_its_file_and_nobody_reads_it(name: str) -> None:
    check_name(name)
    temporary = temporary_name(name)
    assert temporary.rpartition("/")[0] == name.rpartition("/")[0]
    assert temporary.rpartition("/")[2] == f".{name.rpartition('/')[2]}.part"
    assert not is_change_file(temporary) and parse_snapshot_name(temporary) is None


def test_the_newest_snapshot_comes_first_and_its_tables_in_order() -> None:
    names = [
        f"snapshot_{stamp}/{table}.json.gz"
        for stamp in ("20260101_000000", "20270101_000000", "20260601_000000")
        for table in ("public.b", "public.a", "other.z")
    ]
    files = [file for name in names if (file := snapshot_file(name, 1))]
    assert [(file.stamp, str(file.table)) for file in newest_first(files)] == [
        (stamp, table)
        for stamp in ("20270101_000000", "20260601_000000", "20260101_000000")
        for table in ("other.z", "a", "b")
    ]
