"""The stand-alone site's settings and manage.py, each time in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from syncsite.secretkey import FILE_NAME, load_or_create_secret_key
from tests import processes

SETTINGS = [
    "SECRET_KEY",
    "DEBUG",
    "ALLOWED_HOSTS",
    "DATABASES",
    "SECURE_SSL_REDIRECT",
    "SESSION_COOKIE_SECURE",
]
PRINT_SETTINGS = f"""
import json
from django.conf import settings
print(json.dumps({{name: getattr(settings, name) for name in {SETTINGS}}}, default=str))
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "syncdata.toml"
    path.write_text(
        'archive_backend = "local"\narchive_dir = "/archive"\n'
        'pg_host = "db.example.com"\npg_port = 6543\npg_user = "local"\npg_password = "s3cret"\n'
        'pg_database = "staging"\n'
    )
    path.chmod(0o600)
    return path


def run(*arguments: str, config: Path | str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "PATH": os.environ["PATH"],
        "DATA_SYNC_CONFIG": str(config),
        "DJANGO_SETTINGS_MODULE": "syncsite.settings",
    }
    return processes.run(*arguments, env=variables | environment)


def manage(*arguments: str, config: Path | str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return run("manage.py", *arguments, config=config, **environment)


def read_settings(config: Path | str, *arguments: str, **environment: str) -> dict[str, Any]:
    result = run("-c", PRINT_SETTINGS, *arguments, config=config, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_database_is_the_configuration_s(config_file: Path) -> None:
    database = read_settings(config_file, PG_PORT="7654")["DATABASES"]["default"]
    assert (database["HOST"], database["PORT"]) == ("db.example.com", 7654)
    assert (database["USER"], database["PASSWORD"], database["NAME"]) == ("local", "s3cret", "staging")


def test_the_defaults_are_the_safe_ones(config_file: Path) -> None:
    settings = read_settings(config_file)
    assert settings["DEBUG"] is False
    assert settings["ALLOWED_HOSTS"] == ["localhost", "127.0.0.1", "[::1]"]
    assert settings["SECURE_SSL_REDIRECT"] is True
    assert settings["SESSION_COOKIE_SECURE"] is True


def test_the_environment_overrides_the_defaults(config_file: Path) -> None:
    settings = read_settings(
        config_file, SECRET_KEY="mine", DEBUG="on", ALLOWED_HOSTS="a.example.com,b.example.com", HTTPS="off"
    )
    assert settings["SECRET_KEY"] == "mine"
    assert settings["DEBUG"] is True
    assert settings["ALLOWED_HOSTS"] == ["a.example.com", "b.example.com"]
    assert settings["SECURE_SSL_REDIRECT"] is False
    assert not (config_file.parent / FILE_NAME).exists()


def test_runserver_speaks_plain_http(config_file: Path) -> None:
    settings = read_settings(config_file, "runserver")
    assert settings["SECURE_SSL_REDIRECT"] is False
    assert settings["SESSION_COOKIE_SECURE"] is False


def test_a_secret_key_is_made_once_and_kept_beside_the_configuration(config_file: Path) -> None:
    first, second = read_settings(config_file), read_settings(config_file)
    assert first["SECRET_KEY"] == second["SECRET_KEY"]
    assert len(first["SECRET_KEY"]) >= 50
    kept = config_file.parent / FILE_NAME
    assert kept.read_text().strip() == first["SECRET_KEY"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_processes_that_start_at_once_make_one_secret_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = {*pool.map(lambda _: load_or_create_secret_key(tmp_path), range(64))}
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("obstacle", ["no directory", "empty file"])
def test_where_no_key_can_be_kept_a_passing_one_does_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    directory = tmp_path / "missing" if obstacle == "no directory" else tmp_path
    if obstacle == "empty file":
        (tmp_path / FILE_NAME).touch()
    with caplog.at_level(logging.WARNING):
        assert len(load_or_create_secret_key(directory)) >= 50
    assert "set SECRET_KEY" in caplog.text


def test_the_deployment_check_has_nothing_to_complain_of(config_file: Path) -> None:
    result = manage("check", "--deploy", "--fail-level", "WARNING", config=config_file)
    assert (result.returncode, result.stdout) == (0, "System check identified no issues (0 silenced).\n")


def test_no_migration_is_missing_even_before_there_is_a_configuration() -> None:
    result = manage("makemigrations", "--check", "--dry-run")
    assert (result.returncode, result.stdout) == (0, "No changes detected\n")


@pytest.mark.parametrize("command", [("help",), ("add_tables", "--help")])
@pytest.mark.parametrize("configuration", ["none", "broken"])
def test_help_needs_no_configuration(tmp_path: Path, command: tuple[str, ...], configuration: str) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("= nonsense")
    result = manage(*command, config=broken if configuration == "broken" else "")
    assert result.returncode == 0, result.stderr
    assert "syncdata" in result.stdout or "usage" in result.stdout


@pytest.mark.parametrize(
    "command", [("migrate", "--skip-checks"), ("list_tables",), ("showmigrations", "--skip-checks")]
)
def test_without_a_configuration_a_command_says_so_and_no_more(command: tuple[str, ...]) -> None:
    result = manage(*command)
    assert result.returncode == 1
    assert result.stderr.startswith("SHD_SYN_001: DATA_SYNC_CONFIG is not set")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["migrate", "runserver", "list_tables", "check"])
def test_a_broken_configuration_is_named_with_its_code_and_no_traceback(tmp_path: Path, command: str) -> None:
    path = tmp_path / "syncdata.toml"
    path.write_text('archive_backend = "local"\narchive_dir = "/archive"\npg_datbase = "staging"\n')
    result = manage(command, config=path)
    assert result.returncode == 1
    assert result.stderr.startswith("SHD_SYN_002: ")
    assert "pg_datbase" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_database_that_does_not_answer_is_named_with_its_code_and_no_traceback(config_file: Path) -> None:
    result = manage("migrate", config=config_file, PG_HOST="127.0.0.1", PG_PORT="1")
    assert result.returncode == 1
    assert result.stderr.startswith("SHD_SYN_090: ")
    assert "s3cret" not in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def production_file(tmp_path: Path) -> Path:
    """The configuration of a production host: a source, an archive, and no local database."""
    path = tmp_path / "syncdata.toml"
    path.write_text(
        'archive_backend = "local"\narchive_dir = "/archive"\n'
        '[source]\npg_user = "s"\npg_database = "shop"\ntables = ["users"]\n'
    )
    path.chmod(0o600)
    return path


def test_a_production_host_has_no_local_database(production_file: Path) -> None:
    assert read_settings(production_file)["DATABASES"] == {}
    assert not (production_file.parent / FILE_NAME).exists()


def test_a_local_database_named_by_the_environment_makes_it_a_local_side_too(production_file: Path) -> None:
    databases = read_settings(production_file, PG_DB_NAME="staging")["DATABASES"]
    assert databases["default"]["NAME"] == "staging"


@pytest.mark.parametrize("command", [("migrate",), ("list_tables",), ("syncdata_start", "--once")])
def test_on_a_production_host_commands_of_the_local_side_ask_for_its_database(
    production_file: Path, command: tuple[str, ...]
) -> None:
    result = manage(*command, config=production_file)
    assert result.returncode == 1
    assert result.stderr.startswith("SHD_SYN_002: ")
    assert "pg_database: is required (or PG_DB_NAME)" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [("archive_changes", "--status"), ("migrate",)])
def test_a_broken_setting_of_the_site_is_named_also_where_there_is_no_local_database(
    production_file: Path, command: tuple[str, ...]
) -> None:
    for config in (production_file, ""):
        result = manage(*command, config=config, HSTS_SECONDS="a month")
        assert result.returncode == 1
        assert result.stderr.startswith("SHD_SYN_002: HSTS_SECONDS: must be a whole number of seconds")


def test_the_check_reads_the_source_where_it_is_all_there_is(production_file: Path) -> None:
    result = manage("check", config=production_file)
    assert (result.returncode, result.stdout) == (0, "System check identified no issues (0 silenced).\n")
    with production_file.open("a") as file:
        file.write('slot_nme = "x"\n')
    result = manage("check", config=production_file)
    assert result.returncode == 1
    assert "source.slot_nme: is not a known key; did you mean source.slot_name?" in result.stderr


@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
def test_a_server_without_a_configuration_does_not_start(interface: str) -> None:
    result = run("-c", f"import syncsite.{interface}")
    assert result.returncode == 1
    assert "SHD_SYN_001" in result.stderr


@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
def test_a_server_with_a_configuration_starts_without_a_database(config_file: Path, interface: str) -> None:
    result = run("-c", f"from syncsite.{interface} import application", config=config_file)
    assert result.returncode == 0, result.stderr
