"""The system checks and the router, on settings of a project that embeds the app."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import checks
from django.db import connections
from django.test import override_settings

from syncdata.checks import TAG
from syncdata.models import SyncLog
from syncdata.routers import SyncDataRouter


def found() -> list[str | None]:
    return [message.id for message in checks.run_checks(tags=[TAG])]


def embedded(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"archive_backend": "local", "archive_dir": str(tmp_path), "state_dir": str(tmp_path), **more}


def test_a_valid_configuration_has_no_complaint(tmp_path: Path) -> None:
    assert found() == []
    with override_settings(SYNCDATA=embedded(tmp_path)):
        assert found() == []


def test_a_configuration_that_is_wrong_is_an_error_that_begins_with_its_code(tmp_path: Path) -> None:
    with override_settings(SYNCDATA=embedded(tmp_path, archive_prot=22)):
        (error,) = checks.run_checks(tags=[TAG])
    assert (error.id, error.level) == ("syncdata.E001", checks.ERROR)
    assert error.msg.startswith("SHD_SYN_002: ")


def test_no_configuration_at_all_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_SYNC_CONFIG")
    (warning,) = checks.run_checks(tags=[TAG])
    assert (warning.id, warning.level) == ("syncdata.W001", checks.WARNING)


def test_an_alias_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with override_settings(SYNCDATA=embedded(tmp_path, database="elsewhere")):
        assert found() == ["syncdata.E002"]


@pytest.fixture
def second_database(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Add the alias "staging" without ever connecting to it."""

    def add(engine: str) -> None:
        settings = {**connections["default"].settings_dict, "ENGINE": engine, "NAME": "staging"}
        monkeypatch.setitem(connections.settings, "staging", settings)

    yield add
    if hasattr(connections._connections, "staging"):  # type: ignore[attr-defined]
        del connections["staging"]


def test_a_database_that_is_no_postgresql_is_an_error(tmp_path: Path, second_database: Any) -> None:
    second_database("django.db.backends.sqlite3")
    with override_settings(SYNCDATA=embedded(tmp_path, database="staging")):
        assert found() == ["syncdata.E003"]


def test_a_second_database_needs_the_router(tmp_path: Path, second_database: Any) -> None:
    second_database("django.db.backends.postgresql")
    with override_settings(SYNCDATA=embedded(tmp_path, database="staging")):
        assert found() == ["syncdata.E004"]
        with override_settings(DATABASE_ROUTERS=["syncdata.routers.SyncDataRouter"]):
            assert found() == []


def test_the_admin_needs_rangefilter(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "rangefilter"]
    assert found() == ["syncdata.E005"]


def test_the_router_keeps_our_models_in_the_configured_database(tmp_path: Path) -> None:
    router = SyncDataRouter()
    with override_settings(SYNCDATA=embedded(tmp_path, database="staging")):
        assert router.db_for_read(SyncLog) == router.db_for_write(SyncLog) == "staging"
        assert router.allow_migrate("staging", "syncdata") is True
        assert router.allow_migrate("default", "syncdata") is False


def test_the_router_has_no_opinion_of_other_apps(tmp_path: Path) -> None:
    router = SyncDataRouter()
    with override_settings(SYNCDATA=embedded(tmp_path, database="staging")):
        assert router.db_for_read(User) is None
        assert router.db_for_write(User) is None
        assert router.allow_migrate("staging", "auth") is None


def test_an_exposed_password_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "syncdata.toml"
    path.write_text(
        'archive_backend = "local"\narchive_dir = "/"\npg_database = "d"\npg_password = "secret"\n'
    )
    monkeypatch.setenv("DATA_SYNC_CONFIG", str(path))
    path.chmod(0o644)
    assert found() == ["syncdata.W002"]
    path.chmod(0o600)
    assert found() == []


def test_on_a_production_host_the_files_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key = tmp_path / "syncdata.toml", tmp_path / "key"
    path.write_text(
        f'archive_host = "h"\narchive_user = "u"\narchive_dir = "/"\narchive_key_file = "{key}"\n'
        f'archive_known_hosts = "{tmp_path / "absent"}"\n'
        '[source]\npg_user = "s"\npg_password = "secret"\npg_database = "shop"\ntables = ["users"]\n'
    )
    monkeypatch.setenv("DATA_SYNC_CONFIG", str(path))
    for file in (path, key):
        file.touch()
        file.chmod(0o644)
    assert found() == ["syncdata.W002", "syncdata.W003", "syncdata.W005"]


def test_a_private_key_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o644)
    sftp = {"archive_backend": "sftp", "archive_host": "backup", "archive_user": "u"}
    files = {"archive_key_file": key, "archive_known_hosts": key}
    with override_settings(SYNCDATA=embedded(tmp_path, **sftp, **files)):
        assert found() == ["syncdata.W003"]
        key.chmod(0o600)
        assert found() == []


def test_a_state_directory_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests may run as root, who may write anywhere.
    monkeypatch.setattr("syncdata.checks.os.access", lambda path, mode: path != tmp_path)
    with override_settings(SYNCDATA=embedded(tmp_path)):
        assert found() == ["syncdata.W004"]


def test_sftp_without_known_hosts_is_a_warning(tmp_path: Path) -> None:
    hosts = tmp_path / "known_hosts"
    sftp = {
        "archive_backend": "sftp",
        "archive_host": "backup",
        "archive_user": "u",
        "archive_known_hosts": hosts,
    }
    with override_settings(SYNCDATA=embedded(tmp_path, **sftp)):
        assert found() == ["syncdata.W005"]
        hosts.touch()
        assert found() == []


def test_every_check_has_a_hint_and_a_row_in_the_documentation(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    source = (root / "syncdata" / "checks.py").read_text()
    page = (root / "docs" / "embedding.md").read_text(encoding="utf-8")
    ids = re.findall(r'id="(syncdata\.[EW]\d{3})"', source)
    assert len(ids) == len(set(ids)) == source.count("checks.Warning(") + source.count("checks.Error(")
    assert source.count("hint=") == len(ids)
    assert set(re.findall(r"^\| `(syncdata\.[EW]\d{3})` \|", page, re.MULTILINE)) == set(ids)
