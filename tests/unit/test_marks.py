from __future__ import annotations

import pytest

from syncdata.apply.state.marks import unlogged
from syncdata.changes.names import TableName


@pytest.mark.parametrize(
    ("table", "part", "statement"),
    [
        (TableName("public", "Order"), "Order", 'ALTER TABLE "public"."Order" SET LOGGED'),
        (TableName("public", 'a "b"'), '"a ""b"""', 'ALTER TABLE "public"."a ""b""" SET LOGGED'),
        (TableName("public", "parts"), '"My leaf"', 'ALTER TABLE "My leaf" SET LOGGED'),
    ],
)
def test_the_remedy_for_an_unlogged_table_can_be_pasted(table: TableName, part: str, statement: str) -> None:
    assert f"'{statement}'" in unlogged(table, part).hint
