"""Configuration: the TOML file, the environment, settings.SYNCDATA."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from syncdata.archive.local import LocalSettings
from syncdata.archive.sftp import SftpSettings
from syncdata.conf import (
    SyncConfig,
    config_from_settings,
    config_from_toml,
    is_production_host,
    load_config,
    load_config_file,
)
from syncdata.errors import ConfigError, ConfigLoadError
from syncdata.runtime.settings import a_host

LEAST = {
    "archive_host": "backup.example.com",
    "archive_user": "backup",
    "archive_dir": "/backups/changes",
    "pg_database": "mydb",
}
FILE = Path("/etc/syncdata/config.toml")


def from_toml(environ: Mapping[str, str] | None = None, /, **values: Any) -> SyncConfig:
    """The configuration of a file with the least that is required, and *values*."""
    return config_from_toml(LEAST | values, environ or {}, FILE)


def value_of(config: SyncConfig, key: str) -> object:
    """The value that was read from *key*, wherever it is kept."""
    kept = {field.metadata["key"]: field.name for field in fields(config.archive)}  # type: ignore[arg-type]
    return getattr(config.archive, kept[key]) if key in kept else getattr(config, key)


def sftp_of(config: SyncConfig) -> SftpSettings:
    assert isinstance(config.archive, SftpSettings)
    return config.archive


def problems(read: Callable[[], SyncConfig]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value).startswith("SHD_SYN_002: ")
    return str(caught.value).split("\n  - ")[1:]


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid file, named by DATA_SYNC_CONFIG."""
    path = tmp_path / "config.toml"
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in LEAST.items()))
    path.chmod(0o600)
    monkeypatch.setenv("DATA_SYNC_CONFIG", str(path))
    return path


# Values and defaults


def test_the_least_configuration_has_the_documented_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert from_toml() == SyncConfig(
        archive=SftpSettings(
            host="backup.example.com",
            user="backup",
            directory="/backups/changes",
            port=None,
            key_file=None,
            key_passphrase=None,
            password=None,
            known_hosts=None,
        ),
        pg_host="127.0.0.1",
        pg_port=5432,
        pg_user="admin",
        pg_password=None,
        pg_database="mydb",
        database="default",
        data_sync_freq=600,
        metric_freq=24,
        batch_records=50_000,
        batch_bytes=32 * 1024 * 1024,
        log_keep_days=0,
        verify=True,
        state_dir=Path("/etc/syncdata"),
        config_file=FILE,
    )


def test_every_key_of_the_file_is_read() -> None:
    values = {
        "archive_host": "h",
        "archive_user": "u",
        "archive_dir": "d",
        "archive_port": 2222,
        "archive_key_passphrase": "one",
        "archive_password": "two",
        "pg_host": "/var/run/postgresql",
        "pg_port": 5433,
        "pg_user": "me",
        "pg_password": " three ",
        "pg_database": "db",
        "data_sync_freq": 1,
        "metric_freq": 1,
        "batch_records": 1,
        "batch_bytes": 1,
    }
    config = from_toml(archive_backend="sftp", **values)
    assert {key: value_of(config, key) for key in values} == values


@pytest.mark.parametrize("directory", [f"/srv/{'long' * 20}", "/run/../postgresql", "/srv/größe/" + "p" * 64])
def test_a_directory_of_sockets_is_held_to_no_rule_of_host_names(directory: str) -> None:
    assert from_toml(pg_host=directory).pg_host == directory


