"""A change of the privacy policy at production: what the status says, what is copied anew, and what goes."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard
from django.core.management import call_command

from syncdata.capture.owed import Asked, load_owed
from syncdata.capture.status import ArchiverStatus, PrivacyStatus, format_archiver_status
from syncdata.changes.names import TableName
from syncdata.conf import source_from_toml
from syncdata.daemon import PidFile
from syncdata.errors import RetentionError, SnapshotError, SourceChangedError
from syncdata.production import ProductionService
from tests.production import Production
from tests.world import World

USERS = TableName("public", "users")
RULES: dict[str, Any] = {
    "users": {"id": "keep", "email": "email", "name": "keep"},
    "orders": {"id": "keep", "total": "keep"},
}
TABLES = (
    "CREATE TABLE users (id int PRIMARY KEY, email text, name text, notes text)",
    "CREATE TABLE orders (id int PRIMARY KEY, total numeric)",
)


@dataclass
class Site:
    """A production side whose configuration changes now and then."""

    production: Production
    folder: Path

    def service(self, rules: dict[str, Any] | None, **privacy: Any) -> ProductionService:
        return ProductionService(source_from_toml(self.toml(rules, **privacy), {}, self.folder / "c.toml"))

    def toml(self, rules: dict[str, Any] | None, **privacy: Any) -> dict[str, Any]:
        source: dict[str, Any] = self.production.database.pg_keys | {
            "slot_name": self.production.slot_name,
            "spool_dir": str(self.production.spool_dir),
            "tables": ["users", "orders"],
            "keep_days": 14,
        }
        if rules is not None:
            source |= {"columns": rules, "privacy": {"key_file": str(self.folder / "key")} | privacy}
        archive = {"archive_backend": "local", "archive_dir": str(self.production.archive_dir)}
        return archive | {"source": source}

    def leaks(self) -> list[str]:
        """Return the names of the archive's files that an original value is in."""
        return [name for name, text in self._texts() if b"secret" in text]

    def _texts(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.production.archive_dir.rglob("*.json*")):
            content = path.read_bytes()
            if path.suffix == ".zst":
                content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
            elif path.suffix == ".gz":
                content = gzip.decompress(content)
            yield path.name, content


@pytest.fixture
def site(production: Production, tmp_path: Path) -> Site:
    """Two tables, whose rows have travelled as they are until now."""
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("5e" * 32)
    site = Site(production, tmp_path)
    production.execute(
        *TABLES,
        "INSERT INTO users SELECT n, 'secret' || n, 'Ada', 'secret' FROM generate_series(1, 20) AS n",
        "INSERT INTO orders VALUES (1, 10)",
    )
    production.publish("users", "orders")
    once(site.service(None))
    production.execute("UPDATE users SET name = 'Eve' WHERE id = 1")
    once(site.service(None))
    site.service(None).take_snapshots(stop=threading.Event())
    return site


def once(service: ProductionService) -> None:
    service.run_once(threading.Event())


def privacy(service: ProductionService) -> PrivacyStatus:
    found = service.get_status().privacy
    assert found is not None
    return found


def prune(service: ProductionService, **options: Any) -> list[str]:
    removals = service.prune_before_policy(stop=threading.Event(), **options)
    return [file.name for file in removals.files]


def test_without_a_policy_the_status_says_that_all_columns_travel(site: Site) -> None:
    status = site.service(None).get_status()
    assert status.privacy is None
    assert "privacy: no policy, every column of published tables travels as it is" in format_archiver_status(
        status
    )


def test_the_status_says_what_the_policy_comes_to(site: Site) -> None:
    service = site.service({"users": RULES["users"]})
    waiting = service.get_status()
    assert "the policy is not in force before archive_changes has started with it" in format_archiver_status(
        waiting
    )
    last = service.get_status().last_file
    once(service)
    status = service.get_status()
    found = privacy(service)
    assert found.masked == {"users": {"email": "email"}}
    assert found.withheld == {"users": ("notes",)}
    assert found.withheld_tables == ("orders",)
    assert found.last_before == last
    text = format_archiver_status(status)
    assert (
        f"privacy: the policy is in force since {found.since}; columns that no rule names are withheld"
        in text
    )
    assert "  users: masked: email (email); withheld: notes\n" in text
    assert "  withheld as a whole: orders\n" in text
    assert (
        f"  files up to {last} may hold what it keeps back now: they are kept until {found.older_until},"
        in text
    )
    assert "secret" not in text


