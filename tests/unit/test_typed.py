"""The short way from runs of lines to a plan: it makes the plan of the general way, or leaves it to that."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from syncdata.apply.plan.batches import BatchFile, Limits, Segment, cost_of, cut_batches
from syncdata.apply.plan.net_change import try_plan
from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.plan.table_plan import TableBatch, TablePlan
from syncdata.apply.plan.typed import plan_runs
from syncdata.changes.names import TableName
from syncdata.changes.proof import Count
from syncdata.changes.reader import read_pieces
from syncdata.changes.record import odd_record, parse_record
from syncdata.changes.run import (
    LocatedRecord,
    Piece,
    Records,
    Run,
    by_table,
    count_simple,
    records_in,
    records_of,
    try_run,
)
from syncdata.errors import ParseError, SyncError

KINDS = {
    "id": ("bigint", "plain"),
    "part": ("text", "plain"),
    "amount": ("numeric(12,2)", "plain"),
    "rate": ("double precision", "plain"),
    "flag": ("boolean", "plain"),
    "tags": ("jsonb", "json"),
    "from": ("text[]", "array"),
}
SCHEMA = TableSchema(
    name=TableName("public", "t"),
    oid=1,
    key=("id",),
    columns=tuple(
        Column(name=name, sql_type=sql_type, type=ColumnType(kind=kind))  # type: ignore[arg-type]
        for name, (sql_type, kind) in KINDS.items()
    ),
)
SCHEMAS = [SCHEMA, replace(SCHEMA, key=("part", "id"))]

ROW = {
    "id": "7",
    "part": '"x"',
    "amount": "1.10",
    "rate": "2",
    "flag": "true",
    "tags": '"{}"',
    "from": "null",
}
# As they stand in a line, so that each digit is there.
VALUES = [
    *('"a"', '"\\u00e9\\""', '"é"', '""', "null", "true", "false", "0", "-0", "-0.0", "12", "1.10", "1.1"),
    *(
        "1e5",
        "1e999",
        "-1.5E-7",
        "9" * 30,
        '"-0"',
        "[1,2]",
        '{"a":[1]}',
        "[]",
        '"{\\"a\\": -0}"',
        '"\\u0000"',
    ),
]


def line(op: str, data: dict[str, str] | None, old_keys: dict[str, str] | None = None, **more: Any) -> bytes:
    parts = [f'"table":"t","op":"{op}"']
    parts += [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in more.items()]
    for name, values in (("data", data), ("old_keys", old_keys)):
        if values is not None:
            members = ",".join(f"{json.dumps(column)}:{value}" for column, value in values.items())
            parts.append(f'"{name}":{{{members}}}')
    return ("{" + ",".join(parts) + "}\n").encode()


def run_of(*lines: bytes, first: int = 1) -> Run:
    run = try_run(b"".join(lines), first, "f.json")
    assert run is not None
    return run


def batch_of(schema: TableSchema, run: Run, *, is_plain: bool) -> TableBatch:
    return TableBatch(schema=schema, records=Records([run]), file=BatchFile(name="f.json", is_plain=is_plain))


def both_ways(schema: TableSchema, run: Run, *, is_plain: bool) -> tuple[Any, Any]:
    batch = batch_of(schema, run, is_plain=is_plain)
    return told(try_plan(batch)), told(try_plan(replace(batch, records=list(run.records()))))


def told(plan: TablePlan | SyncError) -> Any:
    """Return all that *plan* says, types and the order of rows and keys included."""
    if isinstance(plan, SyncError):
        return type(plan), plan.message, plan.hint, plan.table, plan.file, plan.line
    return repr(plan)


values = st.sampled_from(VALUES)
keys = st.sampled_from(["1", "2", "3", '"1"', '"2"'])
rows = st.builds(
    lambda key, others: {**ROW, **others, "id": key},
    keys,
    st.dictionaries(st.sampled_from(["part", "amount", "rate", "flag", "tags", "from"]), values, max_size=2),
)
old_keys = st.none() | st.builds(lambda key: {"id": key, "part": '"x"'}, keys)
whole = st.builds(
    lambda op, data, old: line(op, data, old, ts="t"), st.sampled_from(["INSERT", "UPDATE"]), rows, old_keys
)
# With some columns alone; under identity FULL beside the whole old row.
parts = st.builds(
    lambda op, data, left_out, old: line(
        op, {c: v for c, v in data.items() if c not in left_out}, old and {**old, "id": data["id"]}, ts="t"
    ),
    st.sampled_from(["UPDATE", "UPDATE", "INSERT"]),
    rows,
    st.sampled_from([["amount"], ["amount"], ["rate", "flag"], ["tags", "from"], ["amount", "tags", "from"]]),
    st.none() | st.none() | st.just({"part": '"x"'}) | rows,
)
deletes = st.builds(lambda key: line("DELETE", None, {"id": key, "part": '"x"'}, ts="t"), keys)
odd = st.builds(
    lambda op, data, left_out, old: line(
        op, data and {c: v for c, v in data.items() if c not in left_out}, old, ts="t"
    ),
    st.sampled_from(["INSERT", "UPDATE", "DELETE"]),
    st.none() | rows | st.just({**ROW, "new": "1"}) | st.just({**ROW, "id": "null"}),
    st.sets(st.sampled_from(["id", "amount", "flag"]), max_size=1),
    st.none() | st.just({}) | st.just(ROW) | st.just({"part": '"x"'}) | old_keys,
)


@settings(max_examples=400, deadline=None)
@given(
    lines=st.lists(whole | whole | parts | parts | deletes, min_size=1, max_size=8),
    schema=st.sampled_from(SCHEMAS),
    is_plain=st.booleans(),
)
def test_both_ways_make_the_same_plan(lines: list[bytes], schema: TableSchema, is_plain: bool) -> None:
    by_runs, one_by_one = both_ways(schema, run_of(*lines), is_plain=is_plain)
    assert by_runs == one_by_one


plain_rows = st.builds(
    lambda key, amount, tags: {**ROW, "id": key, "amount": amount, "tags": tags},
    st.sampled_from(["1", "2"]),
    st.sampled_from(["1.5", "2.5", "null"]),
    st.sampled_from(['"a"', '"b"', "null"]),
)


@settings(max_examples=1_000, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(["INSERT", "UPDATE", "UPDATE", "DELETE"]),
            plain_rows,
            st.sampled_from([(), ("amount",), ("amount",), ("tags",), ("amount", "tags", "from")]),
            st.sampled_from(["no old row", "no old row", "its key", "all of it"]),
        ),
        min_size=2,
        max_size=8,
    ),
    split=st.integers(1, 8),
    is_plain=st.booleans(),
)
def test_both_ways_make_the_same_plan_of_rows_that_lack_columns(
    changes: list[tuple[str, dict[str, str], tuple[str, ...], str]], split: int, is_plain: bool
) -> None:
    lines = []
    for op, row, left_out, what in changes:
        texts = row if is_plain else {c: v if v[0] in '"n' else f'"{v}"' for c, v in row.items()}
        old = {"its key": {"id": texts["id"]}, "all of it": texts | {"amount": texts["tags"]}}.get(what)
        data = {name: value for name, value in texts.items() if name not in left_out}
        if op == "DELETE":
            lines.append(line(op, None, old or {"id": texts["id"]}, ts="t"))
        else:
            lines.append(line(op, data, old, ts="t"))
    runs = [run_of(*lines[at : at + split], first=at + 1) for at in range(0, len(lines), split)]
    batch = replace(batch_of(SCHEMA, runs[0], is_plain=is_plain), records=Records(runs))
    one_by_one = try_plan(replace(batch, records=[located for run in runs for located in run.records()]))
    plan = plan_runs(batch)
    assert plan is not None
    assert told(plan) == told(one_by_one)


@settings(max_examples=400, deadline=None)
@example(
    lines=[
        line("INSERT", ROW, ts="t"),
        line("UPDATE", {n: v for n, v in ROW.items() if n != "amount"}, ROW | {"rate": "[1,2]"}, ts="t"),
    ],
    schema=SCHEMAS[0],
    is_plain=True,
)
@given(
    lines=st.lists(whole | parts | deletes | odd, min_size=1, max_size=5),
    schema=st.sampled_from(SCHEMAS),
    is_plain=st.booleans(),
)
def test_both_ways_say_the_same_of_records_that_leave_something_to_decide(
    lines: list[bytes], schema: TableSchema, is_plain: bool
) -> None:
    batch = batch_of(schema, run := run_of(*lines), is_plain=is_plain)
    by_runs, one_by_one = try_plan(batch), try_plan(replace(batch, records=list(run.records())))
    # An odd value makes texts of the numbers beside it, which the server does not tell apart from them.
    assert told(spelled(by_runs)) == told(spelled(one_by_one))


def spelled(plan: TablePlan | SyncError) -> TablePlan | SyncError:
    """Return *plan* with its integers as texts."""
    if isinstance(plan, SyncError):
        return plan
    writes = {
        shape: [tuple(str(value) if type(value) is int else value for value in row) for row in rows]
        for shape, rows in plan.writes.items()
    }
    return replace(plan, writes=writes)


STRINGS = {name: '"x"' for name in KINDS}


@pytest.mark.parametrize(
    ("lines", "is_plain"),
    [
        ([line("INSERT", ROW), line("UPDATE", ROW, {"id": "7"}), line("DELETE", None, {"id": "7"})], True),
        ([line("INSERT", ROW | {"amount": "1.10", "rate": "-1.5e-7"})], True),
        ([line("INSERT", STRINGS), line("UPDATE", STRINGS, STRINGS), line("DELETE", None, STRINGS)], False),
        (
            [line("INSERT", dict(reversed(STRINGS.items())), commit_lsn="0/1", lsn="0/1", xid=5, more=[1])],
            False,
        ),
        ([line("UPDATE", {"id": '"x"', "amount": '"1"'}), line("DELETE", None, {"id": '"x"'})], False),
        (
            [line("INSERT", {"id": "7", "amount": "1.10"}), line("UPDATE", {"id": "7", "rate": "2"}, ROW)],
            True,
        ),
    ],
)
def test_rows_and_deletes_go_the_short_way(lines: list[bytes], is_plain: bool) -> None:
    assert plan_runs(batch_of(SCHEMA, run_of(*lines), is_plain=is_plain)) is not None


@pytest.mark.parametrize(
    "odd_line",
    [
        line("UPDATE", {"amount": '"1"'}),
        line("UPDATE", {"amount": '"1"'}, {"id": '"x"'}),
        line("UPDATE", {"id": '"x"', "new": '"1"'}),
        line("UPDATE", {"id": '"x"', "amount": '"1"'}, {"id": '"another"'}),
        line("UPDATE", STRINGS, {"id": '"another"'}),
        line("INSERT", STRINGS | {"new": '"1"'}),
        line("INSERT", STRINGS | {"tags": "{}"}),
        line("INSERT", STRINGS | {"flag": "true"}),
        line("INSERT", STRINGS | {"id": "null"}),
        line("DELETE", STRINGS),
        line("DELETE", None, {"part": '"x"'}),
        line("INSERT", None),
    ],
)
def test_what_leaves_something_to_decide_goes_the_general_way(odd_line: bytes) -> None:
    run = run_of(line("INSERT", STRINGS), odd_line)
    assert plan_runs(batch_of(SCHEMA, run, is_plain=False)) is None


def test_an_integer_keeps_the_sign_of_its_zero() -> None:
    run = run_of(line("INSERT", ROW | {"flag": "-0"}))
    assert plan_runs(batch_of(SCHEMA, run, is_plain=True)) is None


def test_the_last_of_several_inserts_of_a_key_stays() -> None:
    run = run_of(*(line("INSERT", STRINGS | {"part": f'"{part}"'}) for part in "abc"))
    plan = plan_runs(batch_of(SCHEMA, run, is_plain=False))
    assert plan is not None
    assert [[row[1] for row in written] for written in plan.writes.values()] == [["c"]]
    assert not plan.only_inserts


@pytest.mark.parametrize("is_plain", [True, False])
def test_of_a_column_that_a_line_names_twice_both_ways_take_the_last(is_plain: bool) -> None:
    twice = line("INSERT", STRINGS).replace(b'"part":"x"', b'"part":"first","part":"last"')
    by_runs, one_by_one = both_ways(SCHEMA, run_of(twice), is_plain=is_plain)
    assert by_runs == one_by_one
    assert "last" in by_runs
    assert "first" not in by_runs


def test_bytes_of_a_plain_file_go_the_general_way() -> None:
    columns = (*SCHEMA.columns[:1], Column(name="part", sql_type="bytea", type=ColumnType(kind="bytea")))
    run = run_of(line("INSERT", {"id": '"7"', "part": '"AAE="'}))
    schema = replace(SCHEMA, columns=columns)
    assert plan_runs(batch_of(schema, run, is_plain=True)) is None
    assert plan_runs(batch_of(schema, run, is_plain=False)) is not None


def test_a_generated_column_is_no_column_of_the_short_way() -> None:
    generated = replace(SCHEMA.columns[1], is_generated=True)
    schema = replace(SCHEMA, columns=(SCHEMA.columns[0], generated))
    plan = plan_runs(batch_of(schema, run_of(line("INSERT", {"id": '"7"'})), is_plain=False))
    assert plan is not None
    assert [shape.columns for shape in plan.writes] == [("id",)]
    assert (
        plan_runs(batch_of(schema, run_of(line("INSERT", {"id": '"7"', "part": '"x"'})), is_plain=False))
        is None
    )


# Lines that are no run


def mutations() -> Iterator[bytes]:
    good = line("INSERT", ROW, commit_lsn="0/1", ts="t", lsn="0/1", xid=5, schema="public")
    yield from (
        good[:at] + bytes([byte]) + good[at + 1 :] for at in range(len(good)) for byte in b'"\\{}:,\xff1-'
    )
    yield from (good[:at] + good[at + 1 :] for at in range(len(good)))
    yield from (
        good.replace(b'"x"', value) for value in (b'"\\x"', b'"\xed\xa0\x80"', b'"\t"', b"01", b"[", b"NaN")
    )


def test_a_run_holds_only_lines_that_are_records() -> None:
    beside = line("INSERT", ROW, commit_lsn="0/1")
    runs = 0
    for text in mutations():
        if text.count(b"\n") != 1:
            continue
        try:
            record: Any = parse_record(text)
        except ParseError as error:
            record = odd_record(text, error.message)
        run = try_run(beside + text, 5, "f.json")
        if run is not None:
            runs += 1
            located = list(run.records())[1]
            assert (located.record, located.line, located.size_bytes) == (record, 6, len(text))
            assert located.file == "f.json"
    assert runs > 100


@pytest.mark.parametrize(
    "text",
    [
        line("TRUNCATE", None),
        b'{"table":"","op":"B","ts":"t"}\n',
        line("INSERT", ROW).replace(b'"t"', b'""'),
        line("INSERT", ROW).rstrip(b"\n") + line("INSERT", ROW),
        line("INSERT", ROW, commit_lsn="nonsense"),
        line("INSERT", ROW, commit_lsn="0/1") * 2 + line("INSERT", ROW, commit_lsn="nonsense"),
        line("INSERT", ROW, ts="t") + line("INSERT", ROW, ts="t", commit_lsn=""),
        line("INSERT", ROW, ts="t") + line("INSERT", ROW, ts="t", commit_lsn="0/1"),
        line("INSERT", ROW) + line("INSERT", ROW).replace(b'"t"', b'""'),
        line("INSERT", ROW, schema=""),
        line("MERGE", ROW),
        line("INSERT", ROW).replace(b'"data":{', b'"data":[{').replace(b"}}", b"}]}"),
    ],
)
def test_other_lines_are_no_run(text: bytes) -> None:
    assert try_run(text, 1, "f.json") is None


@settings(max_examples=500, deadline=None)
@given(parts=st.lists(st.sampled_from([b"{", b"}", b"\n", b"}\n{", b"#", b'{"a":1}\n', b"x"]), max_size=12))
@example(parts=[b"{", b"\n", b'{"a":1}\n'])
@example(parts=[b'{"a":1}\n', b"x", b"}", b"\n"])
def test_simple_lines_all_begin_and_end_as_objects(parts: list[bytes]) -> None:
    text = b"".join(parts)
    lines = text.splitlines(keepends=True)
    are_simple = all(line_.startswith(b"{") and line_.endswith(b"}\n") for line_ in lines)
    assert count_simple(text) == (len(lines) if are_simple else 0)


RECORD = line("INSERT", {"id": '"7"'})
HEADED = b'# {"syncdata":1}\n'


@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [RECORD, RECORD, RECORD * 3, b"# a comment\n", b"\n", b" \n", HEADED, b'# {"end":\n']
        ),
        max_size=12,
    ),
    is_headed=st.booleans(),
    block_bytes=st.sampled_from([1, 7, len(RECORD), 4 * len(RECORD), 1 << 18]),
)
def test_each_record_between_comments_and_blank_lines_is_read_with_its_number(
    parts: list[bytes], is_headed: bool, block_bytes: int
) -> None:
    text = b"".join([HEADED] * is_headed + parts)
    with mock.patch("syncdata.changes.reader.BLOCK_BYTES", block_bytes):
        read = [located.line for piece in read_pieces(io.BytesIO(text), "f") for located in records_in(piece)]
    assert read == [number for number, one in enumerate(text.splitlines(), 1) if one.startswith(b"{")]


# Cutting

names_ = st.sampled_from(["t", "u", "unwanted"])
transactions = st.lists(
    st.tuples(st.integers(1, 4), st.lists(st.tuples(names_, st.integers(0, 60)), min_size=1, max_size=5)),
    min_size=1,
    max_size=6,
)
WANTED = {TableName("public", "t"): None, TableName("public", "u"): None}


def pieces(batch: Segment) -> Any:
    return (
        [(r.record, r.line, r.size_bytes) for r in batch.records],
        (
            batch.end_record,
            batch.commit_lsn,
            batch.skipped,
            batch.repeated,
            batch.size_bytes,
            batch.ends_file,
        ),
    )


@settings(max_examples=400, deadline=None)
@given(
    transactions=transactions,
    kind=st.sampled_from(["commits", "times", "neither"]),
    limits=st.builds(
        lambda r, b: Limits(batch_records=r, batch_bytes=b), st.integers(1, 9), st.integers(1, 9_000)
    ),
    split=st.integers(1, 30),
    until=st.none() | st.integers(0, 30),
    watermarks=st.tuples(*[st.none() | st.integers(0, 6)] * 2),
)
def test_runs_are_cut_where_their_records_are(
    transactions: list[tuple[int, list[tuple[str, int]]]],
    kind: str,
    limits: Limits,
    split: int,
    until: int | None,
    watermarks: tuple[int | None, int | None],
) -> None:
    lines = []
    for number, (repeat, changes) in enumerate(transactions, start=1):
        mark: dict[str, Any] = {
            "commits": {"commit_lsn": f"0/{number:X}"},
            "times": {"ts": f"t{number}"},
            "neither": {},
        }[kind]
        for table, size in changes * repeat:
            text = line("INSERT", {"id": f'"{"x" * size}"'}, **mark)
            lines.append(text.replace(b'"table":"t"', b'"table":"%b"' % table.encode()))
    runs = [run_of(*lines[at : at + split], first=at + 1) for at in range(0, len(lines), split)]

    def cut(records: Any) -> list[Any]:
        file = BatchFile(name="f.json", is_plain=True)
        by_table_ = dict(zip(WANTED, watermarks, strict=True))
        return [
            pieces(batch)
            for batch in cut_batches(
                records, file=file, watermarks=by_table_, limits=limits, until_record=until
            )
        ]

    assert cut(runs) == cut([located for run in runs for located in run.records()])


@settings(max_examples=300, deadline=None)
@given(
    # Lines of two wanted tables, of an unwanted one, and of one with commits of its own, which no mark of the
    # predecessor's is around.
    letters=st.lists(st.sampled_from([*"BCMtttttttuuxx"]), min_size=1, max_size=30)
    | st.lists(st.sampled_from([*"BBCMccct"]), min_size=1, max_size=12),
    limits=st.builds(
        lambda r, b: Limits(batch_records=r, batch_bytes=b), st.integers(1, 9), st.integers(1, 3_000)
    ),
    skip=st.integers(0, 30),
    seconds=st.integers(1, 4),
)
@example(letters=list("BcMtC"), limits=Limits(batch_records=1, batch_bytes=3_000), skip=0, seconds=1)
def test_lines_between_marks_are_cut_where_their_records_are(
    letters: list[str], limits: Limits, skip: int, seconds: int
) -> None:
    skip = min(skip, len(letters))
    lines = []
    for number, letter in enumerate(letters):
        more: dict[str, Any] = {"lsn": "0/1", "ts": f"t{number // seconds}"}
        if letter in "BCM":
            lines.append(json.dumps({"table": "", "op": letter, **more}).encode() + b"\n")
        else:
            more |= {"commit_lsn": f"0/{number // seconds + 1:X}"} if letter == "c" else {}
            text = line("INSERT", {"id": f'"{number}"'}, **more)
            lines.append(text.replace(b'"table":"t"', b'"table":"%b"' % letter.replace("c", "t").encode()))
    one_by_one = [
        LocatedRecord(parse_record(text), number, len(text), file="f.json")
        for number, text in enumerate(lines, start=1)
    ]
    with mock.patch("syncdata.changes.run.MIN_LINES_A_MARK", 0):
        read = list(read_pieces(io.BytesIO(b"".join(lines)), "f.json", skip=skip))
    assert list(chain.from_iterable(map(records_in, read))) == one_by_one[skip:]
    if not skip and "c" not in letters:
        are_runs = [isinstance(piece, Run) for piece in read for _ in records_in(piece)]
        assert are_runs == [letter not in "BCM" for letter in letters]

    def cut(records: Any) -> list[Any]:
        file = BatchFile(name="f.json", is_plain=True)
        batches = cut_batches(records, file=file, watermarks=WANTED, limits=limits, start_record=skip)
        return list(map(pieces, batches))

    assert cut(read) == cut(one_by_one[skip:])


@pytest.mark.parametrize(("lines_between", "are_runs"), [(14, True), (13, False)])
def test_lines_between_marks_are_runs_where_transactions_are_large(
    lines_between: int, are_runs: bool
) -> None:
    marks = [json.dumps({"table": "", "op": op, "ts": "t"}).encode() + b"\n" for op in "BC"]
    text = b"".join((marks[0], *[line("INSERT", STRINGS)] * lines_between, marks[1]))
    read = list(read_pieces(io.BytesIO(text), "f.json"))
    assert (len(read) == 3) is any(isinstance(piece, Run) for piece in read) is are_runs


@settings(max_examples=200, deadline=None)
@given(
    commits=st.lists(st.sampled_from(["0/1", "0/2", "0/2", "0/10", "1/0"]), min_size=1, max_size=12),
    silent=st.lists(st.booleans(), min_size=3, max_size=3),
    split=st.integers(1, 5),
)
def test_the_transactions_of_runs_are_counted_as_those_of_their_records(
    commits: list[str], silent: list[bool], split: int
) -> None:
    runs = []
    for number, at in enumerate(range(0, len(commits), split)):
        tell = not silent[number % 3]
        marks: list[dict[str, Any]] = [{"commit_lsn": lsn} if tell else {} for lsn in commits[at:][:split]]
        runs.append(run_of(*[line("INSERT", STRINGS, ts="t", **mark) for mark in marks]))

    def counted(add: Callable[[Count], None]) -> Any:
        count = Count()
        try:
            add(count)
        except ParseError as error:
            return error.message
        return vars(count)

    def add_runs(count: Count) -> None:
        for run in runs:
            count.add_run(run, "f.json")

    def add_records(count: Count) -> None:
        for run in runs:
            for located in run.records():
                count.add(located.record, "f.json")

    assert counted(add_runs) == counted(add_records)


def test_a_batch_that_ends_at_a_border_in_a_run_has_the_commit_before_it() -> None:
    lines = [line("INSERT", STRINGS, commit_lsn=f"0/{lsn}") for lsn in (1, 2, 3, 3, 4)]
    runs = [run_of(*lines[:3]), run_of(*lines[3:], first=4)]
    limits = Limits(batch_records=100, batch_bytes=int(3 * cost_of(len(lines[0])) + 1))
    batches = cut_batches(
        runs, file=BatchFile(name="f.json", is_plain=True), watermarks=WANTED, limits=limits
    )
    assert [(batch.end_record, batch.commit_lsn) for batch in batches] == [(2, 2), (5, 4)]


@pytest.mark.parametrize("width", [3, 8, 60])
def test_records_take_about_the_memory_that_a_batch_counts_for_them(width: int) -> None:
    columns = tuple(Column(name=f"column_{at}", sql_type="text", type=ColumnType()) for at in range(width))
    schema = TableSchema(name=SCHEMA.name, oid=1, key=("column_0",), columns=columns)
    lines = [
        line("INSERT", {column.name: f'"some text {number}"' for column in columns}, commit_lsn="0/1")
        for number in range(500)
    ]
    both_ways(schema, run_of(*lines), is_plain=False)  # makes what is kept of a table
    tracemalloc.start()
    run = run_of(*lines)
    plan = try_plan(batch_of(schema, run, is_plain=False))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(plan, TablePlan)
    assert 0.6 < taken / cost_of(sum(map(len, lines)), len(lines)) < 1.4


# Lines of several tables

OPS = ["INSERT", "UPDATE", "DELETE"]

mixed = st.lists(
    st.tuples(st.sampled_from(["t", "u", "v"]), st.sampled_from([None, "0/1", "0/2"]), st.booleans()),
    min_size=1,
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(changes=mixed, split=st.integers(1, 8), max_bytes=st.sampled_from([1, 300, 1 << 20]))
def test_lines_sorted_apart_are_those_of_each_table_in_their_order(
    changes: list[tuple[str, str | None, bool]], split: int, max_bytes: int
) -> None:
    lines = []
    for number, (table, commit_lsn, is_delete) in enumerate(changes, start=1):
        more: dict[str, Any] = {} if commit_lsn is None else {"commit_lsn": commit_lsn}
        text = line("DELETE" if is_delete else "INSERT", {"id": f'"{number}"'}, ts=f"t{number // 3}", **more)
        lines.append(text.replace(b'"table":"t"', b'"table":"%b"' % table.encode()))
    pieces_: list[Piece] = []
    for at in range(0, len(lines), split):
        run = try_run(b"".join(lines[at : at + split]), at + 1, f"f{at // 12}.json")
        records = LocatedRecord(parse_record(lines[at]), at + 1, len(lines[at]), file=f"f{at // 12}.json")
        pieces_.append(run or records)
    with mock.patch("syncdata.changes.run.MAX_SORTED_BYTES", max_bytes):
        parts = by_table(pieces_)
    expected: dict[tuple[str, str], list[LocatedRecord]] = {}
    for located in chain.from_iterable(map(records_in, pieces_)):
        expected.setdefault(("public", located.record.table), []).append(located)
    found = {name: list(chain.from_iterable(map(records_in, part))) for name, part in parts.items()}
    assert found == expected
    for part in parts.values():
        for piece in part:
            if isinstance(piece, Run):
                records_ = [located.record for located in piece.records()]
                assert piece.ops == [record.op for record in records_]
                assert piece.times == [record.ts for record in records_]
                assert piece.marks == [record.commit_lsn or record.ts for record in records_]


@pytest.mark.parametrize("tables", ["ttt", "tut"])
def test_a_run_tells_the_operations_of_each_table(tables: str) -> None:
    lines = [
        line(op, STRINGS).replace(b'"t"', b'"%b"' % table.encode())
        for op, table in zip(OPS, tables, strict=True)
    ]
    expected: dict[tuple[str, str], list[str]] = {}
    for op, table in zip(OPS, tables, strict=True):
        expected.setdefault(("public", table), []).append(op)
    assert run_of(*lines).ops_by_table() == expected


def test_lines_of_several_tables_become_one_run_for_each_table() -> None:
    lines = [line("INSERT", STRINGS, ts="t") for _ in range(6)]
    lines[1::2] = [text.replace(b'"table":"t"', b'"table":"u"') for text in lines[1::2]]
    parts = by_table([run_of(*lines[:3]), run_of(*lines[3:], first=4)])
    assert {name: [len(records_of([piece])) for piece in part] for name, part in parts.items()} == {
        ("public", "t"): [3],
        ("public", "u"): [3],
    }