@pytest.mark.parametrize(
    ("variable", "key", "text", "value"),
    [
        ("ARCHIVE_HOST", "archive_host", "other", "other"),
        ("ARCHIVE_USER", "archive_user", "other", "other"),
        ("ARCHIVE_DIR", "archive_dir", "/other", "/other"),
        ("ARCHIVE_PORT", "archive_port", "2222", 2222),
        ("ARCHIVE_KEY_FILE", "archive_key_file", "/key", Path("/key")),
        ("ARCHIVE_KEY_PASSPHRASE", "archive_key_passphrase", "secret", "secret"),
        ("ARCHIVE_PASSWORD", "archive_password", "secret", "secret"),
        ("ARCHIVE_KNOWN_HOSTS", "archive_known_hosts", "/known", Path("/known")),
        ("PG_HOST", "pg_host", "other", "other"),
        ("PG_PORT", "pg_port", "5433", 5433),
        ("PG_USER_NAME", "pg_user", "other", "other"),
        ("PG_PASSWORD", "pg_password", "secret", "secret"),
        ("PG_DB_NAME", "pg_database", "other", "other"),
        ("DATA_SYNC_FREQ", "data_sync_freq", "5", 5),
        ("METRIC_FREQ", "metric_freq", "1", 1),
    ],
)
def test_the_environment_overrides_the_file(variable: str, key: str, text: str, value: object) -> None:
    assert value_of(from_toml({variable: text}), key) == value


def test_the_environment_overrides_the_backend_of_the_file() -> None:
    config = from_toml({"ARCHIVE_BACKEND": "local", "ARCHIVE_DIR": "/other"}, archive_backend="sftp")
    assert config.archive == LocalSettings(directory=Path("/other"))


def test_an_empty_value_counts_as_unset() -> None:
    assert from_toml({"ARCHIVE_HOST": "", "PG_PASSWORD": ""}, pg_password="kept").pg_password == "kept"
    assert from_toml(pg_password="").pg_password is None
    assert problems(lambda: from_toml(pg_database="")) == ["pg_database: is required (or PG_DB_NAME)"]


def test_the_environment_may_supply_what_is_required() -> None:
    environ = {"ARCHIVE_HOST": "h", "ARCHIVE_USER": "u", "ARCHIVE_DIR": "/d", "PG_DB_NAME": "db"}
    assert config_from_toml({}, environ, FILE).pg_database == "db"


def test_a_home_directory_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = from_toml(archive_key_file="~/.ssh/sync", archive_known_hosts="~/known")
    assert sftp_of(config).key_file == Path("/home/me/.ssh/sync")
    assert sftp_of(config).known_hosts == Path("/home/me/known")
    local = from_toml(archive_backend="local", archive_dir="~/archive")
    assert local.archive == LocalSettings(directory=Path("/home/me/archive"))


def test_the_archive_settings_are_those_of_the_backend() -> None:
    config = from_toml(archive_port=2222, archive_password="secret", archive_key_file="/key")
    assert config.archive == SftpSettings(
        host="backup.example.com",
        user="backup",
        directory="/backups/changes",
        port=2222,
        password="secret",
        key_file=Path("/key"),
        known_hosts=sftp_of(config).known_hosts,
    )


def test_a_local_archive_needs_neither_host_nor_user() -> None:
    config = config_from_toml({"archive_backend": "local", "archive_dir": "/a", "pg_database": "x"}, {}, FILE)
    assert config.archive == LocalSettings(directory=Path("/a"))


def test_the_production_side_has_its_own_table() -> None:
    assert from_toml(source={"slot_name": "syncdata_slot"}) == from_toml()
    assert problems(lambda: from_toml(source="x")) == ["source: must be a table, [source]"]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        from_toml().pg_port = 1  # type: ignore[misc]


# Problems


def test_all_problems_are_told_at_once_each_with_its_key() -> None:
    values = {"archive_port": 0, "data_sync_freq": "soon", "archive_hots": "h", "archive_user": 3}
    assert problems(lambda: config_from_toml(values, {"METRIC_FREQ": "0"}, FILE)) == [
        "archive_user: must be a text",
        "archive_port: must be a whole number from 1 to 65535, not 0",
        "data_sync_freq: must be a whole number from 1 to 31622400",
        "metric_freq (from METRIC_FREQ): must be a whole number from 1 to 8784",
        "archive_hots: is not a known key; did you mean archive_host?",
        "archive_dir: is required (or ARCHIVE_DIR)",
        "archive_host: is required (or ARCHIVE_HOST)",
        "pg_database: is required (or PG_DB_NAME)",
    ]


