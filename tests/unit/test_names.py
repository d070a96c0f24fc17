from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.changes.names import TableName
from syncdata.errors import SchemaError


@pytest.mark.parametrize(
    ("text", "schema", "name", "canonical"),
    [
        ("users", "public", "users", "users"),
        (" users ", "public", "users", "users"),
        ("public.users", "public", "users", "users"),
        ("shop.users", "shop", "users", "shop.users"),
        ("Shop.Users", "Shop", "Users", "Shop.Users"),
        ('"odd.name"', "public", "odd.name", '"odd.name"'),
        ('public."odd.name"', "public", "odd.name", '"odd.name"'),
        ('"a.b"."c""d"', "a.b", 'c"d', '"a.b"."c""d"'),
        ('"users"', "public", "users", "users"),
        ('" users"', "public", " users", '" users"'),
        ("größe.straße", "größe", "straße", "größe.straße"),
        ("select", "public", "select", "select"),
    ],
)
def test_a_table_name_is_read_as_it_is_written(text: str, schema: str, name: str, canonical: str) -> None:
    table = TableName.parse(text)
    assert table == TableName(schema, name)
    assert str(table) == canonical


@pytest.mark.parametrize(
    "text", ["", " ", ".", "a.", ".a", "a.b.c", '"a', 'a"b', '"a"b', '""', '"".a', 'a.""', "a\0b", '"a\0"']
)
def test_what_names_no_table_is_refused(text: str) -> None:
    with pytest.raises(SchemaError, match="is not a table name"):
        TableName.parse(text)


# PostgreSQL's names have 63 bytes at most, and a character up to four.
identifiers = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=15
) | st.text(st.sampled_from('a. "'), min_size=1, max_size=63)


@given(identifiers, identifiers)
def test_a_table_name_survives_its_text_form(schema: str, name: str) -> None:
    table = TableName(schema, name)
    assert TableName.parse(str(table)) == table


@pytest.mark.parametrize(
    "name",
    ["users", "a; rm -rf ~", "it's", 'a"b', "$(x)", "a\nb", "\x1b[2J", "ü\u202e", "a\\\n'"],
)
def test_a_shell_reads_a_name_in_a_hint_as_one_argument(name: str) -> None:
    table = TableName("shop", name)
    assert table.argument.isprintable()
    done = subprocess.run(
        ["bash", "-c", f"printf %s {table.argument}"],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    )
    assert TableName.parse(done.stdout.decode()) == table
