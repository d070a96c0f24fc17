"""Small files that follow each other go to the tables together, and leave what they leave one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import connections
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from syncdata.apply import run
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed import stretches
from syncdata.apply.feed.stretches import Pace
from syncdata.apply.position import Advance
from syncdata.apply.postgres.shadow import ShadowTarget
from syncdata.apply.postgres.target import Target
from syncdata.apply.state import checkpoints
from syncdata.apply.state.checkpoints import TableCheckpoint, array_text
from syncdata.apply.state.runs import note_waiting
from syncdata.errors import ApplyError
from tests.proxy import CommitLosingProxy
from tests.world import World, delete, insert, truncate, update, with_header

COLUMNS = "id int PRIMARY KEY, u text, note text"


def name(number: int) -> str:
    return f"changes_20260205_10{number // 60:02d}{number % 60:02d}.json"


def moment(number: int) -> str:
    return f"2026-02-05T10:{number // 60:02d}:{number % 60:02d}Z"


@contextmanager
def advances(monkeypatch: pytest.MonkeyPatch, *, one_by_one: bool = False) -> Iterator[list[Advance]]:
    """Collect the advances that commit; with *one_by_one*, no file joins another."""
    seen: list[Advance] = []
    apply = Target.apply

    def applied(self: Target, prepared: Any, advance: Advance) -> Any:
        outcome = apply(self, prepared, advance)
        seen.append(advance)
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(Target, "apply", applied)
        if one_by_one:
            patch.setattr(stretches.Part, "goes_on", lambda self, before: False)
        yield seen


@contextmanager
def counted_statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    sent: list[None] = []
    execute = psycopg.Cursor.execute

    def counted(self: psycopg.Cursor[Any], *args: Any, **options: Any) -> Any:
        sent.append(None)
        return execute(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", counted)
        yield sent


def write_files(world: World, files: Sequence[Sequence[dict[str, Any] | str]]) -> None:
    for number, records in enumerate(files):
        world.write(name(number), records)


def write_chain(world: World, files: Sequence[Sequence[dict[str, Any]]], *, start: int = 0) -> None:
    """Write files with a header and a footer, each of which names the one before."""
    prev, lsn = (name(start - 1) if start else None), start * 1000
    for number, records in enumerate(files, start=start):
        content = with_header(records, seq=number + 1, prev=prev, start=lsn)
        (world.archive / name(number)).write_bytes(content)
        prev, lsn = name(number), lsn + 1000


def state(world: World, *tables: str) -> dict[str, Any]:
    """Return all that syncing has left, but for times."""
    left: dict[str, Any] = {table: world.rows(f"SELECT * FROM {table} ORDER BY 1") for table in tables}
    left["checkpoints"] = world.rows(
        "SELECT table_name, file, file_finished, record_number, file_size, commit_lsn, source_id, state,"
        " error, rows_synced, records_added, records_updated, records_deleted, records_truncated,"
        " records_missing, file_added, file_missing, last_lsn, last_change_at, marks::text"
        " FROM data_sync_checkpoints ORDER BY table_name"
    )
    left["logs"] = world.rows(
        "SELECT archive_ref, table_name, status, action, rows_synced, records_added, records_updated,"
        " records_deleted, records_truncated, records_missing, error_detail FROM data_sync_logs"
        " ORDER BY sync_time, table_name, archive_ref"
    )
    left["metrics"] = world.rows(
        "SELECT table_name, period_type, records_added, records_updated, records_deleted"
        " FROM data_sync_metrics ORDER BY 1, 2"
    )
    left["run"] = world.rows("SELECT sum(records_synced) FROM data_sync_runs")
    return left


def wait_for(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def inserts(count: int, table: str = "t") -> list[list[dict[str, Any]]]:
    return [[insert(table, ts=moment(n), id=n, u=f"u{n}", note="x")] for n in range(count)]


@pytest.fixture
def one(world: World) -> World:
    world.execute(f"CREATE TABLE t ({COLUMNS})", f"CREATE TABLE s ({COLUMNS})")
    world.whitelist("t", "s")
    return world


def test_small_files_go_together_and_each_has_its_audit_row(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(one, inserts(40))
    with advances(monkeypatch) as seen:
        result = one.sync()
    assert (result.files_processed, result.records_added) == (40, 40)
    assert len(seen) < 10
    assert sum(len(advance.files) or 1 for advance in seen) == 40
    assert one.rows("SELECT archive_ref, records_added FROM data_sync_logs ORDER BY sync_time") == [
        (name(n), 1) for n in range(40)
    ]
    assert one.value("SELECT sum(records_added) FROM data_sync_metrics WHERE period_type = 'MONTH'") == 40
    assert one.rows("SELECT DISTINCT file, record_number, file_finished FROM data_sync_checkpoints") == [
        (name(39), 1, True)
    ]


# What a source can do to two tables, file by file; some of it the target cannot follow cleanly.
_file = st.lists(
    st.tuples(
        st.sampled_from(["t", "s", "other"]),
        st.sampled_from(["insert", "update", "partial", "move", "delete", "truncate", "unknown"]),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=4,
)


def _file_records(number: int, steps: list[tuple[str, str, int, int]]) -> list[dict[str, Any]]:
    ts, text = moment(number), f"f{number}"
    made: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
        "insert": lambda table, a, b: insert(table, ts=ts, id=a, u=text, note="n"),
        "update": lambda table, a, b: update(table, {"id": a}, ts=ts, id=a, u=text, note="n"),
        "partial": lambda table, a, b: update(table, {"id": a}, ts=ts, id=a, u=text),
        "move": lambda table, a, b: update(table, {"id": a}, ts=ts, id=b, u=text, note="m"),
        "delete": lambda table, a, b: delete(table, ts=ts, id=a),
        "truncate": lambda table, a, b: truncate(table, ts=ts),
        "unknown": lambda table, a, b: insert(table, ts=ts, id=a, nobody=1),
    }
    # A TRUNCATE and an unknown column are rare.
    rare = {("truncate", 0, 0), ("unknown", 5, 5)}
    return [
        made[step](table, a, b)
        for table, step, a, b in steps
        if step not in ("truncate", "unknown") or (step, a, b) in rare
    ]


@pytest.mark.parametrize("is_headed", [False, True])
def test_files_together_leave_what_they_leave_one_by_one(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, is_headed: bool
) -> None:
    together, apart = make_world(), make_world()
    for each in (together, apart):
        each.execute(f"CREATE TABLE t ({COLUMNS})", f"CREATE TABLE s ({COLUMNS})")
    joined = 0

    @settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example([[("t", "insert", n, 0)] for n in range(6)])  # Of what is random, nothing may go together.
    # Together, it does not show that the second record finds no row.
    @example(
        [[("s", "insert", n, 0)] for n in range(4)] + [[("t", "partial", 0, 0)], [("t", "insert", 0, 0)]]
    )
    @example(
        [[("s", "insert", n, 0)] for n in range(4)] + [[("t", "delete", 0, 0)], [("t", "truncate", 0, 0)]]
    )
    @given(st.lists(_file, min_size=5, max_size=8))
    def check(files: list[list[tuple[str, str, int, int]]]) -> None:
        nonlocal joined
        left = []
        for each in (together, apart):
            each.execute(
                "TRUNCATE t, s, tables_to_sync, data_sync_checkpoints, data_sync_logs, data_sync_metrics,"
                " data_sync_runs CASCADE"
            )
            each.whitelist("t", "s")
            for old in each.archive.glob("changes_*"):
                old.unlink()
            write = write_chain if is_headed else write_files
            write(each, [_file_records(n, steps) for n, steps in enumerate(files)])
            with advances(monkeypatch, one_by_one=each is apart) as seen:
                each.sync()
            joined += sum(len(advance.files) for advance in seen)
            left.append(state(each, "t", "s"))
        assert left[0] == left[1]

    check()
    assert joined > 0


def test_rows_that_are_missing_are_counted_for_the_file_that_missed_them(one: World) -> None:
    write_files(one, [[*records, delete("s", ts=moment(n), id=n)] for n, records in enumerate(inserts(12))])
    assert one.sync().blocked == ()
    assert one.rows(
        "SELECT archive_ref, records_missing FROM data_sync_logs WHERE table_name = 's' ORDER BY sync_time"
    ) == [(name(n), 1) for n in range(12)]


def test_a_file_that_is_out_of_the_ordinary_ends_the_stretch_before_it(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[list[dict[str, Any] | str]] = [list(records) for records in inserts(12)]
    files[7] = [insert("t", ts=moment(7), id=7), "no record at all", insert("t", ts=moment(7), id=70)]
    write_files(one, files)
    with advances(monkeypatch):
        result = one.sync()
    assert (result.records_added, len(result.blocked)) == (7, 2)
    assert one.rows("SELECT DISTINCT error_file, error_line FROM data_sync_checkpoints") == [(name(7), 2)]
    assert one.value("SELECT count(*) FROM t") == 7
    one.write(name(7), [insert("t", ts=moment(7), id=7)])
    assert one.sync().blocked == ()
    assert one.value("SELECT count(*) FROM t") == 12


def test_a_record_that_blocks_in_a_stretch_is_named_and_the_others_go_on(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.execute("ALTER TABLE t ADD CHECK (id <> 9)")
    files = [[*records, insert("s", ts=moment(n), id=n)] for n, records in enumerate(inserts(20))]
    write_files(one, files)
    with advances(monkeypatch) as seen:
        result = one.sync()
    assert result.blocked == ("t",)
    assert (one.checkpoint("t")[0], one.checkpoint("s")[0]) == (name(8), name(19))
    assert one.rows("SELECT error_file, error_line FROM data_sync_checkpoints WHERE table_name = 't'") == [
        (name(9), 1)
    ]
    assert any(advance.files for advance in seen)
    with one.service() as service:
        service.skip_record("t", f"{name(9)}:1")
    assert one.sync().blocked == ()
    assert one.value("SELECT count(*) FROM t") == 19
    assert one.rows("SELECT archive_ref FROM data_sync_logs WHERE action = 'skip'") == [(f"{name(9)}:1",)]


def test_a_gap_in_the_middle_stops_behind_the_files_before_it(one: World) -> None:
    write_chain(one, inserts(12))
    missing = (one.archive / name(7)).read_bytes()
    (one.archive / name(7)).unlink()
    assert one.sync().blocked == ("s", "t")
    assert one.rows("SELECT DISTINCT file, error_file FROM data_sync_checkpoints") == [(name(6), name(8))]
    (one.archive / name(7)).write_bytes(missing)
    assert one.sync().blocked == ()
    assert one.value("SELECT count(*) FROM t") == 12


def test_a_file_that_is_cut_short_stops_behind_the_files_before_it(one: World) -> None:
    write_chain(one, inserts(12))
    whole = (one.archive / name(7)).read_bytes()
    (one.archive / name(7)).write_bytes(whole[:-20])
    assert one.sync().blocked == ("s", "t")
    assert one.rows("SELECT DISTINCT file, error_file FROM data_sync_checkpoints") == [(name(6), name(7))]
    (one.archive / name(7)).write_bytes(whole)
    for newer in range(8, 12):
        (one.archive / name(newer)).unlink()
    assert one.sync().blocked == ()
    assert one.value("SELECT count(*) FROM t") == 8


def test_the_newest_file_that_is_still_being_written_is_waited_for(one: World) -> None:
    write_chain(one, inserts(12))
    whole = (one.archive / name(11)).read_bytes()
    (one.archive / name(11)).write_bytes(whole[:-20])
    result = one.sync()
    assert (result.blocked, result.waiting_for, result.records_added) == ((), name(11), 11)
    (one.archive / name(11)).write_bytes(whole)
    assert one.sync().records_added == 1


def test_a_lost_answer_to_commit_applies_no_stretch_twice(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.execute("CREATE TABLE bag (v int)")
    one.whitelist("bag")
    write_chain(one, [[insert("bag", ts=moment(n), v=n)] for n in range(60)])
    direct_port = connections.databases[one.alias]["PORT"]
    answers_lost = 0
    with advances(monkeypatch) as seen:
        for number in range(3, 9):
            with CommitLosingProxy(one.database.server, lose_commit=number) as proxy:
                connections.databases[one.alias]["PORT"] = proxy.port
                try:
                    one.sync()
                except ApplyError:
                    answers_lost += proxy.is_cut.is_set()
            connections.databases[one.alias]["PORT"] = direct_port
            wait_for(lambda: one.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0)
        one.sync()
    assert answers_lost >= 3
    assert any(advance.files for advance in seen)
    assert one.rows("SELECT count(*), count(DISTINCT v) FROM bag") == [(60, 60)]
    assert one.value("SELECT count(*) FROM data_sync_logs WHERE action = 'sync'") == 60
    assert one.value("SELECT records_added FROM data_sync_metrics WHERE period_type = 'MONTH'") == 60


def test_a_stop_ends_the_files_between_two_stretches(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(one, inserts(60))
    stop = threading.Event()
    note = Cycle._note_finished

    def noted(self: Cycle, file: str) -> None:
        note(self, file)
        if file == name(5):
            stop.set()

    monkeypatch.setattr(Cycle, "_note_finished", noted)
    with one.service() as service:
        service.run_loop(interval_s=1, stop=stop)
    (number,) = one.rows("SELECT count(*) FROM t")[0]
    assert 6 <= number < 60
    assert one.rows("SELECT DISTINCT file FROM data_sync_checkpoints") == [(name(number - 1),)]
    assert one.value("SELECT count(*) FROM data_sync_logs WHERE action = 'sync'") == number
    assert one.sync().records_added == 60 - number


def test_a_table_that_is_altered_between_two_stretches_takes_its_rows_as_it_is(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(one, inserts(60))
    note = Cycle._note_finished

    def noted(self: Cycle, file: str) -> None:
        note(self, file)
        if file == name(20):
            one.execute("ALTER TABLE t RENAME COLUMN note TO gone", "ALTER TABLE t ADD note varchar(5)")

    def went_well(self: Pace) -> None:
        self.files = min(self.files * 2, 8)

    # However fast files are read, some come in a stretch behind the one with that file.
    monkeypatch.setattr(Pace, "went_well", went_well)
    monkeypatch.setattr(Cycle, "_note_finished", noted)
    assert one.sync().blocked == ()
    before = one.value("SELECT count(*) FROM t WHERE gone = 'x' AND note IS NULL")
    after = one.value("SELECT count(*) FROM t WHERE note = 'x'")
    assert 21 <= before < 60
    assert before + after == 60


def test_a_resync_takes_small_files_together(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chain(one, inserts(40))
    one.sync()
    one.execute("DELETE FROM t")
    seen: list[Advance] = []
    apply = ShadowTarget.apply

    def applied(self: ShadowTarget, prepared: Any, advance: Advance) -> Any:
        seen.append(advance)
        return apply(self, prepared, advance)

    monkeypatch.setattr(ShadowTarget, "apply", applied)
    with one.service() as service:
        assert service.resync("t").records_added == 40
    assert len(seen) < 10
    assert one.value("SELECT count(*) FROM t") == 40
    assert one.rows("SELECT file, state FROM data_sync_checkpoints WHERE table_name = 't'") == [
        (name(39), "active")
    ]


def test_a_row_that_one_of_two_rebuilt_tables_misses_doubles_none_of_the_other(world: World) -> None:
    world.execute("CREATE TABLE bag (v text)", f"CREATE TABLE t ({COLUMNS})")
    world.whitelist("bag", "t")
    files = [[insert("bag", ts=moment(n), v="v"), insert("t", ts=moment(n), id=n)] for n in range(20)]
    files[15].append(update("t", ts=moment(15), id=99, note="x"))
    write_chain(world, files)
    with world.service() as service:
        done = service.resync_tables(["bag", "t"])
    assert not [outcome for outcome in done.values() if isinstance(outcome, Exception)]
    assert world.value("SELECT count(*) FROM bag") == 20
    assert world.rows(
        "SELECT table_name, records_added, records_missing FROM data_sync_logs ORDER BY table_name"
    ) == [("bag", 20, 0), ("t", 20, 1)]


def test_indexes_go_with_the_files_that_are_taken_apart(world: World) -> None:
    world.execute(f"CREATE TABLE s ({COLUMNS})", f"CREATE TABLE t ({COLUMNS})")
    world.whitelist("s", "t")
    files = [[insert("s", ts=moment(n), id=n)] for n in range(20)]
    # The first that the new rows of t see.
    files[15] += [insert("t", ts=moment(15), id=1), update("t", ts=moment(15), id=99, note="x")]
    files[16] += [insert("t", ts=moment(16), id=1, note="again"), delete("t", ts=moment(16), id=98)]
    write_chain(world, files)
    with world.service() as service:
        done = service.resync_tables(["s", "t"])
    assert not [outcome for outcome in done.values() if isinstance(outcome, Exception)]
    assert world.rows("SELECT id, note FROM t") == [(1, "again")]
    assert world.value("SELECT count(*) FROM s") == 20


def test_a_hundred_small_files_need_few_statements(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chain(one, inserts(1))
    one.sync()

    def statements(first: int, count: int) -> int:
        files = [[insert("t", ts=moment(n), id=n, u="u", note="x")] for n in range(first, first + count)]
        write_chain(one, files, start=first)
        with counted_statements(monkeypatch) as sent:
            one.sync()
        return len(sent)

    of_one = statements(1, 1)
    of_a_hundred = statements(2, 100)
    assert one.value("SELECT count(*) FROM t") == 102
    assert of_a_hundred < 12 * of_one


def test_names_of_all_kinds_stand_in_an_array(world: World) -> None:
    values = ["plain", 'a "quoted" one', "back\\slash\\", "{a,b}", "NULL", "", " ", "é", None, 7]
    with world.connect() as connection:
        row = connection.execute("SELECT %s::text[]", (array_text(values),)).fetchone()
    assert row == ([value if value is None else str(value) for value in values],)


def test_checkpoints_are_made_of_their_rows_once(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one.sync()
    made = 0

    def counted_init(*arguments: Any, **values: Any) -> TableCheckpoint:
        nonlocal made
        made += 1
        return TableCheckpoint(*arguments, **values)

    monkeypatch.setattr(checkpoints, "TableCheckpoint", counted_init)
    write_files(one, inserts(1))
    assert one.sync().records_added == 1
    assert made <= 2  # s and t, which the cycle reads and the batch reads again


def test_what_waits_is_noted_when_it_changes(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[int, int]] = []

    def note(connection: Any, run_id: int, *, files: int, size_bytes: int) -> None:
        noted.append((files, size_bytes))
        note_waiting(connection, run_id, files=files, size_bytes=size_bytes)

    monkeypatch.setattr(run, "note_waiting", note)
    write_files(one, inserts(1))
    one.sync()
    size_bytes = (one.archive / name(0)).stat().st_size
    assert noted == [(1, size_bytes), (0, 0)]
    assert one.rows("SELECT waiting_files, waiting_bytes FROM data_sync_runs") == [(0, 0)]