def of_one_kind(text: str) -> str:
    """A mask of somebody's own, which takes some values only."""
    if text.startswith("secret-odd"):
        raise ValueError(text)
    return "masked"


def test_the_status_counts_values_that_no_mask_could_take(site: Site) -> None:
    """In two sessions, of which the second goes on with the counts of the first."""
    counts = []
    service = site.service(RULES | {"users": RULES["users"] | {"email": f"{__name__}:of_one_kind"}})
    once(service)
    assert privacy(service).unmasked == {}
    for number in (70, 71):
        site.production.execute(
            f"INSERT INTO users VALUES ({number}, 'secret-odd', 'x'), ({number + 10}, 'secret', 'y')"
        )
        once(service)
        (table,) = privacy(service).unmasked
        counts.append(privacy(service).unmasked[table]["email"])
    assert (table, 0 < counts[0] < counts[1]) == ("users", True)
    text = format_archiver_status(service.get_status())
    assert "  users: masks could not take all values of email: replaced\n" in text
    assert "secret" not in text + (site.production.spool_dir / "unmasked.json").read_text()
    # Under another policy they are of no matter.
    once(site.service(RULES))
    assert privacy(site.service(RULES)).unmasked == {}


def test_the_status_as_json_has_the_policy(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = source_from_toml(site.toml(RULES), {}, site.folder / "c.toml")
    monkeypatch.setattr("syncdata.management.commands.archive_changes.load_source_config", lambda: config)
    once(ProductionService(config))
    out = io.StringIO()
    with PidFile(ProductionService(config).pid_file, role="archiver"):
        call_command("archive_changes", "--status", "--json", stdout=out)
    found = json.loads(out.getvalue())["privacy"]
    assert (found["unnamed"], found["masked"]) == ("withhold", {"users": {"email": "email"}})


def test_an_archiver_under_another_policy_is_a_problem(site: Site) -> None:
    once(site.service(RULES))
    service = site.service(RULES | {"users": {"id": "keep"}})

    def kinds(status: ArchiverStatus) -> list[str]:
        return [problem.kind for problem in status.problems]

    assert "other-policy" not in kinds(service.get_status())
    with PidFile(service.pid_file, role="archiver"):
        assert "other-policy" in kinds(service.get_status())
        assert "other-policy" not in kinds(site.service(RULES).get_status())


def test_all_snapshots_leave_out_what_is_withheld_as_a_whole(site: Site) -> None:
    service = site.service({"users": RULES["users"]})
    once(service)
    taken = service.take_snapshots(stop=threading.Event())
    assert [snapshot.table for snapshot in taken] == [USERS]


def test_a_withheld_table_that_is_not_published_is_missed_by_nobody(site: Site) -> None:
    """Setup takes it off the publication; it is in the configuration all the same."""
    site.production.execute("ALTER PUBLICATION syncdata DROP TABLE orders")
    service = site.service({"users": RULES["users"]})
    once(service)
    assert [problem.kind for problem in service.get_status().problems] == ["not-running"]
    assert [snapshot.table for snapshot in service.take_snapshots(stop=threading.Event())] == [USERS]
    assert any("orders" in name for name in prune(service))
    assert not service.prune(stop=threading.Event()).reason
    assert site.leaks() == []
    with pytest.raises(SnapshotError):
        service.take_snapshots(["orders"], stop=threading.Event())


def test_a_changed_policy_owes_the_tables_concerned_a_snapshot_where_that_is_asked_for(site: Site) -> None:
    once(site.service(RULES))
    site.production.execute("INSERT INTO users VALUES (50, 'secret', 'x', 'secret')")
    changed = RULES | {"users": RULES["users"] | {"name": "token"}}
    once(site.service(changed))
    assert load_owed(site.production.spool_dir) == {}
    newest = site.production.open_archive().discover_snapshots()[0].stamp
    config = site.toml(changed | {"users": RULES["users"]}, snapshot=True)
    config["source"]["snapshot_bytes"] = 1  # far too large, but asked for
    service = ProductionService(source_from_toml(config, {}, site.folder / "c.toml"))
    once(service)
    assert load_owed(site.production.spool_dir) == {}, "it was taken at once"
    taken = [
        file.table for file in site.production.open_archive().discover_snapshots() if file.stamp > newest
    ]
    assert taken == [USERS]


def test_what_is_owed_for_a_policy_is_noted_as_asked_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    once(site.service(RULES))
    monkeypatch.setattr(ProductionService, "copy_rewritten", lambda *args, **options: [])
    once(site.service(RULES | {"users": {"id": "keep", "email": "token", "name": "keep"}}, snapshot=True))
    (since,) = load_owed(site.production.spool_dir).values()
    assert isinstance(since, Asked)


def test_files_of_before_the_policy_go_when_there_are_snapshots_under_it(
    site: Site, make_world: Callable[..., World]
) -> None:
    service = site.service(RULES)
    with pytest.raises(RetentionError, match="no archiver has worked under this privacy policy yet"):
        prune(service)
    before = [file.name for file in site.production.open_archive().discover(None)]
    once(service)
    assert site.leaks()
    # Of orders nothing is masked, and its snapshot goes on from the last file of before.
    lacking = service.prune_before_policy(stop=threading.Event())
    assert (lacking.files, lacking.without_snapshot) == ((), (USERS,))
    service.take_snapshots(stop=threading.Event())
    planned = prune(service, is_dry_run=True)
    assert site.leaks()
    assert set(before) < set(planned)
    assert prune(service) == planned
    assert site.leaks() == []
    assert privacy(service).last_before is None
    assert prune(service) == []

    # The archiver goes on, and who begins now has rows that are equal to the masked ones.
    site.production.execute("INSERT INTO users VALUES (60, 'secret60', 'x', 'secret')")
    once(service)
    world = make_world()
    world.archive = site.production.archive_dir
    world.execute("CREATE TABLE users (id int PRIMARY KEY, email text, name text)", TABLES[1])
    world.whitelist("users", "orders")
    assert world.sync().errors == ()
    assert world.value("SELECT count(DISTINCT email) FROM users WHERE email LIKE '%@example.invalid'") == 21
    assert site.leaks() == []


def test_a_snapshot_of_another_policy_is_none_of_the_present_one(site: Site) -> None:
    once(site.service(RULES))
    site.service(RULES).take_snapshots(stop=threading.Event())
    changed = site.service(RULES | {"users": RULES["users"] | {"name": "token"}})
    once(changed)
    assert USERS in changed.prune_before_policy(stop=threading.Event()).without_snapshot
    with pytest.raises(SourceChangedError, match="not the one that the archiver has last worked under"):
        site.service(RULES).take_snapshots(stop=threading.Event())


def test_the_command_fails_where_older_values_stay(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    config = source_from_toml(site.toml(RULES), {}, site.folder / "c.toml")
    monkeypatch.setattr("syncdata.management.commands.archive_changes.load_source_config", lambda: config)
    service = ProductionService(config)
    once(service)
    out = io.StringIO()
    with pytest.raises(RetentionError, match="no snapshot under the privacy policy that is in force of"):
        call_command("archive_changes", "--prune", "--before-policy", stdout=out)
    assert out.getvalue() == "removed 0 files, 0 B\n"
    service.take_snapshots(stop=threading.Event())
    out = io.StringIO()
    call_command("archive_changes", "--prune", "--before-policy", "--dry-run", stdout=out)
    assert "would remove" in out.getvalue()
    assert site.leaks()
    call_command("archive_changes", "--prune", "--before-policy", stdout=io.StringIO())
    assert site.leaks() == []


def test_without_a_policy_nothing_is_older_than_it(site: Site) -> None:
    with pytest.raises(RetentionError, match="there is no privacy policy"):
        prune(site.service(None))
