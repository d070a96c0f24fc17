"""The kinds of archive by name, and one that a site brings along: its keys are like our own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from syncdata.archive.archive import open_archive
from syncdata.archive.backends import BACKENDS, find_backend
from syncdata.conf import config_from_toml, exposes_secrets, source_from_toml
from syncdata.errors import ConfigError
from syncdata.runtime.settings import a_secret, declared_keys
from tests.memory_archive import MemorySettings, MemoryStorage

OURS = "tests.memory_archive.MemorySettings"
FILE = Path("/etc/syncdata/config.toml")
LEAST: dict[str, Any] = {"archive_backend": OURS, "archive_bucket": "b", "pg_database": "d"}
SOURCE = {"pg_user": "u", "pg_database": "d", "tables": ["t"]}


def problems(values: dict[str, Any], **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_toml(values, environ, FILE)
    return str(caught.value).split("\n  - ")[1:]


def test_an_archive_of_another_kind_is_named_by_its_path_and_configured_by_its_own_keys() -> None:
    config = config_from_toml(LEAST | {"archive_token": "t"}, {"COPIES": "3"}, FILE)
    assert config.archive == MemorySettings(bucket="b", token="t", copies=3)
    archive = open_archive(config.archive)
    assert (archive.describe(), archive.discover(None)) == ("memory://b", [])


def test_the_production_side_knows_it_too() -> None:
    values = {"archive_backend": OURS, "source": SOURCE}
    config = source_from_toml(values, {"ARCHIVE_BUCKET": "b"}, FILE)
    assert config.archive == MemorySettings(bucket="b")


def test_the_keys_of_another_kind_are_checked_like_our_own() -> None:
    values = {"archive_backend": OURS, "archive_copies": 10, "archive_tokn": "x", "pg_database": "d"}
    assert problems(values) == [
        "archive_copies: must be a whole number from 1 to 9, not 10",
        "archive_tokn: is not a known key; did you mean archive_token?",
        "archive_bucket: is required (or ARCHIVE_BUCKET)",
    ]


def test_keys_of_a_kind_that_is_not_in_use_are_unknown_unless_it_comes_with_syncdata() -> None:
    local = {"archive_backend": "local", "archive_dir": "/a", "pg_database": "d"}
    assert config_from_toml(local | {"archive_host": "h"}, {}, FILE).archive == BACKENDS["local"](
        directory=Path("/a")  # type: ignore[call-arg]
    )
    assert problems(local | {"archive_bucket": "b"})[0].startswith("archive_bucket: is not a known key")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3", "must be sftp or local, or the dotted path of a class"),
        (".", "must be sftp or local, or the dotted path of a class"),
        (3, "must be sftp or local, or the dotted path of a class"),
        (
            "no_such_package.Settings",
            "'no_such_package.Settings' cannot be imported: No module named 'no_such",
        ),
        ("tests.memory_archive.Nothing", "'tests.memory_archive.Nothing' cannot be imported: module 'tests."),
        (
            "tests.memory_archive.MemoryStorage",
            "is no kind of archive: it must be a dataclass with open_storage()",
        ),
        ("tests.memory_archive.Outage", "is no kind of archive"),
    ],
)
def test_what_is_no_kind_of_archive_is_said_and_asks_for_no_keys(name: object, expected: str) -> None:
    [problem] = problems({"archive_backend": name, "pg_database": "d"})
    assert problem.startswith("archive_backend: ") and expected in problem


def test_secrets_of_every_kind_stay_out_of_repr_and_are_looked_for_in_the_file(tmp_path: Path) -> None:
    config = config_from_toml(LEAST | {"archive_token": "hunter2"}, {}, FILE)
    assert "hunter2" not in repr(config)
    path = tmp_path / "config.toml"
    path.write_text(f'archive_backend = "{OURS}"\narchive_token = "hunter2"\n')
    path.chmod(0o644)
    assert exposes_secrets(path)
    path.write_text(f'archive_backend = "{OURS}"\narchive_bucket = "b"\n')
    assert not exposes_secrets(path)


@pytest.mark.parametrize("settings", BACKENDS.values(), ids=BACKENDS)
def test_every_field_of_our_own_kinds_is_a_key_and_secrets_are_read_as_such(settings: type) -> None:
    keys = declared_keys(settings)
    assert len(keys) == len(fields(settings))
    assert all(key.is_secret == (key.parse is a_secret) for key in keys.values())
    assert all(key.variable == name.upper() for name, key in keys.items())


def test_a_kind_is_found_by_its_name() -> None:
    assert [find_backend(name) for name in BACKENDS] == list(BACKENDS.values())
    assert isinstance(MemorySettings(bucket="b").open_storage(spool_dir=None), MemoryStorage)
