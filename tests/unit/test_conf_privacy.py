"""The rules of what travels, in the configuration of both sides, and the key that their masks depend on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from syncdata.changes.names import TableName
from syncdata.conf import (
    PrivacyConfig,
    config_from_settings,
    config_from_toml,
    source_from_settings,
    source_from_toml,
)
from syncdata.errors import ConfigError
from syncdata.privacy.key import make_key_file

ARCHIVE: dict[str, Any] = {"archive_backend": "local", "archive_dir": "/archive"}
SOURCE: dict[str, Any] = {"pg_user": "me", "pg_database": "shop", "tables": ["users", "shop.orders"]}
USERS, ORDERS = TableName("public", "users"), TableName("shop", "orders")
HEX = "0f" * 32


def policy(folder: Path = Path("/etc"), environ: Mapping[str, str] | None = None, **tables: Any) -> Any:
    """The policy of a file whose [source] has *tables*."""
    values = ARCHIVE | {"source": SOURCE | tables}
    return source_from_toml(values, environ or {}, folder / "syncdata.toml").privacy


def problems(environ: Mapping[str, str] | None = None, **tables: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        policy(environ=environ, **tables)
    assert HEX not in str(caught.value)
    return str(caught.value).split("\n  - ")[1:]


def test_without_one_of_its_tables_there_is_no_policy() -> None:
    assert policy() is None
    assert policy(environ={"SOURCE_MASK_KEY": HEX}) is None


def test_a_policy_has_the_rules_of_columns_and_rows_and_what_becomes_of_the_rest() -> None:
    found = policy(
        privacy={"key_file": "mask.key", "unnamed": "halt", "snapshot": True},
        columns={"users": {"id": "keep", "email": {"mask": "token", "domain": "person"}}},
        rows={"shop.orders": "tenant_id IN (3, 5)"},
    )
    assert found.key_file == Path("/etc/mask.key")
    rules = found.rules
    assert {name: rule.mask for name, rule in rules.columns[USERS].items()} == {
        "id": "keep",
        "email": "token",
    }
    assert rules.columns[USERS]["email"].domain == "person"
    assert rules.rows == {ORDERS: "tenant_id IN (3, 5)"}
    assert (rules.unnamed, rules.takes_snapshots) == ("halt", True)


@pytest.mark.parametrize("tables", [{"privacy": {}}, {"columns": {}}, {"rows": {}}])
def test_one_table_makes_a_policy_which_withholds_what_it_does_not_name(tables: dict[str, Any]) -> None:
    rules = policy(**tables).rules
    assert (rules.unnamed, rules.takes_snapshots) == ("withhold", False)


@pytest.mark.parametrize("more", [{}, {"privacy": {"snapshot": True}}])
def test_rules_for_rows_alone_leave_the_columns_as_they_are(more: dict[str, Any]) -> None:
    rows = {"shop.orders": "tenant_id IN (3, 5)"}
    assert policy(rows=rows, **more).rules.unnamed == "keep"
    assert policy(rows=rows, privacy={"unnamed": "withhold"}).rules.unnamed == "withhold"
    assert policy(rows=rows, columns={}).rules.unnamed == "withhold"


def test_a_table_of_a_schema_without_quotes_is_told_where_they_belong() -> None:
    """As TOML reads [source.columns.shop.orders]."""
    found = problems(
        privacy={"key_file": "k"},
        columns={"shop": {"orders": {"id": "keep", "v": {"mask": "token"}}}, "users": {"v": {"value": "!"}}},
        rows={"shop": {"orders": "id > 5"}},
    )
    quotes = "write the name of a table and its schema in quotes"
    assert found == [
        f'source.columns.shop.orders: {quotes}: columns."shop.orders"',
        'source.columns.users.v: the mask is missing: { mask = "…", … }',
        f'source.rows.shop.orders: {quotes}: "shop.orders"',
    ]


def test_all_problems_are_told_at_once_each_with_its_key() -> None:
    told = problems(
        privacy={"key_file": 5, "unnamed": "ignore", "snapshots": True},
        columns={"users": {"email": "emial", "name": 7}, "shop.order": {"id": "keep"}, "a.b.c": {}},
        rows={"users": "", "nowhere": "true"},
    )
    keys = [line.partition(": ")[0] for line in told]
    assert keys == [
        "source.privacy.key_file",
        "source.privacy.unnamed",
        "source.privacy.snapshots",
        "source.columns.users.email",
        "source.columns.users.name",
        "source.columns.a.b.c",
        "source.rows.users",
        "source.columns.shop.order",
        "source.rows.nowhere",
    ]
    assert told[2].endswith("is not a known key; did you mean source.privacy.snapshot?")
    assert told[-1] == "source.rows.nowhere: is not in source.tables"


@pytest.mark.parametrize("name", ["privacy", "columns", "rows"])
def test_what_should_be_a_table_must_be_one(name: str) -> None:
    tables: dict[str, Any] = {name: "users"}
    assert problems(**tables) == [f"source.{name}: must be a table, [source.{name}]"]


def test_masks_need_a_key_and_other_rules_need_none() -> None:
    assert problems(columns={"users": {"email": "email"}}) == [
        "source.privacy.key_file: is required for masks (or SOURCE_MASK_KEY)"
    ]
    assert policy(columns={"users": {"id": "keep", "notes": "null"}}).load_policy().key is None


def test_the_key_comes_from_its_file_beside_the_configuration(tmp_path: Path) -> None:
    key = make_key_file(tmp_path / "mask.key")
    found = policy(tmp_path, privacy={"key_file": "mask.key"}, columns={"users": {"email": "email"}})
    assert found.load_policy().key == key
    assert found.trial_policy.key not in (None, key), "what only judges needs no key"


def test_the_key_comes_from_the_environment_and_shows_nowhere() -> None:
    found = policy(environ={"SOURCE_MASK_KEY": HEX}, columns={"users": {"email": "email"}})
    assert found.load_policy().key == found.key
    assert HEX not in repr(found)
    told = problems({"SOURCE_MASK_KEY": HEX[2:]}, columns={"users": {"email": "keep"}})
    assert told[0].startswith("source.privacy.key (from SOURCE_MASK_KEY): ") and HEX[2:] not in told[0]
    assert problems(privacy={"key": HEX})[0].startswith("source.privacy.key: is not a known key")


def test_a_key_file_that_is_not_there_is_made_by_init_and_one_for_all_to_read_is_refused(
    tmp_path: Path,
) -> None:
    found: PrivacyConfig = policy(tmp_path, privacy={"key_file": "mask.key"})
    with pytest.raises(ConfigError, match=r"source\.privacy\.key_file: .*is not there") as caught:
        found.load_policy()
    assert "archive_changes --init" in str(caught.value)
    values = ARCHIVE | {"pg_database": "app", "privacy": {"key_file": "mask.key"}}
    local = config_from_toml(values, {}, tmp_path / "syncdata.toml").privacy
    assert local is not None
    with pytest.raises(ConfigError, match="openssl rand -hex 32") as caught:
        local.load_policy()  # archive_changes has no [source] there
    assert "--init" not in str(caught.value)
    make_key_file(tmp_path / "mask.key")
    (tmp_path / "mask.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"source\.privacy\.key_file: .*chmod 600"):
        found.load_policy()
    (tmp_path / "mask.key").write_text("secret")
    (tmp_path / "mask.key").chmod(0o600)
    with pytest.raises(ConfigError, match=r"64 hex digits") as caught:
        found.load_policy()
    assert "chmod" not in str(caught.value)
    (tmp_path / "mask.key").unlink()
    (tmp_path / "mask.key").mkdir()
    with pytest.raises(ConfigError, match=r"source\.privacy\.key_file: .*cannot be read"):
        found.load_policy()


def test_the_local_side_has_rules_of_its_own_and_keeps_what_they_do_not_name() -> None:
    values = ARCHIVE | {"pg_database": "local", "columns": {"users": {"email": "email", "notes": "withhold"}}}
    found = config_from_toml(values, {"MASK_KEY": HEX}, Path("/etc/syncdata.toml")).privacy
    assert found is not None and found.rules.unnamed == "keep"
    assert found.load_policy().key is not None
    with pytest.raises(ConfigError) as caught:
        config_from_toml(values | {"privacy": {"unnamed": "halt"}}, {}, Path("/etc/syncdata.toml"))
    told = str(caught.value).split("\n  - ")[1:]
    assert [line.partition(": ")[0] for line in told] == ["privacy.unnamed", "privacy.key_file"]
    assert told[1].endswith("(or MASK_KEY)")


def test_each_side_reads_its_own_rules_only() -> None:
    values = {
        **ARCHIVE,
        "pg_database": "local",
        "columns": {"users": {"email": "withhold"}},
        "source": SOURCE | {"columns": {"users": {"id": "keep"}}},
    }
    local = config_from_toml(values, {}, Path("/etc/syncdata.toml")).privacy
    source = source_from_toml(values, {}, Path("/etc/syncdata.toml")).privacy
    assert local is not None and [*local.rules.columns[USERS]] == ["email"]
    assert source is not None and [*source.rules.columns[USERS]] == ["id"]


def test_a_django_project_spells_them_alike(tmp_path: Path) -> None:
    settings = {
        **ARCHIVE,
        "state_dir": tmp_path,
        "privacy": {"key_file": "mask.key"},
        "columns": {"users": {"email": "email"}},
        "source": SOURCE | {"privacy": {"key_file": "other.key"}, "columns": {"users": {"id": "keep"}}},
    }
    local, source = config_from_settings(settings, {}).privacy, source_from_settings(settings, {}).privacy
    assert local is not None and local.key_file == tmp_path / "mask.key"
    assert source is not None and source.key_file == tmp_path / "other.key"
