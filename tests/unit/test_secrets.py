"""Secrets stay out of what is printed: the settings' own text, Django's dump of them, and errors."""

from __future__ import annotations

import dataclasses
import logging
import pwd
from pathlib import Path
from typing import Any

import environ
import pytest
from django.views.debug import SafeExceptionReporterFilter

from syncdata import conf
from syncdata.archive.sftp import SftpSettings
from syncdata.conf import SourceConfig, config_from_settings, config_from_toml, source_from_toml
from syncdata.errors import ConfigError, ConfigLoadError
from syncdata.production import ProductionService
from syncsite.environment import read_env_file, read_seconds

SECRET = "hunter2-which-nobody-may-see"
HOME = Path("/home/jane/syncdata.toml")
ARCHIVE = {
    "archive_host": "backup.example",
    "archive_user": "jane",
    "archive_dir": "/changes",
    "archive_password": SECRET,
    "archive_key_passphrase": SECRET,
}
LOCAL = ARCHIVE | {"pg_database": "mydb", "pg_password": SECRET}
SOURCE = ARCHIVE | {
    "source": {"pg_user": "archiver", "pg_password": SECRET, "pg_database": "shop", "tables": ["users"]}
}


def source() -> SourceConfig:
    return source_from_toml(SOURCE, {}, HOME)


def walk(value: Any) -> list[Any]:
    """Return *value* and every dataclass that its fields lead to."""
    if not dataclasses.is_dataclass(value):
        return []
    inside = [walk(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return [value, *(found for some in inside for found in some)]


def everything() -> list[Any]:
    service = ProductionService(source())
    roots = [
        config_from_toml(LOCAL, {}, HOME),
        source(),
        service._settings,
        service._provision_settings,
    ]
    return [found for root in roots for found in walk(root)]


def test_no_settings_show_a_secret_in_their_text() -> None:
    found = everything()

    assert any(isinstance(settings, SftpSettings) and settings.password == SECRET for settings in found)
    for settings in found:
        for text in (repr(settings), str(settings), f"{settings}", f"{[settings]}"):
            assert SECRET not in text, type(settings)


def test_djangos_dump_of_the_settings_hides_them(settings: Any) -> None:
    settings.SYNCDATA = LOCAL | {"source": SOURCE["source"]}

    assert SECRET not in repr(SafeExceptionReporterFilter().get_safe_settings())


@pytest.mark.parametrize(
    "value",
    [
        None,
        SECRET,
        [SECRET],
        {1: SECRET},
        {"pg_password": SECRET},
        {"archive_password": [SECRET]},
        {"archive_passwrd": SECRET},
        {"archive_port": SECRET},
        {"archive_backend": {SECRET: 1}},
        {"archive_dir": b"x"},
        {"database": SECRET.encode()},
        {"state_dir": 3},
        {"source": SECRET, "batch_bytes": SECRET},
        {("a", "tuple"): SECRET},
    ],
    ids=repr,
)
def test_a_project_with_wrong_settings_is_told_by_key_without_values(value: object) -> None:
    with pytest.raises(ConfigError) as error:
        config_from_settings(value, {})

    assert SECRET not in str(error.value).replace("SYNCDATA", "")
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    "line",
    [
        f"pg_password = {SECRET}",
        f'pg_password = "{SECRET}',
        f"{SECRET} = 1\n{SECRET} = 2",
        f"pg_password = '{SECRET}' {SECRET}",
        f'pg_password = {{"{SECRET}" = 1, "{SECRET}" = 2}}',
        f'["{SECRET}"]\n["{SECRET}"]',
        f'pg_password = "\\{SECRET}"',
    ],
)
def test_an_error_of_syntax_quotes_nothing_of_the_file(tmp_path: Path, line: str) -> None:
    path = tmp_path / "syncdata.toml"
    path.write_text(line)

    with pytest.raises(ConfigLoadError) as error:
        conf._read_toml(path)

    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_a_user_without_a_name_and_without_a_home_needs_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", no_name)
    monkeypatch.delenv("HOME", raising=False)

    for given in (LOCAL, {"archive_backend": "local", "archive_dir": "/a", "pg_database": "mydb"}):
        assert config_from_toml(given, {}, HOME).pg_database == "mydb"
    with pytest.raises(ConfigError, match=r"archive_dir: begins with ~.*write the whole path"):
        config_from_toml({"archive_backend": "local", "archive_dir": "~/a", "pg_database": "mydb"}, {}, HOME)


# The site's own file


@pytest.mark.parametrize("content", [b"SECRET_KEY=\xff\xfe", b"SECRET_KEY=a\0b"])
def test_a_file_of_variables_that_cannot_be_read_is_an_error_with_its_name(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / ".env"
    path.write_bytes(content)

    with pytest.raises(ConfigLoadError, match=r"\.env: "):
        read_env_file(environ.Env(), path)


def test_a_line_that_is_no_variable_is_told_without_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".env"
    path.write_text(f"SECRET_KEY {SECRET}\n")

    with caplog.at_level(logging.DEBUG):
        read_env_file(environ.Env(), path)

    assert "a line of .env is not NAME=value" in caplog.text
    assert SECRET not in caplog.text


def test_links_in_a_circle_and_no_file_at_all_are_no_variables(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(".env")

    read_env_file(environ.Env(), tmp_path / ".env")
    read_env_file(environ.Env(), tmp_path / "none")


@pytest.mark.parametrize("value", [SECRET, "1e400", "9" * 5_000])
def test_a_number_of_seconds_that_is_none_is_not_quoted(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HSTS_SECONDS", value)

    with pytest.raises(ConfigError, match="HSTS_SECONDS: must be a whole number") as error:
        read_seconds(environ.Env(), "HSTS_SECONDS", 1)
    assert SECRET not in str(error.value)