def test_the_error_names_the_file_and_counts_the_problems() -> None:
    with pytest.raises(ConfigError, match=r"SHD_SYN_002: /etc/syncdata/config\.toml: 1 problem\n"):
        from_toml(archive_port=0)
    with pytest.raises(ConfigError, match="2 problems"):
        from_toml(archive_port=0, pg_port=0)


@pytest.mark.parametrize("number", [0, -1, 65536, 1.5, True, "x", "1.5", "", " ", [1], "9" * 400, "٣"])
def test_what_is_not_a_port_is_refused(number: object) -> None:
    if number == "":
        assert sftp_of(from_toml(archive_port=number)).port is None
    else:
        [problem] = problems(lambda: from_toml(archive_port=number))
        assert problem.startswith("archive_port: must be a whole number from 1 to 65535")


def test_an_unknown_backend_is_refused_once() -> None:
    values = {"archive_backend": "ftp", "archive_dir": "/d", "pg_database": "x"}
    assert problems(lambda: config_from_toml(values, {}, FILE)) == [
        "archive_backend: must be sftp or local, or the dotted path of a class"
    ]


@pytest.mark.parametrize("key", ["database", "state_dir"])
def test_keys_of_a_django_project_are_unknown_in_the_file(key: str) -> None:
    assert problems(lambda: from_toml(**{key: "x"}))[0].startswith(f"{key}: is not a known key")


@pytest.mark.parametrize("key", ["archive_password", "archive_key_passphrase", "pg_password"])
def test_secrets_are_neither_in_the_repr_nor_in_errors(key: str) -> None:
    config = from_toml(**{key: "hunter2"})
    assert "hunter2" not in repr(config) and "hunter2" not in repr(config.archive)
    told = problems(lambda: from_toml(**{key: ["hunter2"]}))
    assert told == [f"{key}: must be a text"]


# The file


def test_the_file_is_named_by_the_environment(config_file: Path) -> None:
    config = load_config_file()
    assert config.pg_database == "mydb"
    assert (config.config_file, config.state_dir) == (config_file, config_file.parent)
    assert load_config() == config


def test_a_home_directory_is_expanded_in_the_files_name(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(config_file.parent))
    monkeypatch.setenv("DATA_SYNC_CONFIG", "~/config.toml")
    assert load_config_file().config_file == config_file


def test_a_relative_name_becomes_absolute(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config_file.parent)
    monkeypatch.setenv("DATA_SYNC_CONFIG", "config.toml")
    assert load_config_file().state_dir == config_file.parent


def test_keys_are_read_in_any_case_as_the_predecessor_did(config_file: Path) -> None:
    text = config_file.read_text().replace("pg_database", "PG_Database").replace("archive_dir", "ARCHIVE_DIR")
    config_file.write_text(text + 'Data_Sync_Freq = "60"\n[Source]\nPG_User = "x"\n')
    config = load_config_file()
    assert (config.pg_database, config.data_sync_freq) == (LEAST["pg_database"], 60)
    assert not is_production_host()
    config_file.write_text(text + 'pg_database = "other"\n')
    with pytest.raises(ConfigLoadError, match="pg_database is there twice"):
        load_config_file()


def test_a_file_that_is_not_named_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_SYNC_CONFIG", raising=False)
    with pytest.raises(ConfigLoadError, match="SHD_SYN_001: DATA_SYNC_CONFIG is not set"):
        load_config_file()


def test_a_file_that_is_missing_is_named(config_file: Path) -> None:
    config_file.unlink()
    with pytest.raises(ConfigLoadError) as caught:
        load_config_file()
    assert str(caught.value).startswith(f"SHD_SYN_001: {config_file}: ")
    assert "No such file" in str(caught.value)


