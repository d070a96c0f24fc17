"""The README names everything that an operator can type, set or meet."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands
from django.dispatch import Signal

from syncdata import signals
from syncdata.archive.backends import BACKENDS, DEFAULT_BACKEND
from syncdata.conf import SourceConfig, SyncConfig
from syncdata.errors import SyncError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DERIVED = {"config_file", "archive"}  # where the configuration came from, and what many keys make: no keys
COMMANDS = sorted(name for name, app in get_commands().items() if app in ("syncdata", "syncsite"))
ARCHIVE_FIELDS = {
    field.metadata["key"]: field
    for settings in BACKENDS.values()
    for field in fields(settings)  # type: ignore[arg-type]
}
FIELDS = {field.name: field for field in fields(SyncConfig) if field.name not in DERIVED} | ARCHIVE_FIELDS
KEYS = sorted({"archive_backend", *FIELDS})
SOURCE_FIELDS = [field for field in fields(SourceConfig) if field.name not in {"archive", "state_dir"}]


def row_of(first_cell: str) -> str:
    """Return the table row whose first cell is *first_cell*, or an empty string."""
    found = re.search(rf"^\| `{re.escape(first_cell)}` \|(.*)$", README, re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_section(command: str) -> None:
    assert f"\n### {command}\n" in README


@pytest.mark.parametrize("key", KEYS)
def test_every_configuration_key_has_a_row(key: str) -> None:
    assert row_of(key)


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_the_row_of_a_key_tells_its_default(key: str) -> None:
    default = FIELDS[key].default
    if isinstance(default, int | str) and default:
        assert str(default) in row_of(key)


def test_the_row_of_the_archives_backend_tells_its_default_and_the_others() -> None:
    assert all(name in row_of("archive_backend") for name in BACKENDS)
    assert f"| `{DEFAULT_BACKEND}` |" in f"|{row_of('archive_backend')}"


@pytest.mark.parametrize("field", SOURCE_FIELDS, ids=lambda field: field.name)
def test_every_key_of_the_source_has_a_row_that_tells_its_default(field: Any) -> None:
    row = row_of(f"source.{field.name}")
    assert row
    if isinstance(field.default, int | str):
        assert str(field.default) in row


@pytest.mark.parametrize("code", sorted(SyncError.by_code))
def test_every_error_code_has_a_meaning_and_a_remedy(code: str) -> None:
    meaning, remedy = row_of(code).strip(" |").split(" | ")
    assert meaning
    assert remedy


def test_every_code_in_the_readme_exists() -> None:
    assert set(re.findall(r"SHD_SYN_\d{3}", README)) == set(SyncError.by_code)


@pytest.mark.parametrize("signal", [name for name, it in vars(signals).items() if isinstance(it, Signal)])
def test_every_signal_has_a_row(signal: str) -> None:
    assert row_of(signal)
