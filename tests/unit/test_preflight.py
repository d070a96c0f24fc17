"""What the facts about a source amount to, where no server of the tests can be so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from syncdata.capture.publication import Part
from syncdata.capture.slot import Slot
from syncdata.changes.names import TableName
from syncdata.provision.facts import (
    Failover,
    Publication,
    PublicationPlan,
    Role,
    Server,
    SourceFacts,
    plan_publication,
)
from syncdata.provision.preflight import examine

SERVER = Server(
    version="18.0",
    version_num=180_000,
    database="shop",
    encoding="UTF8",
    is_in_recovery=False,
    wal_level="logical",
    max_slots=10,
    used_slots=0,
    max_senders=10,
    used_senders=0,
    keep_mib=20_480,
    max_wal_mib=1024,
    idle_timeout=0,
)
SOURCE = SourceFacts(
    server=SERVER,
    role=Role(name="archiver", is_superuser=False, may_replicate=True, may_create=True),
    tables=(),
    publication_name="syncdata",
    publication=None,
    slot_name="syncdata_slot",
    slot=None,
)
SLOT = Slot(
    name="syncdata_slot",
    plugin="pgoutput",
    database="shop",
    is_temporary=False,
    active_pid=None,
    reader=None,
    wal_status="reserved",
    confirmed_lsn=None,
    wal_lsn=0,
    retained_bytes=0,
    limit_bytes=None,
)
A, B, C = (TableName("public", name) for name in "abc")


def told(source: SourceFacts, level: str) -> list[str]:
    return [str(found) for found in examine(source) if found.level == level and not found.is_mended_by_setup]


def on(server: Server) -> SourceFacts:
    return replace(SOURCE, server=server)


@pytest.mark.parametrize(
    ("version_num", "expected"),
    [
        (130_022, ["PostgreSQL 18.0 is too old: 14 or later is needed"]),
        (140_000, []),
        (180_000, []),
        (190_000, []),
    ],
)
def test_servers_before_14_are_too_old(version_num: int, expected: list[str]) -> None:
    assert told(on(replace(SERVER, version_num=version_num)), "missing") == expected


def test_an_encoding_that_is_none_is_refused() -> None:
    [problem] = told(on(replace(SERVER, encoding="SQL_ASCII")), "missing")
    assert "SQL_ASCII" in problem and "createdb -T template0 -E UTF8" in problem


@pytest.mark.parametrize(
    ("marker", "remedy"),
    [
        (None, "ALTER SYSTEM SET wal_level = logical; then restart the server"),
        ("rds_superuser", "set rds.logical_replication = 1 in the service's parameters"),
        ("cloudsqlsuperuser", "set cloudsql.logical_decoding = on in the service's parameters"),
        ("azure_pg_admin", "set wal_level = logical in the service's parameters"),
    ],
)
def test_a_managed_service_is_told_its_own_way_to_logical_decoding(marker: str | None, remedy: str) -> None:
    [problem] = told(on(replace(SERVER, wal_level="replica", marker=marker)), "missing")
    assert remedy in problem


def test_on_amazon_the_right_to_replicate_is_a_membership() -> None:
    role = replace(SOURCE.role, may_replicate=False)
    source = replace(on(replace(SERVER, marker="rds_superuser")), role=role)
    assert told(source, "missing") == [
        'role archiver may not replicate: GRANT rds_replication TO "archiver";'
    ]


STANDBYS = replace(SERVER, standby_slots=("standby_1", "standby_2"))


@pytest.mark.parametrize(
    ("server", "failover", "slot", "missing", "notes"),
    [
        (SERVER, "auto", SLOT, 0, 0),
        (STANDBYS, "false", SLOT, 0, 0),
        (STANDBYS, "auto", None, 0, 1),  # standbys that may be behind
        (replace(STANDBYS, waits_for_standbys=True), "auto", None, 0, 0),
        (STANDBYS, "auto", SLOT, 0, 2),  # and a slot that is not kept there
        (replace(STANDBYS, waits_for_standbys=True), "true", SLOT, 0, 0),  # which the setup mends
        (STANDBYS, "true", replace(SLOT, reader="role archiver, pid 1"), 1, 1),
        (replace(STANDBYS, version_num=160_000), "auto", SLOT, 0, 0),
        (replace(STANDBYS, version_num=160_000), "true", SLOT, 1, 0),
    ],
)
def test_a_slot_that_a_failover_would_lose_is_told(
    server: Server, failover: Failover, slot: Slot | None, missing: int, notes: int
) -> None:
    findings = examine(replace(on(server), slot=slot), failover=failover)
    told = [f for f in findings if not f.is_mended_by_setup]
    assert sum(f.level == "missing" for f in told) == missing
    assert sum(f.level == "note" for f in told) == notes


@pytest.mark.parametrize(
    ("slot", "used_slots", "used_senders", "missing"),
    [
        (None, 8, 8, 0),
        (None, 9, 8, 1),
        (None, 8, 9, 1),
        (SLOT, 9, 8, 0),
        (SLOT, 10, 8, 1),
        (SLOT, 9, 9, 1),
        (replace(SLOT, reader="role archiver, pid 1"), 9, 9, 0),
        (replace(SLOT, reader="role archiver, pid 1"), 10, 10, 2),
    ],
)
def test_there_must_be_room_for_the_archiver_and_one_snapshot(
    slot: Slot | None, used_slots: int, used_senders: int, missing: int
) -> None:
    server = replace(SERVER, used_slots=used_slots, used_senders=used_senders)
    assert len(told(replace(on(server), slot=slot), "missing")) == missing


def test_a_slot_that_is_about_to_be_lost_is_noted() -> None:
    source = replace(SOURCE, slot=replace(SLOT, wal_status="unreserved"))
    assert told(source, "note") == ["slot syncdata_slot is about to be lost: start the archiver now"]


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        (replace(SLOT, plugin=None, database=None), "is a physical slot of something else"),
        (replace(SLOT, plugin="wal2json"), "its plugin is wal2json"),
        (replace(SLOT, database="other"), "belongs to the database other"),
        (replace(SLOT, is_temporary=True), "is a temporary slot of something else"),
    ],
)
def test_a_slot_that_is_not_ours_is_missed(slot: Slot, reason: str) -> None:
    [missing] = told(replace(SOURCE, slot=slot), "missing")
    assert reason in missing


def test_the_plan_is_the_difference_to_what_is_wanted() -> None:
    publication = Publication(
        is_owned=True,
        is_for_all_tables=False,
        tables=frozenset({A, B}),
        schemas=frozenset(),
    )
    assert plan_publication(publication, [A, B]).is_empty
    assert plan_publication(None, [A]) == PublicationPlan(is_new=True, added=(A,))
    assert plan_publication(publication, [B, C]) == PublicationPlan(added=(C,), dropped=(A,))
    part = Part(columns=("id",))
    partial = replace(
        publication,
        partial={A: part, B: part},
        schemas=frozenset({"s"}),
        lacks=("delete",),
        is_via_root=False,
    )
    assert plan_publication(partial, [A]) == PublicationPlan(dropped=(B,), dropped_schemas=("s",))
    assert plan_publication(partial, [A], widens=True) == PublicationPlan(
        dropped=(B,), made_whole=(A,), dropped_schemas=("s",), corrects_options=True
    )
