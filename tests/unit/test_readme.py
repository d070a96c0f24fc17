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
from syncdata.conf import ArchiveConfig, SourceConfig, SyncConfig
from syncdata.errors import SyncError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DERIVED = {"config_file"}  # where the configuration came from: no key
COMMANDS = sorted(name for name, app in get_commands().items() if app in ("syncdata", "syncsite"))
KEYS = sorted({field.name for field in fields(SyncConfig)} - DERIVED)
SHARED = {field.name for field in fields(ArchiveConfig)} | {"state_dir"}
SOURCE_FIELDS = [field for field in fields(SourceConfig) if field.name not in SHARED]


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


@pytest.mark.parametrize("field", [field for field in fields(SyncConfig) if field.name in KEYS])
def test_the_row_of_a_key_tells_its_default(field: object) -> None:
    default = getattr(field, "default", None)
    if isinstance(default, int | str) and default:
        assert str(default) in row_of(field.name)  # type: ignore[attr-defined]


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
