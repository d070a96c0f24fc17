"""A policy that changes: whatever dies meanwhile, each record is masked as the catalog before it says."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from syncdata.archive.local import LocalStorage
from syncdata.capture.archiver import Archiver
from syncdata.capture.spool import list_finished
from syncdata.changes.catalog import parse_catalog, parse_catalog_comment
from syncdata.changes.names import TableName
from syncdata.errors import DeliveryError
from syncdata.privacy.facts import ColumnFacts, TableFacts
from syncdata.privacy.key import from_text
from syncdata.privacy.policy import Policy, parse_policy
from tests.archiver_runner import STEPS
from tests.chains import archived_records
from tests.privacy_world import MASK_KEY, content_of
from tests.production import PUBLICATION, Production
from tests.world import World

TABLE = TableName("public", "t")
DDL = "CREATE TABLE t (id int PRIMARY KEY, email varchar(99), note text)"
# Of each policy, what it says of the columns; the names are those of the kinds that the catalog has.
POLICIES: dict[str, dict[str, Any]] = {
    "email": {"id": "keep", "email": "email", "note": "keep"},
    "token": {"id": "keep", "email": "token", "note": "keep"},
    "other": {"id": "keep", "email": {"mask": "token", "domain": "other"}, "note": "keep"},
    "withheld": {"id": "keep", "note": "keep"},
}


def policy_of(name: str) -> Policy:
    policy, problems = parse_policy({"t": POLICIES[name]}, key=from_text(MASK_KEY))
    assert problems == ()
    return policy


def masked(original: str, policy: str) -> object:
    """Return what a record of *policy* has of an e-mail address; UNSET for nothing."""
    facts = TableFacts(
        table=TABLE,
        columns=(
            ColumnFacts(name="id", type="integer", not_null=True),
            ColumnFacts(name="email", type="character varying(99)"),
            ColumnFacts(name="note", type="text"),
        ),
        identity=("id",),
        uniques=(("id",),),
        primary_key=("id",),
    )
    row_mask = policy_of(policy).judge([facts])[TABLE].row_mask(("id", "email", "note"))
    return original if row_mask is None else row_mask.row(("1", original, "x"))[1]


def ids_of(archive: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each record of `t` in the archive, and the id of the rule that the catalog before it names for
    `email`: the kind where it has none."""
    catalogs: dict[str, str] = {}
    for path in sorted(archive.glob("changes_*")):
        rule = ""
        for line in content_of(path).splitlines():
            digest = parse_catalog_comment(line)
            if line.startswith(b'# {"syncdata"'):
                digest = json.loads(line[2:])["catalog"]
            if digest is not None:
                rule = catalogs.setdefault(digest, _rule_in(archive, digest))
            elif not line.startswith(b"#"):
                yield json.loads(line), rule


def _rule_in(archive: Path, digest: str) -> str:
    path = archive / "catalog" / f"{digest}.json"
    table = parse_catalog(path.read_bytes(), f"catalog/{path.name}").find(TABLE)
    assert table is not None
    (column,) = [column for column in table.columns if column.name == "email"]
    return column.privacy_id or column.privacy