def test_a_directory_in_the_files_place_is_told(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_SYNC_CONFIG", str(config_file.parent))
    with pytest.raises(ConfigLoadError, match="Is a directory"):
        load_config_file()


def test_a_syntax_error_is_told_with_its_line_and_without_its_text(config_file: Path) -> None:
    config_file.write_text('archive_host = "h"\npg_password = hunter2\n')
    with pytest.raises(ConfigLoadError) as caught:
        load_config_file()
    assert str(caught.value).startswith(f"SHD_SYN_001: {config_file}:2: not valid TOML: ")
    assert "hunter2" not in str(caught.value)


def test_a_file_that_ends_too_early_is_told(config_file: Path) -> None:
    config_file.write_text('archive_host = "')
    with pytest.raises(ConfigLoadError, match="not valid TOML"):
        load_config_file()


def test_a_file_that_is_not_utf_8_is_told(config_file: Path) -> None:
    config_file.write_bytes(b'archive_host = "\xff"')
    with pytest.raises(ConfigLoadError, match="not UTF-8"):
        load_config_file()


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(config_file: Path) -> None:
    text = config_file.read_text()
    config_file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert sftp_of(load_config_file()).host == "backup.example.com"


@pytest.mark.parametrize("secret", ['pg_password = "x"', '[source]\npg_password = "x"'])
def test_a_password_that_everybody_can_read_is_warned_of_once(
    config_file: Path, caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    with config_file.open("a") as file:
        file.write(secret)
    load_config_file()
    assert caplog.records == []
    config_file.chmod(0o644)
    load_config_file()
    load_config_file()
    [record] = caplog.records
    assert record.levelno == logging.WARNING and f"chmod 600 {config_file}" in record.message


def test_a_file_without_a_password_may_be_readable(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config_file.chmod(0o644)
    load_config_file()
    assert caplog.records == []


# settings.SYNCDATA


def in_settings(directory: Path, **values: Any) -> dict[str, Any]:
    return {"archive_backend": "local", "archive_dir": directory, "state_dir": directory} | values


def test_a_django_project_configures_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.conf import settings

    monkeypatch.delenv("DATA_SYNC_CONFIG", raising=False)
    monkeypatch.setattr(settings, "SYNCDATA", in_settings(tmp_path, database="replica"), raising=False)
    config = load_config()
    assert (config.database, config.state_dir, config.config_file) == ("replica", tmp_path, None)
    assert config.archive == LocalSettings(directory=tmp_path)


def test_the_environment_overrides_the_settings(tmp_path: Path) -> None:
    environ = {"DATA_SYNC_FREQ": "7", "PG_DB_NAME": "ignored", "PG_PORT": "wrong"}
    config = config_from_settings(in_settings(tmp_path), environ)
    assert (config.data_sync_freq, config.database, config.pg_database) == (7, "default", "")


def test_the_settings_need_a_directory_for_the_state(tmp_path: Path) -> None:
    values = in_settings(tmp_path)
    del values["state_dir"]
    assert problems(lambda: config_from_settings(values, {})) == ["state_dir: is required"]
    [problem] = problems(lambda: config_from_settings(in_settings(tmp_path, state_dir="/none"), {}))
    assert problem == "state_dir: /none is not a directory; make it: mkdir -p /none"


def test_the_settings_take_an_alias_and_no_connection(tmp_path: Path) -> None:
    [problem] = problems(lambda: config_from_settings(in_settings(tmp_path, pg_host="h"), {}))
    assert problem == "pg_host: is not used here; name an alias of DATABASES with 'database'"


def test_settings_that_are_not_a_dictionary_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"settings\.SYNCDATA: must be a dictionary"):
        config_from_settings([], {})


def test_reading_changes_nothing_in_the_environment(config_file: Path) -> None:
    before = dict(os.environ)
    load_config()
    assert dict(os.environ) == before


@pytest.mark.parametrize("directory", [f"/tmp/{'a' * 80}", "/tmp/a..b/run"])
def test_a_directory_of_sockets_need_be_no_name_of_a_host(directory: str) -> None:
    assert a_host(directory) == directory
