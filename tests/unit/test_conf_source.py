"""Configuration of the production side: the table [source], SOURCE_PG_*, settings.SYNCDATA["source"]."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from syncdata.archive.local import LocalSettings
from syncdata.changes.names import TableName
from syncdata.conf import (
    SourceConfig,
    config_from_toml,
    is_production_host,
    is_production_only,
    load_source_config,
    source_from_settings,
    source_from_toml,
)
from syncdata.errors import ConfigError, ConfigLoadError

ARCHIVE: dict[str, Any] = {"archive_backend": "local", "archive_dir": "/archive"}
LEAST: dict[str, Any] = {"pg_user": "syncdata", "pg_database": "shop", "tables": ["users"]}
FILE = Path("/etc/syncdata/config.toml")


def from_toml(environ: Mapping[str, str] | None = None, /, **values: Any) -> SourceConfig:
    """The configuration of a file with the least that is required, and *values* in its [source]."""
    return source_from_toml({**ARCHIVE, "source": LEAST | values}, environ or {}, FILE)


def problems(read: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read()
    return str(caught.value).split("\n  - ")[1:]


# Values and defaults


def test_the_least_configuration_has_the_documented_defaults() -> None:
    config = from_toml()
    assert config == SourceConfig(
        archive=LocalSettings(directory=Path("/archive")),
        pg_host="127.0.0.1",
        pg_port=5432,
        pg_user="syncdata",
        pg_password=None,
        pg_database="shop",
        slot_name="syncdata_slot",
        publication="syncdata",
        tables=(TableName("public", "users"),),
        spool_dir=Path("/etc/syncdata/spool"),
        rotate_seconds=60,
        rotate_bytes=67_108_864,
        compression="zstd",
        keep_days=14,
        prune_hours=0,
        state_dir=Path("/etc/syncdata"),
        config_file=Path("/etc/syncdata/config.toml"),
    )


def test_every_key_of_the_table_is_read() -> None:
    values = {
        "pg_host": "/var/run/postgresql",
        "pg_port": 5433,
        "pg_user": "me",
        "pg_password": " secret ",
        "pg_database": "db",
        "slot_name": "slot_2",
        "publication": 'Ärger "x"',
        "rotate_seconds": 1,
        "rotate_bytes": 1,
        "compression": "none",
        "keep_days": 0,
        "prune_hours": 24,
    }
    config = from_toml(**values)
    assert {key: getattr(config, key) for key in values} == values


@pytest.mark.parametrize(
    ("variable", "key", "text", "value"),
    [
        ("SOURCE_PG_HOST", "pg_host", "other", "other"),
        ("SOURCE_PG_PORT", "pg_port", "5433", 5433),
        ("SOURCE_PG_USER_NAME", "pg_user", "other", "other"),
        ("SOURCE_PG_PASSWORD", "pg_password", "secret", "secret"),
        ("SOURCE_PG_DB_NAME", "pg_database", "other", "other"),
        ("ARCHIVE_DIR", "archive", "/other", LocalSettings(directory=Path("/other"))),
    ],
)
def test_the_environment_overrides_the_file(variable: str, key: str, text: str, value: object) -> None:
    assert getattr(from_toml({variable: text}), key) == value


def test_the_local_side_s_variables_mean_nothing_here() -> None:
    environ = {"PG_HOST": "local", "PG_USER_NAME": "local", "PG_DB_NAME": "local", "PG_PORT": "wrong"}
    assert from_toml(environ) == from_toml()


def test_tables_are_named_as_on_the_whitelist_and_each_counts_once() -> None:
    config = from_toml(tables=["users", "public.users", "Shop.Order", '"a.b"."c""d"'])
    assert config.tables == (
        TableName("public", "users"),
        TableName("Shop", "Order"),
        TableName("a.b", 'c"d'),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~/spool", "/home/me/spool"), ("files", "/etc/syncdata/files"), ("/srv/spool", "/srv/spool")],
)
def test_the_spool_is_found_wherever_the_daemon_was_started(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert from_toml(spool_dir=given).spool_dir == Path(expected)


def test_what_is_not_configured_is_left_to_libpq() -> None:
    params = {
        "host": "127.0.0.1",
        "port": 5432,
        "user": "syncdata",
        "dbname": "shop",
        "application_name": "syncdata",
        "connect_timeout": 10,
    }
    assert from_toml().connection_params == params
    assert from_toml(pg_password="x").connection_params == params | {"password": "x"}


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        from_toml().pg_port = 1  # type: ignore[misc]


# Problems


def test_all_problems_are_told_at_once_each_with_its_key() -> None:
    values = {
        "archive_hots": "h",
        "source": {"pg_port": 0, "slot_nme": "x", "compression": "lz4", "tables": [], "archive_dir": "/x"},
    }
    assert problems(lambda: source_from_toml(values, {}, FILE)) == [
        "archive_hots: is not a known key; did you mean archive_host?",
        "source.pg_port: must be a whole number from 1 to 65535, not 0",
        'source.tables: must be a list of tables, such as ["users", "shop.orders"]',
        "source.compression: must be zstd or gzip or none",
        "source.slot_nme: is not a known key; did you mean source.slot_name?",
        "source.archive_dir: is not a key of this table; write it at the top level, above [source]",
        "source.pg_user: is required (or SOURCE_PG_USER_NAME)",
        "source.pg_database: is required (or SOURCE_PG_DB_NAME)",
        "archive_dir: is required (or ARCHIVE_DIR)",
        "archive_host: is required (or ARCHIVE_HOST)",
        "archive_user: is required (or ARCHIVE_USER)",
    ]


def test_a_wrong_value_from_the_environment_is_named_with_its_variable() -> None:
    assert problems(lambda: from_toml({"SOURCE_PG_PORT": "x"})) == [
        "source.pg_port (from SOURCE_PG_PORT): must be a whole number from 1 to 65535"
    ]


def test_the_table_itself_is_required() -> None:
    assert problems(lambda: source_from_toml(ARCHIVE, {}, FILE)) == [
        "source: is required: the table [source] describes the production side"
    ]
    assert problems(lambda: source_from_toml(ARCHIVE | {"source": 3}, {}, FILE)) == [
        "source: must be a table, [source]"
    ]


@pytest.mark.parametrize("name", ["Slot", "a-b", "a b", "ü", "x" * 64, 7])
def test_what_is_no_slot_name_is_refused(name: object) -> None:
    [problem] = problems(lambda: from_toml(slot_name=name))
    assert problem.startswith("source.slot_name: must be")


@pytest.mark.parametrize("name", ["ü" * 32, "a\0b", 7])
def test_what_is_no_name_of_a_publication_is_refused(name: object) -> None:
    [problem] = problems(lambda: from_toml(publication=name))
    assert problem.startswith("source.publication: must be")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pg_catalog.pg_class", "is a system or temporary table"),
        ("information_schema.tables", "is a system or temporary table"),
        ("pg_temp_3.users", "is a system or temporary table"),
        ("data_sync_logs", "own bookkeeping"),
        ("django_migrations", "own bookkeeping"),
        ("a.b.c", "is not a table name"),
        ('"open', "is not a table name"),
        (7, "is not a table name"),
        ("", "is not a table name"),
    ],
)
def test_tables_that_are_never_synced_are_refused(name: object, reason: str) -> None:
    [problem] = problems(lambda: from_toml(tables=["users", name]))
    assert problem.startswith("source.tables: ")
    assert reason in problem


def test_every_wrong_table_is_told() -> None:
    [problem] = problems(lambda: from_toml(tables=["a.b.c", "data_sync_logs"]))
    assert "a.b.c" in problem and "data_sync_logs" in problem


def test_the_password_is_neither_in_the_repr_nor_in_errors() -> None:
    assert "hunter2" not in repr(from_toml(pg_password="hunter2"))
    assert problems(lambda: from_toml(pg_password=["hunter2"])) == ["source.pg_password: must be a text"]


# Where it is read from


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a production host, named by DATA_SYNC_CONFIG."""
    path = tmp_path / "config.toml"
    tables = {"": ARCHIVE, "[source]\n": LEAST}
    path.write_text(
        "".join(
            title + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for title, table in tables.items()
        )
    )
    monkeypatch.setenv("DATA_SYNC_CONFIG", str(path))
    return path


