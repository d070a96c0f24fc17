"""A million rows in one transaction go through in bounded memory, on both sides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.production import Production
from tests.world import World

ROWS = 1_000_000
LIMIT_MIB = 250
ROOT = Path(__file__).parents[2]
# As the command line does, and then its own peak on standard error.
SYNC = """
import sys
from django.core.management import execute_from_command_line
from tests.archive_once import peak_mib
execute_from_command_line(["manage.py", "syncdata_start", "--once"])
sys.stderr.write(f"peak {peak_mib()}")
"""


def test_a_million_rows_in_one_transaction_are_archived_and_read_in_bounded_memory(
    production: Production, world: World, tmp_path: Path
) -> None:
    table = "CREATE TABLE t (id int PRIMARY KEY, note text, amount numeric)"
    production.execute(table)
    production.publish("t")
    production.execute(
        f"INSERT INTO t SELECT n, repeat('note ', 10) || n, n * 1.25 FROM generate_series(1, {ROWS}) n"
    )
    settings = production.settings
    job = {
        "params": dict(settings.params),
        "slot_name": settings.slot_name,
        "publication": settings.publication,
        "spool_dir": str(settings.spool_dir),
        "archive_dir": str(production.archive_dir),
    }
    command = [sys.executable, "-m", "tests.archive_once"]
    archived = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert float(archived.stdout) < LIMIT_MIB
    assert len(list(production.archive_dir.glob("changes_*"))) == 1  # whole transactions only

    world.execute(table)
    world.options |= {"archive_dir": str(production.archive_dir)}
    world.whitelist("t")
    toml = tmp_path / "syncdata.toml"
    toml.write_text(world.toml)
    read = subprocess.run(
        [sys.executable, "-c", SYNC],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PATH": "", "DATA_SYNC_CONFIG": str(toml), "DJANGO_SETTINGS_MODULE": "syncsite.settings"},
    )
    assert float(read.stderr.rpartition("peak ")[2]) < LIMIT_MIB
    query = "SELECT count(*), sum(id), sum(amount), md5(string_agg(note, '' ORDER BY id)) FROM t"
    assert world.rows(query) == production.rows(query)
