"""The plan of the house: the contracts of pyproject.toml hold, and each of them can fail."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import syncdata

PACKAGE = Path(syncdata.__file__).parent
ROOT = PACKAGE.parent
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]

# By contract, an import that it forbids, and the module that it is written into.
VIOLATIONS = {
    "The layers: imports run downwards": [
        ("changes/record.py", "import syncdata.archive.local"),
        ("apply/cycle.py", "import syncdata.conf"),
        ("service.py", "import syncdata.monitoring"),
        ("tables.py", "import syncdata.service"),
        ("capture/archiver.py", "import syncdata.provision.facts"),
        ("runtime/prefetch.py", "import syncdata.changes.record"),
    ],
    "The local side: the worker at the top, what it counts at the bottom": [
        ("apply/actions.py", "import syncdata.apply.worker"),
        ("apply/state/queue.py", "import syncdata.apply.postgres.connection"),
        ("apply/postgres/target.py", "import syncdata.apply.cycle"),
        ("apply/plan/prepare.py", "import syncdata.apply.feed.files"),
        ("apply/load.py", "import syncdata.apply.resync"),
    ],
    "Only the service and the first migration know the predecessor": [
        ("tables.py", "import syncdata.predecessor.mirror"),
        ("admin/picker.py", "import syncdata.predecessor.statefile"),
    ],
    "No Django below conf": [("archive/local.py", "import django.db"), ("confkeys.py", "import django.conf")],
    "The format and the plan are pure: no driver, no network, no thread, no process": [
        ("apply/plan/net_change.py", "import psycopg"),
        ("changes/header.py", "import threading"),
    ],
    "The privacy rules are pure: no driver, no network, no thread, no process": [
        ("privacy/policy.py", "import psycopg"),
        ("privacy/masks.py", "import threading"),
    ],
    "The cycle, a beginning and a resync know their sink as a port, not whose it is": [
        ("apply/bootstrap.py", "import syncdata.apply.postgres.catalog"),
        ("apply/context.py", "import syncdata.apply.postgres.target"),
        ("apply/load.py", "import syncdata.apply.plan.schema"),
        ("apply/resync.py", "import syncdata.apply.postgres.shadow"),
        ("apply/cycle.py", "import syncdata.apply.postgres.target"),
        ("apply/feed/files.py", "import syncdata.apply.plan.prepare"),
    ],
    "What comes next in the archive knows no database": [
        ("apply/feed/groups.py", "import syncdata.apply.state.checkpoints"),
        ("apply/feed/files.py", "import psycopg"),
    ],
    "An archive knows no database": [("archive/retention.py", "import psycopg")],
    "Neither side of the archive knows where its files lie": [
        ("capture/archiver.py", "import paramiko"),
        ("apply/cycle.py", "import syncdata.archive.local"),
    ],
    "An archive knows its storage by the port alone": [
        ("archive/put.py", "import syncdata.archive.local"),
        ("archive/content.py", "import paramiko"),
    ],
    "The configuration does not know SFTP": [("confkeys.py", "import syncdata.archive.sftp")],
    "The two sides share a format and an archive, and nothing else": [
        ("apply/cycle.py", "import syncdata.capture.chain"),
        ("capture/archiver.py", "import syncdata.apply.cycle"),
    ],
}


def lint(directory: Path) -> str:
    """Return what import-linter prints about the package in *directory*."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml", "--no-cache"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def test_every_contract_is_kept() -> None:
    printed = lint(ROOT)
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in printed, printed


def test_every_contract_has_a_violation_to_try() -> None:
    assert sorted(VIOLATIONS) == sorted(CONTRACTS)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_violation_of_each_contract_is_noticed(contract: str, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "syncdata", ignore=shutil.ignore_patterns("__pycache__", "static"))
    for module, violation in VIOLATIONS[contract]:
        path = tmp_path / "syncdata" / module
        before = path.read_text()
        path.write_text(f"{before}\n{violation}\n")
        printed = lint(tmp_path)
        assert f"{contract} BROKEN" in printed, f"{module}: {violation}\n{printed}"
        path.write_text(before)


MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_are_absolute_and_every_module_says_what_it_knows(module: Path) -> None:
    tree = ast.parse((PACKAGE / module).read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    # A command's help, and a migration's name, say it.
    if module.parts[0] not in ("migrations", "management"):
        assert ast.get_docstring(tree), f"{module} has no first line"
