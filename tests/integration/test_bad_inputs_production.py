"""What may lie before the production side, broken, hostile or absurd: each has its code, a key or a file."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from syncdata.capture.catalog_state import STATE_FILE_NAME, load_state
from syncdata.capture.chain import CHAIN_FILE_NAME, load_chain
from syncdata.capture.owed import OWED_FILE_NAME, load_owed
from syncdata.capture.publication import PUBLISHED_FILE_NAME, load_parts
from syncdata.changes.names import TableName
from syncdata.errors import SpoolError
from tests import processes
from tests.production import PUBLICATION, Production

SECRET = "hunter2-which-nobody-may-see"

DEEP = b'{"history": ' + b"[" * 100_000
CHAIN = {"system_id": "1", "timeline": 1, "slot": "s", "epoch": "e", "confirmed_lsn": "0/1"}

BROKEN_CHAINS = {
    "empty": b"",
    "not UTF-8": b'{"system_id": "\xff"}',
    "nested deeply": DEEP,
    "of wrong types": b"[1, 2]",
    "an LSN that is none": json.dumps(CHAIN | {"last_end_lsn": "zz"}).encode(),
    "a history that is none": json.dumps(CHAIN | {"history": {"1": "zz"}}).encode(),
    "a time that is none": json.dumps(CHAIN | {"confirmed_at": SECRET}).encode(),
    "a time without a zone": json.dumps(CHAIN | {"confirmed_at": "2026-02-05T10:30:00"}).encode(),
    "a time of no year": json.dumps(CHAIN | {"confirmed_at": "294276-12-31T00:00:00Z"}).encode(),
    "a number too large": b'{"timeline": 99999999999999999999999999}',
}


@pytest.mark.parametrize("name", BROKEN_CHAINS)
def test_a_chain_that_cannot_be_read_is_an_error_with_its_file(tmp_path: Path, name: str) -> None:
    (tmp_path / CHAIN_FILE_NAME).write_bytes(BROKEN_CHAINS[name])

    with pytest.raises(SpoolError, match=r"chain\.json: the state of the chain is broken") as error:
        load_chain(tmp_path)
    assert "goes on from the archive's newest file" in error.value.hint


def test_a_chain_without_a_time_of_its_confirmation_is_one(tmp_path: Path) -> None:
    (tmp_path / CHAIN_FILE_NAME).write_text(json.dumps(CHAIN))

    assert load_chain(tmp_path) is not None


BROKEN_NOTES = [b"", b'"\xff"', b"[" * 100_000, b'{"a": ' * 100_000, b'{"a.b.c.d": 1}', b"[[1, 2]]", b"1e999"]


@pytest.mark.parametrize("content", BROKEN_NOTES, ids=lambda content: repr(content[:12]))
def test_a_note_in_the_spool_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    for name in (OWED_FILE_NAME, STATE_FILE_NAME, PUBLISHED_FILE_NAME):
        (tmp_path / name).write_bytes(content)

    assert load_owed(tmp_path) == {}
    assert load_state(tmp_path) is None
    assert load_parts(tmp_path) == {}


def test_a_name_that_is_none_hides_no_other_that_is_owed(tmp_path: Path) -> None:
    (tmp_path / OWED_FILE_NAME).write_text('{"a.b.c": 1, "orders": 2, "": 3}')

    assert load_owed(tmp_path) == {TableName("public", "orders"): 2}


@pytest.mark.parametrize("name", [CHAIN_FILE_NAME, OWED_FILE_NAME, STATE_FILE_NAME])
def test_a_file_of_the_spool_that_links_to_itself_is_an_error_of_the_spool(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(name)
    load: Callable[[Path], object] = {
        CHAIN_FILE_NAME: load_chain,
        OWED_FILE_NAME: load_owed,
        STATE_FILE_NAME: load_state,
    }[name]

    with pytest.raises(SpoolError, match=re.escape(name)):
        load(tmp_path)


# The commands


def run(
    production: Production,
    *argv: str,
    text: str = "",
    source: str = "",
    environ: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """*text* comes before all, *source* into [source] in place of the keys that it names."""
    keys = {
        **production.database.pg_keys,
        "slot_name": production.slot_name,
        "publication": PUBLICATION,
        "tables": ["t"],
        "spool_dir": str(production.spool_dir),
    }
    mine = set(re.findall(r"^(\w+) =", source, re.M))
    lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items() if name not in mine]
    head = "" if "archive_dir" in text else f'archive_dir = "{production.archive_dir}"\n'
    config = production.spool_dir.parent / "source.toml"
    config.write_text("\n".join([text, 'archive_backend = "local"', head, "[source]", source, *lines]))
    config.chmod(0o600)
    environment = os.environ | {"DATA_SYNC_CONFIG": str(config)} | (environ or {})
    return processes.run("manage.py", *argv, env=environment)


def require_refusal(done: subprocess.CompletedProcess[str], code: str, word: str) -> None:
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1, done.stdout + done.stderr
    text = done.stderr[done.stderr.index("SHD_SYN_") :]
    assert text.startswith(code) and word in text, done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert len(done.stderr) < 4_000


SOURCES: dict[str, tuple[dict[str, object], str, str]] = {
    "a port that is a secret": ({"source": f'pg_port = "{SECRET}"'}, "SHD_SYN_002", "source.pg_port"),
    "a misspelt password": ({"source": f'pg_pasword = "{SECRET}"'}, "SHD_SYN_002", "source.pg_password"),
    "a password that is a table": (
        {"source": f'pg_password = {{x = "{SECRET}"}}'},
        "SHD_SYN_002",
        "source.pg_password",
    ),
    "a slot that is a secret": ({"source": f'slot_name = "{SECRET}!"'}, "SHD_SYN_002", "source.slot_name"),
    "a publication of two lines": ({"source": 'publication = "a\\nb"'}, "SHD_SYN_002", "source.publication"),
    "a compression": ({"source": f'compression = "{SECRET}"'}, "SHD_SYN_002", "source.compression"),
    "a failover that is a list": ({"source": "failover = [1]"}, "SHD_SYN_002", "source.failover"),
    "tables of numbers": ({"source": "tables = [1]"}, "SHD_SYN_002", "source.tables"),
    "a host's label too long": ({"source": f'pg_host = "{"a" * 64}"'}, "SHD_SYN_002", "source.pg_host"),
    "a spool of nobody": ({"source": 'spool_dir = "~nobody-here/a"'}, "SHD_SYN_002", "source.spool_dir"),
    "a spool with 0": ({"source": 'spool_dir = "a\\u0000"'}, "SHD_SYN_002", "source.spool_dir"),
    "a variable not UTF-8": (
        {"environ": {"SOURCE_PG_PASSWORD": "\udcff"}},
        "SHD_SYN_002",
        "SOURCE_PG_PASSWORD",
    ),
    "TLS for half a certificate": (
        {"source": 'pg_sslkey = "/etc/hosts"'},
        "SHD_SYN_002",
        "source.pg_sslcert",
    ),
    "a spool that is a file": ({"source": 'spool_dir = "/etc/hosts"'}, "SHD_SYN_106", "/etc/hosts"),
    "an archive and a spool in a circle": (
        {"source": 'spool_dir = "loop"', "text": 'archive_dir = "loop"'},
        "SHD_SYN_106",
        "loop",
    ),
    "a source that does not listen": ({"source": "pg_port = 1"}, "SHD_SYN_101", "the source cannot be used"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_bad_configuration_of_the_source_is_told_by_file_or_key(production: Production, name: str) -> None:
    options, code, word = SOURCES[name]
    (production.spool_dir.parent / "loop").symlink_to("loop")

    require_refusal(run(production, "archive_changes", "--once", **options), code, word)  # type: ignore[arg-type]


def test_a_pid_file_that_links_to_itself_is_told(production: Production) -> None:
    production.spool_dir.mkdir()
    (production.spool_dir / ".syncdata_archiver.pid").symlink_to(".syncdata_archiver.pid")

    require_refusal(run(production, "archive_changes", "--once"), "SHD_SYN_111", ".syncdata_archiver.pid")


def test_a_broken_chain_ends_the_status_with_a_code(production: Production) -> None:
    production.spool_dir.mkdir()
    (production.spool_dir / CHAIN_FILE_NAME).write_bytes(DEEP)

    require_refusal(run(production, "archive_changes", "--status"), "SHD_SYN_106", CHAIN_FILE_NAME)
