"""Records are masked before they are planned: new values and old ones alike, and nothing gets past."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from syncdata.apply.plan.batches import Batch, BatchFile, Segment
from syncdata.apply.plan.local_rules import LocalRules
from syncdata.apply.plan.prepare import in_order, prepare
from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.plan.table_plan import TablePlan
from syncdata.apply.plan.transform import transformed
from syncdata.changes.catalog import Announcement, Catalog
from syncdata.changes.names import TableName
from syncdata.changes.reader import LocatedRecord
from syncdata.changes.record import ChangeRecord, Json
from syncdata.privacy.facts import ColumnFacts, TableFacts
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import parse_policy

USERS, NOTES = TableName("public", "users"), TableName("public", "notes")
TYPES = {"id": "integer", "email": "text", "phone": "text", "tags": "text[]"}
SPELLED = {"id": "permute", "email": "email", "phone": "withhold", "tags": "token"}


def rules_of(spelled: dict[str, Any], *, absent: tuple[str, ...] = ()) -> LocalRules:
    policy, problems = parse_policy({"users": spelled}, unnamed="keep", key=MaskKey(bytes(32)))
    columns = tuple(ColumnFacts(name, sql_type) for name, sql_type in TYPES.items())
    verdict = policy.judge([TableFacts(USERS, columns, identity=("id",), primary_key=("id",))])[USERS]
    assert not problems and not verdict.problems
    return LocalRules(columns=(), masking=verdict, absent=absent)


def schema_of(name: TableName = USERS, rules: LocalRules | None = None) -> TableSchema:
    kinds = {"tags": ColumnType(kind="array", element=ColumnType())}
    columns = tuple(
        Column(name=column, sql_type=sql_type, type=kinds.get(column, ColumnType()))
        for column, sql_type in TYPES.items()
    )
    return TableSchema(name=name, oid=1, columns=columns, key=("id",), rules=rules)


RULES = rules_of(SPELLED)


def located(line: int = 1, table: str = "users", **fields: Any) -> LocatedRecord:
    record = ChangeRecord(table=table, **{"op": "UPDATE", "commit_lsn": "0/1"} | fields)
    return LocatedRecord(record, line, 100)


def masked(rules: LocalRules = RULES, **fields: Any) -> ChangeRecord:
    (record,) = transformed([located(**fields)], schema_of(rules=rules), rules)
    return record.record


def test_old_values_are_masked_as_new_ones() -> None:
    values = {"id": 7, "email": "ann@site.org", "phone": "0171", "tags": Json('["a", "b"]')}
    record = masked(data=values, old_keys=values)
    assert record.data is not None and record.data == record.old_keys
    assert record.data.keys() == {"id", "email", "tags"}
    assert not {"7", "ann@site.org"} & set(map(str, record.data.values()))


def test_what_is_absent_or_null_stays_so() -> None:
    record = masked(data={"id": 7, "email": None}, old_keys={"id": 8})
    assert record.data is not None and record.data["email"] is None and record.data.keys() == {"id", "email"}
    assert record.old_keys is not None and record.old_keys.keys() == {"id"}
    assert masked(op="TRUNCATE").data is None


def test_a_column_that_is_not_here_stays_for_the_plan_to_refuse_unless_it_is_withheld() -> None:
    values = {"id": 1, "born": "2000-01-01", "notes": "x"}
    record = masked(rules_of(SPELLED, absent=("notes",)), data=values, old_keys=values)
    assert record.data is not None and record.data.keys() == {"id", "born"}
    assert record.old_keys is not None and record.old_keys.keys() == {"id", "born"}
    record = masked(rules_of({}, absent=("notes",)), data=values)
    assert record.data == {"id": 1, "born": "2000-01-01"}


NUMBERS = st.integers(-5, 5)
TEXTS = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)


@given(rows=st.lists(st.tuples(NUMBERS, TEXTS), max_size=20))
def test_a_value_has_one_mask_wherever_it_stands(rows: list[tuple[int, str | None]]) -> None:
    records = [located(data={"id": id, "email": email}, old_keys={"id": id}) for id, email in rows]
    ids: dict[int, set[str]] = {}
    for (id, _), found in zip(rows, transformed(records, schema_of(), RULES), strict=True):
        assert found.record.data and found.record.old_keys
        ids.setdefault(id, set()).update((found.record.data["id"], found.record.old_keys["id"]))
    assert all(len(one) == 1 for one in ids.values()), "one mask a value"
    assert len(set().union(*ids.values())) == len(ids), "and one value a mask"


def batch_of(*records: LocatedRecord, is_known: bool = True) -> Batch:
    catalogs = {"d": Catalog(version=1, publication="p", tables=())} if is_known else {}
    segment = Segment(
        file=BatchFile(name="changes_20260205_103000.json", is_plain=False, catalogs=catalogs),
        records=records,
        end_record=len(records),
        commit_lsn=1,
        skipped=0,
        repeated=0,
        size_bytes=100,
        ends_file=True,
        catalog=Announcement("d"),
    )
    return Batch(segments=(segment,))


def test_records_of_several_tables_keep_their_order_and_the_batch_stays_as_it_came() -> None:
    records = [
        located(1, data={"id": 1, "email": "a"}),
        located(2, "notes", data={"id": 1, "email": "a"}),
        located(3, data={"id": 2, "email": "b"}),
    ]
    batch = batch_of(*records)
    schemas = {USERS: schema_of(rules=RULES), NOTES: schema_of(NOTES)}
    for prepared in (prepare(batch, schemas), prepare(prepare(batch, schemas).batch, schemas)):
        first, second, third = in_order(prepared)
        assert [found.line for found in (first, second, third)] == [1, 2, 3]
        assert second is records[1] and first != records[0] and third != records[2]
        assert list(prepared.batch.records) == records
        assert prepared.shares[USERS].records == [first, third], "masked once, also when it is planned anew"


def test_rules_that_cannot_hold_leave_no_plan() -> None:
    record = located(data={"id": 1, "email": "a"})
    problem = LocalRules(columns=(), masking=RULES.masking, problems=("email: no",))
    for rules, is_known in ((problem, True), (RULES, False)):
        prepared = prepare(batch_of(record, is_known=is_known), {USERS: schema_of(rules=rules)})
        assert not isinstance(prepared.shares[USERS].plan, TablePlan)
