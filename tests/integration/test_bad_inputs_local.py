"""What may lie before the local side, broken, hostile or absurd: each has its code, and a key or file."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.world import World, insert

SECRET = "hunter2-which-nobody-may-see"
LOOP = "loop"

Arrange = Callable[[World, Path, dict[str, str]], None]


def run(
    world: World, *argv: str, arrange: Arrange | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """The options are those of `processes.run`."""
    environment = environment_of(world, arrange)
    return processes.run("manage.py", *argv, env=environment, **options)


def environment_of(world: World, arrange: Arrange | None = None) -> dict[str, str]:
    config = world.state_dir / "syncdata.toml"
    config.write_text(world.toml)
    config.chmod(0o600)
    environment = os.environ | {"DATA_SYNC_CONFIG": str(config)}
    if arrange is not None:
        arrange(world, config, environment)
    return environment


def require_refusal(done: subprocess.CompletedProcess[str], code: str, *words: str) -> None:
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1, done.stdout + done.stderr
    text = done.stderr[done.stderr.index("SHD_SYN_") :]
    assert text.startswith(code), done.stderr
    for word in words:
        assert word in text
    assert SECRET not in done.stderr + done.stdout
    assert len(done.stderr) < 4_000


def content(data: bytes) -> Arrange:
    return lambda world, config, env: _put(config, data)


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def more(text: str) -> Arrange:
    """The configuration with *text* in front: a key that is there twice would be another error."""

    def arrange(world: World, config: Path, env: dict[str, str]) -> None:
        names = set(re.findall(r"^(\w+) =", text, re.M))
        lines = [line for line in world.toml.splitlines() if line.partition(" ")[0] not in names]
        config.write_text("\n".join([text, *lines]))

    return arrange


def link(name: str, target: str) -> Arrange:
    """A link in the directory of the configuration; *target* may be itself."""

    def arrange(world: World, config: Path, env: dict[str, str]) -> None:
        path = world.state_dir / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return arrange


def variable(name: str, value: str) -> Arrange:
    return lambda world, config, env: env.update({name: value})


def folder(name: str) -> Arrange:
    def arrange(world: World, config: Path, env: dict[str, str]) -> None:
        path = world.state_dir / name
        path.unlink(missing_ok=True)
        path.mkdir()

    return arrange


LONG_LABEL, LONG_NAME = "a" * 64 + ".example", "b.example." * 30
SFTP = f'archive_backend = "sftp"\narchive_user = "u"\narchive_password = "{SECRET}"\n'

CONFIGURATIONS: dict[str, tuple[Arrange, str, str]] = {
    "not UTF-8": (content(b'pg_password = "\xff"'), "SHD_SYN_001", "not UTF-8"),
    "nested deeply": (content(b"a = " + b"[" * 100_000), "SHD_SYN_001", "nested too deeply"),
    "nested tables": (content(b"a = " + b"{a = " * 50_000), "SHD_SYN_001", "nested too deeply"),
    "a number without end": (content(b"a = " + b"9" * 5_000), "SHD_SYN_001", "out of range"),
    "no such date": (content(b"a = 2026-02-31"), "SHD_SYN_001", ":1:"),
    "too large": (content(b"#" * 2_000_000), "SHD_SYN_001", "more than"),
    "without end": (variable("DATA_SYNC_CONFIG", "/dev/zero"), "SHD_SYN_001", "/dev/zero"),
    "a directory": (folder("syncdata.toml"), "SHD_SYN_001", "syncdata.toml"),
    "links in a circle": (link("syncdata.toml", "syncdata.toml"), "SHD_SYN_001", "syncdata.toml"),
    "a link to nowhere": (link("syncdata.toml", "gone.toml"), "SHD_SYN_001", "syncdata.toml"),
    "no home": (variable("DATA_SYNC_CONFIG", "~nobody-here/x.toml"), "SHD_SYN_001", "DATA_SYNC_CONFIG"),
    "a path too long": (variable("DATA_SYNC_CONFIG", "/" + "x" * 300), "SHD_SYN_001", "cannot be read"),
    "an open text": (content(b'pg_password = "%b\n' % SECRET.encode()), "SHD_SYN_001", ":1:"),
    "no quotes": (content(b"pg_password = %b\n" % SECRET.encode()), "SHD_SYN_001", ":1:"),
    "a text twice": (
        content(b'a.b = 1\n[a."%b"]\n[a."%b"]\n' % ((SECRET.encode(),) * 2)),
        "SHD_SYN_001",
        "de",
    ),
    "a text as a key": (content(b'"%b" 1\n' % SECRET.encode()), "SHD_SYN_001", ":1:"),
    "a port that is a text": (more(f'pg_port = "{SECRET}"'), "SHD_SYN_002", "pg_port"),
    "a port that is a list": (more(f'pg_port = ["{SECRET}"]'), "SHD_SYN_002", "pg_port"),
    "a host that is a table": (more(f'pg_host = {{a = "{SECRET}"}}'), "SHD_SYN_002", "pg_host"),
    "a password that is a list": (more(f'pg_password = ["{SECRET}"]'), "SHD_SYN_002", "pg_password"),
    "a misspelt password": (more(f'pg_pasword = "{SECRET}"'), "SHD_SYN_002", "pg_password"),
    "a password with 0": (more(f'pg_password = "{SECRET}\\u0000"'), "SHD_SYN_002", "pg_password"),
    "a frequency that is infinite": (more("data_sync_freq = inf"), "SHD_SYN_002", "data_sync_freq"),
    "a backend that is a list": (more('archive_backend = ["sftp"]'), "SHD_SYN_002", "archive_backend"),
    "a backend that is a secret": (more(f'archive_backend = "{SECRET}"'), "SHD_SYN_002", "archive_backend"),
    "a backend of dots": (more('archive_backend = "..a.b"'), "SHD_SYN_002", "archive_backend"),
    "a source that is a number": (more("source = 1"), "SHD_SYN_002", "source"),
    "a directory with 0": (more('archive_dir = "a\\u0000b"'), "SHD_SYN_002", "archive_dir"),
    "a directory of nobody": (more('archive_dir = "~nobody-here/a"'), "SHD_SYN_002", "archive_dir"),
    "a user of two lines": (more('pg_user = "a\\nb"'), "SHD_SYN_002", "pg_user"),
    "a host's label too long": (more(f'pg_host = "{LONG_LABEL}"'), "SHD_SYN_002", "pg_host"),
    "a host too long": (more(f'pg_host = "{LONG_NAME}"'), "SHD_SYN_002", "pg_host"),
    "a host with an empty part": (more('pg_host = "a..b"'), "SHD_SYN_002", "pg_host"),
    "a backup host too long": (more(SFTP + f'archive_host = "{LONG_NAME}"'), "SHD_SYN_002", "archive_host"),
    "a backup host's label": (more(SFTP + f'archive_host = "{LONG_LABEL}"'), "SHD_SYN_002", "archive_host"),
    "a backup host with 0": (more(SFTP + 'archive_host = "a\\u0000b"'), "SHD_SYN_002", "archive_host"),
    "a variable not UTF-8": (variable("PG_USER_NAME", "\udcff"), "SHD_SYN_002", "PG_USER_NAME"),
    "a port's variable": (variable("PG_PORT", SECRET), "SHD_SYN_002", "PG_PORT"),
    "a digits-only secret": (variable("PG_PORT", "123456789"), "SHD_SYN_002", "PG_PORT"),
    "TLS without such words": (more(f'pg_sslmode = "{SECRET}"'), "SHD_SYN_002", "pg_sslmode"),
    "TLS with a file in a circle": (more(f'pg_sslrootcert = "/dev/fd/{LOOP}"'), "SHD_SYN_002", "sslrootcert"),
    "half a client certificate": (more('pg_sslcert = "/etc/hosts"'), "SHD_SYN_002", "pg_sslkey"),
    "no seconds": (variable("HSTS_SECONDS", SECRET), "SHD_SYN_002", "HSTS_SECONDS"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_bad_configuration_is_told_by_file_or_key_without_its_values(world: World, name: str) -> None:
    arrange, code, word = CONFIGURATIONS[name]

    require_refusal(run(world, "list_tables", arrange=arrange), code, word)


STATES: dict[str, tuple[Arrange, str, str]] = {
    "a pid file that links to itself": (
        link(".syncdata.pid", ".syncdata.pid"),
        "SHD_SYN_081",
        ".syncdata.pid",
    ),
    "a pid file that is a directory": (folder(".syncdata.pid"), "SHD_SYN_081", ".syncdata.pid"),
    "a pid file on a full disk": (link(".syncdata.pid", "/dev/full"), "SHD_SYN_081", ".syncdata.pid"),
    "an archive of links in a circle": (more('archive_dir = "/dev/fd/loop"'), "SHD_SYN_061", "/dev/fd/loop"),
    "an archive that is a file": (more('archive_dir = "/etc/hosts"'), "SHD_SYN_061", "/etc/hosts"),
    "an archive with a name too long": (more(f'archive_dir = "/{"x" * 300}"'), "SHD_SYN_061", "xxx"),
    "a database that does not listen": (more("pg_port = 1"), "SHD_SYN_090", "port 1"),
    "a root certificate that is none": (
        more('pg_sslmode = "verify-full"\npg_sslrootcert = "/etc/hosts"'),
        "SHD_SYN_090",
        "",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_a_cycle_ends_with_a_code_and_the_file(world: World, name: str) -> None:
    arrange, code, word = STATES[name]
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")

    require_refusal(run(world, "syncdata_start", "--once", arrange=arrange), code, word)


STATE_FILES = {
    "not UTF-8": b'{"last_file": "\xff"}',
    "nested deeply": b'{"tables": ' + b"[" * 100_000,
    "of wrong types": b'{"last_file": 1, "tables": []}',
    "a name of two megabytes": b'{"last_file": "%b"}' % (b"x" * 2_000_000),
    "a name of two lines": b'{"last_file": "a\\nb"}',
    "empty": b"",
}


@pytest.mark.parametrize("name", STATE_FILES)
def test_a_bad_state_file_is_told_in_a_line_and_stops_nothing(world: World, name: str) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")
    world.write("changes_20260205_103000.json", [insert("t", id=1)])
    (world.state_dir / ".syncdata_state.json").write_bytes(STATE_FILES[name])

    done = run(world, "syncdata_start", "--once")

    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert ".syncdata_state.json" in done.stderr and len(done.stderr) < 2_000
    assert len(done.stderr.splitlines()) == 1
    assert world.value("SELECT count(*) FROM t") == 1


def test_output_that_cannot_be_written_ends_a_command_with_a_code(world: World) -> None:
    with Path("/dev/full").open("w") as full:
        argv = ["manage.py", "list_tables", "--json"]
        with processes.Process(
            argv, env=environment_of(world), stdout=full, stderr=subprocess.PIPE
        ) as process:
            _, errors = process.communicate(timeout=60)
        done = subprocess.CompletedProcess(argv, process.returncode, "", errors)

    require_refusal(done, "SHD_SYN_094", "No space left on device")


def test_a_name_that_the_terminal_cannot_print_is_printed_with_escapes(world: World) -> None:
    world.execute('CREATE TABLE "größe_表" (id int PRIMARY KEY)')
    world.whitelist("größe_表")

    done = run(world, "list_tables", arrange=variable("PYTHONIOENCODING", "ascii"), is_cold=True)

    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "\\u8868" in done.stdout


def test_a_locale_that_is_missing_stops_nothing(world: World) -> None:
    done = run(world, "list_tables", arrange=variable("LC_ALL", "xx_YY.KOI8-R"), is_cold=True)

    assert done.returncode == 0 and done.stderr == ""