@contextmanager
def traffic(production: Production) -> Iterator[None]:
    """Insert rows, and change and delete some, all the while. The row with id N has the address of N."""
    stop = threading.Event()

    def write() -> None:
        with production.connect() as connection:
            for number in count(1):
                if stop.is_set():
                    return
                connection.execute("INSERT INTO t VALUES (%s, %s, 'a')", (number, address(number)))
                connection.execute("UPDATE t SET note = 'b' WHERE id = %s", (number - 3,))
                if number % 5 == 0:
                    connection.execute("DELETE FROM t WHERE id = %s", (number - 2,))
                stop.wait(0.005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def address(number: int) -> str:
    return f"person{number}@personal.test"


def test_killed_at_every_step_while_the_policy_changes(production: Production) -> None:
    """Under each policy the archiver dies somewhere, and the next one starts with another."""
    production.execute(DDL)
    production.publish("t")
    chance = random.Random(20261128)
    names = [*POLICIES]
    policies = [names[number % len(names)] for number in range(len(STEPS))]
    steps = [*STEPS]
    chance.shuffle(steps)
    with _runner() as start, traffic(production):
        for step, policy in zip(steps, policies, strict=True):
            outcome = start(production, step, 1 if "catalog" in step else chance.randint(1, 4), policy)
            assert outcome == "killed", f"{step}: {outcome}"
    _archiver(production, "email").run_once(threading.Event())

    # Each transaction once, in order: that holds as ever.
    assert len(archived_records(production.archive_dir)) > len(STEPS)
    ids = {masked_id: name for name in names for masked_id in [_id_of(name)]}
    seen = set()
    for record, rule in ids_of(production.archive_dir):
        policy = ids[rule]
        seen.add(policy)
        if record["op"] == "DELETE":
            assert record["old_keys"].keys() == {"id"}
            continue
        expected = masked(address(int(record["data"]["id"])), policy)
        assert record["data"].get("email", "absent") == (expected if isinstance(expected, str) else "absent")
    assert seen == set(names)


def _id_of(policy: str) -> str:
    """Return what the catalog says of `email` under *policy*: the rule's id, or that it is withheld."""
    facts = TableFacts(
        table=TABLE,
        columns=(ColumnFacts(name="email", type="character varying(99)"),),
    )
    (verdict,) = policy_of(policy).judge([facts])[TABLE].columns
    return verdict.id or verdict.privacy


@contextmanager
def _runner() -> Iterator[Callable[[Production, str, int, str], str]]:
    """Yield what starts an archiver that dies, and returns how it ended."""
    command = [sys.executable, "-m", "tests.archiver_runner"]
    folder = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
    ) as process:
        ours, theirs = process.stdin, process.stdout
        assert ours is not None and theirs is not None

        def start(production: Production, step: str, passage: int, policy: str) -> str:
            job = {
                "params": production.database.params,
                "slot_name": production.slot_name,
                "publication": PUBLICATION,
                "spool_dir": str(production.spool_dir),
                "archive_dir": str(production.archive_dir),
                "step": step,
                "passage": passage,
                "columns": {"t": POLICIES[policy]},
                "key": MASK_KEY,
            }
            ours.write(json.dumps(job) + "\n")
            ours.flush()
            return theirs.readline().strip()

        yield start
        ours.close()


def _archiver(production: Production, policy: str) -> Archiver:
    production.options["policy"] = policy_of(policy)
    return production.archiver()


def test_a_file_of_the_old_policy_waits_while_the_policy_changes(
    production: Production, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files are right, and readers stop between them until their rows follow the new rules."""
    production.execute(DDL)
    production.publish("t")
    once = threading.Event()
    _archiver(production, "email").run_once(once)
    production.execute(*(f"INSERT INTO t VALUES ({n}, '{address(n)}', 'a')" for n in (1, 2)))
    _archiver(production, "email").run_once(once)
    production.snapshot("t")
    world.execute(DDL)
    world.archive = production.archive_dir
    world.whitelist("t")
    assert world.sync().errors == ()

    # The archive is away: what was written under the old policy stays in the spool.
    production.execute(f"INSERT INTO t VALUES (3, '{address(3)}', 'a')")
    with monkeypatch.context() as patched, pytest.raises(DeliveryError):
        patched.setattr(LocalStorage, "create", _refuse)
        _archiver(production, "email").run_once(once)
    assert len(list_finished(production.spool_dir)) == 1
    production.execute(f"INSERT INTO t VALUES (4, '{address(4)}', 'a')")
    _archiver(production, "token").run_once(once)

    found = {
        int(record["data"]["id"]): record["data"]["email"] for record, _ in ids_of(production.archive_dir)
    }
    assert found == {n: masked(address(n), "email" if n < 4 else "token") for n in range(1, 5)}
    world.sync()
    assert world.checkpoint("t")[2] == "blocked"
    assert _rows(world) == [(n, masked(address(n), "email")) for n in range(1, 4)]

    production.snapshot("t")
    with world.service() as service:
        service.resync("t")
    production.execute(f"INSERT INTO t VALUES (5, '{address(5)}', 'a')", "DELETE FROM t WHERE id = 1")
    _archiver(production, "token").run_once(once)
    assert world.sync().errors == ()

    assert world.checkpoint("t")[2] == "active"
    assert _rows(world) == [(n, masked(address(n), "token")) for n in range(2, 6)]


def _refuse(*_: object) -> None:
    raise DeliveryError("the archive is away", hint="wait")


def _rows(world: World) -> list[tuple[Any, ...]]:
    return world.rows("SELECT id, email FROM t ORDER BY id")
