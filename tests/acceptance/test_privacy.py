"""Nothing personal leaves production: real commands and servers, and a search through all that they write."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syncdata.capture.protection import judge
from syncdata.capture.published import look_at
from syncdata.capture.verify_walk import VERIFICATION_FILE_NAME, load_verification
from syncdata.changes.names import TableName
from syncdata.conf import source_from_toml
from syncdata.privacy.policy import Policy
from tests import processes
from tests.privacy_world import (
    COLUMNS,
    KEPT,
    MASK_KEY,
    NUMBER,
    PERSONAL,
    TABLES,
    WITHHELD_TABLE,
    Search,
    Writer,
    content_of,
    files_below,
)
from tests.production import PUBLICATION, Production, rows_as_text, until, until_archived
from tests.world import World

SENT_TABLES = [table for table in TABLES if table != WITHHELD_TABLE]


@dataclass
class Site:
    """Production, its archiver's machine, and a local machine; ``said`` is all that commands have written."""

    production: Production
    world: World
    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def places(self) -> list[Path]:
        """Where files are written on either side, but for the configuration, which has the key's name."""
        return [self.production.archive_dir, self.production.spool_dir, self.world.state_dir, self.temporary]

    @property
    def temporary(self) -> Path:
        return self.folder / "temporary"

    def configure(self, policy: str = "", **source: Any) -> None:
        """Write the configuration of both machines; *policy* is TOML."""
        self.temporary.mkdir(exist_ok=True)
        key_file = self.folder / "mask.key"
        key_file.touch(mode=0o600)
        key_file.write_text(MASK_KEY + "\n")
        keys = {"archive_backend": "local", "archive_dir": str(self.production.archive_dir)}
        options = self.production.database.pg_keys | {
            "slot_name": self.production.slot_name,
            "spool_dir": str(self.production.spool_dir),
            "tables": [*TABLES],
            "rotate_seconds": 1,
        }
        text = _toml(keys) + "[source]\n" + _toml(options | source)
        if policy:
            text += f"[source.privacy]\nkey_file = {json.dumps(str(key_file))}\n{policy}"
        _write(self.folder / "source" / "syncdata.toml", text)
        _write(self.folder / "local" / "syncdata.toml", _toml(keys | self.world.database.pg_keys))

    def source(self, *arguments: str, status: int = 0) -> str:
        return self._run("source", *arguments, status=status)

    def local(self, *arguments: str, status: int = 0) -> str:
        return self._run("local", *arguments, status=status)

    @contextmanager
    def archiving(self) -> Iterator[None]:
        """Let the archiver's daemon run beside the block."""
        log = self.folder / "archiver.log"
        with log.open("a") as stream:
            process = processes.Process(
                ["manage.py", "archive_changes", "-v", "3", "--traceback"],
                env=self._environment("source"),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            try:
                until(lambda: self.production.rows("SELECT FROM pg_replication_slots WHERE active"))
                yield
                process.terminate()
                assert process.wait(40) == 0, log.read_text()
            finally:
                process.kill()
                process.wait()
                self.said.append(log.read_text())

    def wait_until_all_is_verified(self) -> None:
        """Wait for the end of a round of verification that began after now."""
        (self.production.spool_dir / VERIFICATION_FILE_NAME).unlink(missing_ok=True)
        until(lambda: load_verification(self.production.spool_dir).ended_at)

    def fill(self, writer: Writer, numbers: Iterable[int]) -> None:
        self.production.execute(*(statement for number in numbers for statement in writer.person(number)))

    def differences(self, table: str) -> list[str]:
        """Return how the local rows of *table* differ from the masks of production's."""
        columns, theirs = self.masked_rows(table)
        local = rows_as_text(self.world.database, TableName.parse(table))
        ours = sorted(tuple(_spelled(row[column]) for column in columns) for row in local)
        if ours == theirs:
            return []
        return [f"{len(ours)} rows, not {len(theirs)}"] + [
            f"{column}: {one[place]}, not {other[place]}"
            for one, other in zip(ours, theirs, strict=False)
            for place, column in enumerate(columns)
            if one[place] != other[place]
        ]

    def masked_rows(self, table: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the columns of *table* that travel, and production's rows as the policy masks them."""
        name = TableName.parse(table)
        with self.production.connect() as connection:
            look = look_at(connection, PUBLICATION, with_constraints=True)
        (seen,) = [seen for seen in look.tables if seen.table == name]
        raw = [column.name for column in seen.columns if not column.generated]
        rows = [[row[column] for column in raw] for row in rows_as_text(self.production.database, name)]
        mask = judge(look, self.policy, ())[name].row_mask(raw)
        sent = tuple(raw) if mask is None else mask.sent
        masked = rows if mask is None else mask.rows(rows)
        return sent, sorted(
            tuple(_spelled(value) for value in row if value is not msgspec.UNSET) for row in masked
        )

    @property
    def policy(self) -> Policy:
        path = self.folder / "source" / "syncdata.toml"
        config = source_from_toml(tomllib.loads(path.read_text()), {}, path)
        assert config.privacy is not None
        return config.privacy.load_policy()

    def require_nothing_personal(self, writer: Writer) -> None:
        """Fail where an original value is in a file, in the books, or in what commands and daemons said."""
        search = Search(writer.originals, writer.dates)
        assert search.of_files(*self.places) == []
        assert search.of(self.books().encode(), "the books") == []
        assert search.of("\n".join(self.said).encode(), "what was said") == []
        # What may travel is found in the same files, so they were searched.
        found = [
            path for path in files_below(self.production.archive_dir) if KEPT.encode() in content_of(path)
        ]
        assert {path.name.partition("_")[0] for path in found} >= {"changes"}
        assert len(found) > len(SENT_TABLES)

    def books(self) -> str:
        """Return all that the local database holds: syncdata's own tables, and the rows."""
        names = self.world.rows(
            "SELECT oid::regclass::text FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        return repr([self.world.rows(f"SELECT row::text FROM {name} AS row") for (name,) in names])

    def _run(self, machine: str, *arguments: str, status: int) -> str:
        done = processes.run("manage.py", *arguments, env=self._environment(machine))
        self.said += [done.stdout, done.stderr]
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def _environment(self, machine: str) -> dict[str, str]:
        return {
            **os.environ,
            "DATA_SYNC_CONFIG": str(self.folder / machine / "syncdata.toml"),
            "TMPDIR": str(self.temporary),
            "NO_COLOR": "1",
        }


def _spelled(value: object) -> str:
    """Return *value* so that documents are alike however jsonb spells them."""
    if isinstance(value, str) and value.startswith("{"):
        with suppress(ValueError):
            return json.dumps(json.loads(value), sort_keys=True)
    return repr(value)


def _toml(keys: dict[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in keys.items())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


@pytest.fixture
def site(
    make_production: Callable[..., Production], make_world: Callable[..., World], tmp_path: Path
) -> Site:
    production, world = make_production(), make_world()
    production.execute(*TABLES.values())
    world.execute(*TABLES.values())
    production.publish(*TABLES)
    world.archive = production.archive_dir
    made = Site(production, world, tmp_path / "site")
    made.folder.mkdir()
    return made


# What the text forms of a masked table have to do with the original ones.

JOINS = (
    "people p JOIN accounts a ON a.person_id = p.national_id",
    "people p JOIN clubs c ON c.contact = p.email",
    "people p JOIN orders o ON o.customer = p.email",
    "memberships m JOIN people p ON p.national_id = m.person_id JOIN clubs c ON c.id = m.club_id",
    "profiles f JOIN people p ON p.national_id = f.person_id",
)


def test_personal_data_of_thirteen_tables_never_leave_production(site: Site) -> None:
    writer = Writer()
    site.configure(COLUMNS)
    site.fill(writer, range(1, 6))
    site.source("archive_changes", "--once", "-v", "3")
    site.source("archive_changes", "--snapshot", "-v", "3")
    site.local("add_tables", *SENT_TABLES)
    site.local("syncdata_start", "--once")
    site.world.execute("UPDATE letters SET story = 'tampered' WHERE id = 5")
    with site.archiving():
        site.fill(writer, range(6, 10))
        site.production.execute(*writer.changes())
        until_archived(site.production)
        site.wait_until_all_is_verified()
        site.source("archive_changes", "--status")
        site.source("archive_changes", "--status", "--json")
    site.source("archive_changes", "--prune", "--dry-run")
    site.local("syncdata_start", "--once", "-v", "3")
    site.local("list_tables", "--json")
    site.local("syncdata_status", "--json")
    assert "letters" in site.local("syncdata_verify", status=1)
    site.local("resync", "letters")

    site.require_nothing_personal(writer)
    assert {table: site.differences(table) for table in SENT_TABLES} == {table: [] for table in SENT_TABLES}
    for join in JOINS:
        (there,) = site.production.rows(f"SELECT count(*) FROM {join}")
        assert site.world.rows(f"SELECT count(*) FROM {join}") == [there] != [(0,)]
    assert site.world.rows(f"SELECT * FROM {WITHHELD_TABLE}") == []


def test_the_search_finds_whatever_travels_without_a_policy(production: Production) -> None:
    """Else a search that finds nothing would prove nothing."""
    writer = Writer()
    production.execute(*TABLES.values())
    production.publish(*TABLES)
    production.archive()
    production.execute(*writer.person(1))
    production.archive()
    production.snapshot(*TABLES)

    found = Search((), writer.dates).of_files(production.archive_dir, production.spool_dir)

    tables = {f"public.{TableName.parse(table).name}.json.gz" for table in TABLES}
    assert tables <= {Path(one.place).name for one in found}
    stream = {one.form for one in found if "changes_" in one.place}
    assert stream >= {"the text", "the number", "the date", "the text in hex"}


HIDDEN = {
    "the text": f"x{PERSONAL.upper()}x",
    "the text backwards": PERSONAL[::-1],
    "the number": f"x{NUMBER}x",
    "the text in hex": PERSONAL.encode().hex().upper(),
    "the text in base64": base64.b64encode(f"a{PERSONAL}b".encode()).decode(),
    "the date": "x1756-01-01x",
    "the key": MASK_KEY.upper(),
    "a digest of the value, without a key": hashlib.sha256(f"{{{PERSONAL}}}".encode()).hexdigest(),
}


@pytest.mark.parametrize("form", HIDDEN)
def test_the_search_finds_each_form_of_a_value(form: str) -> None:
    search = Search([PERSONAL], ["1756-01-01"])

    assert [found.form for found in search.of(HIDDEN[form].encode(), "here")] == [form]
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + f"{PERSONAL}...".encode())
        assert search.of(encoded, "here")
    assert search.of(KEPT.encode(), "here") == []
