"""The units for systemd: what they start is there, and what they may do is little."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.core.management import get_commands

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "contrib" / "systemd").glob("*.service"))

# What each has to say, besides other things.
HARDENING = {
    "CapabilityBoundingSet": "",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "MemoryMax": "1G",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "PrivateUsers": "yes",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "Restart": "on-failure",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "StateDirectoryMode": "0700",
    "UMask": "0077",
}


def settings(unit: Path) -> list[tuple[str, str]]:
    lines = unit.read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(\w+)=(.*)", line) for line in lines]
    return [(match[1], match[2]) for match in found if match]


def test_there_is_a_unit_for_each_side() -> None:
    assert [unit.name for unit in UNITS] == ["syncdata-archiver.service", "syncdata.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_may_do_little(unit: Path) -> None:
    found = dict(settings(unit))
    assert HARDENING.items() <= found.items()
    assert found["User"] not in ("root", "")
    assert found["StateDirectory"] == unit.stem
    assert ("SystemCallFilter", "@system-service") in settings(unit)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_there_is_on_a_configuration_in_its_state(unit: Path) -> None:
    found = settings(unit)
    (command,) = [value for name, value in found if name == "ExecStart"]
    assert command.split()[1] == "manage.py" and command.split()[2] in get_commands()
    assert ("Environment", f"DATA_SYNC_CONFIG=/var/lib/{unit.stem}/syncdata.toml") in found


def test_systemd_itself_finds_little_to_complain_of() -> None:
    """Where there is a systemd to ask; the other tests hold the units elsewhere."""
    if (tool := shutil.which("systemd-analyze")) is None:
        return
    command = [tool, "security", "--offline=true", "--threshold=30", "--no-pager", *map(str, UNITS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