def test_the_file_is_read_without_a_local_database(config_file: Path) -> None:
    config = load_source_config()
    assert (config.pg_database, config.state_dir) == ("shop", config_file.parent)
    assert config.spool_dir == config_file.parent / "spool"
    assert is_production_host()


def test_a_file_that_is_missing_is_named(config_file: Path) -> None:
    config_file.unlink()
    for read in (load_source_config, is_production_host):
        with pytest.raises(ConfigLoadError, match="No such file"):
            read()


def test_one_file_may_hold_both_sides() -> None:
    values = {**ARCHIVE, "pg_database": "local", "data_sync_freq": 5, "source": LEAST}
    assert config_from_toml(values, {}, FILE).pg_database == "local"
    assert source_from_toml(values, {}, FILE).pg_database == "shop"


@pytest.mark.parametrize(
    ("values", "environ", "expected"),
    [
        ({"source": LEAST}, {}, True),
        ({"source": LEAST, "data_sync_freq": 5}, {}, True),
        ({"source": LEAST, "pg_database": ""}, {"PG_DB_NAME": ""}, True),
        ({"source": LEAST}, {"SOURCE_PG_DB_NAME": "shop"}, True),
        ({"source": LEAST, "pg_database": "x"}, {}, False),
        ({"source": LEAST, "pg_user": "x"}, {}, False),
        ({"source": LEAST}, {"PG_DB_NAME": "x"}, False),
        ({}, {}, False),
    ],
)
def test_a_production_host_has_a_source_and_nothing_of_a_local_database(
    values: dict[str, Any], environ: dict[str, str], expected: bool
) -> None:
    assert is_production_only(values, environ) is expected


def test_a_django_project_configures_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.conf import settings

    monkeypatch.delenv("DATA_SYNC_CONFIG", raising=False)
    values = {**ARCHIVE, "state_dir": tmp_path, "database": "default", "source": LEAST}
    monkeypatch.setattr(settings, "SYNCDATA", values, raising=False)
    config = load_source_config()
    assert (config.pg_database, config.state_dir, config.spool_dir) == ("shop", tmp_path, tmp_path / "spool")


def test_the_settings_need_a_directory_for_the_state() -> None:
    assert problems(lambda: source_from_settings(ARCHIVE | {"source": LEAST}, {})) == [
        "state_dir: is required"
    ]
    with pytest.raises(ConfigError, match=r"settings\.SYNCDATA: must be a dictionary"):
        source_from_settings([], {})


def test_the_spool_cannot_be_the_archive_itself() -> None:
    with pytest.raises(ConfigError, match=r"source\.spool_dir: must not be archive_dir"):
        from_toml(spool_dir="/archive/../archive")
