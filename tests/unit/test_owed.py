"""The snapshots that are owed, as the spool remembers them."""

from __future__ import annotations

from pathlib import Path

from syncdata.capture.owed import OWED_FILE_NAME, Asked, load_owed, owe, settle
from syncdata.changes.names import TableName

USERS, ORDERS = TableName("public", "users"), TableName("shop", "orders")


def test_what_is_owed_stays_until_it_is_copied(tmp_path: Path) -> None:
    assert load_owed(tmp_path) == {}
    owe(tmp_path, [USERS, ORDERS])
    owed = load_owed(tmp_path)
    assert owed.keys() == {USERS, ORDERS}
    settle(tmp_path, {USERS: owed[USERS]})
    assert load_owed(tmp_path) == {ORDERS: owed[ORDERS]}


def test_a_table_that_changes_while_it_is_copied_is_still_owed(tmp_path: Path) -> None:
    owe(tmp_path, [USERS])
    before = load_owed(tmp_path)
    owe(tmp_path, [USERS])
    settle(tmp_path, before)
    assert load_owed(tmp_path).keys() == {USERS}


def test_a_broken_file_owes_nothing(tmp_path: Path) -> None:
    (tmp_path / OWED_FILE_NAME).write_bytes(b'{"users":')
    assert load_owed(tmp_path) == {}
    owe(tmp_path, [USERS])
    assert load_owed(tmp_path).keys() == {USERS}


def test_what_was_asked_for_once_stays_so_until_it_is_copied(tmp_path: Path) -> None:
    owe(tmp_path, [USERS], is_asked_for=True)
    owe(tmp_path, [USERS, ORDERS])
    owed = load_owed(tmp_path)
    assert {table for table, since in owed.items() if isinstance(since, Asked)} == {USERS}
    settle(tmp_path, owed)
    assert load_owed(tmp_path) == {}
