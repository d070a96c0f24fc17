"""What a policy asks of the publication, where a server or a table cannot have lists of columns."""

from __future__ import annotations

from dataclasses import replace

from syncdata.capture.described import Described
from syncdata.capture.publication import Part
from syncdata.privacy.facts import ColumnFacts
from syncdata.privacy.facts import TableFacts as Facts
from syncdata.privacy.policy import Policy
from syncdata.privacy.rules import Rule
from syncdata.provision.facts import SourceFacts, TableFacts, narrower
from syncdata.provision.privacy_plan import Filters, PrivacyPlan, plan_privacy
from tests.unit.test_preflight import SERVER, SOURCE, A

FACTS = Facts(
    table=A, columns=(ColumnFacts(name="id", type="integer"), ColumnFacts(name="notes", type="text"))
)
DESCRIBED = {A: Described(facts=FACTS, types={"id": "integer", "notes": "text"})}
TABLE = TableFacts(
    name=A,
    kind="r",
    persistence="p",
    is_owned=True,
    has_usage=True,
    may_select=True,
    hides_rows=False,
    has_children=False,
    parts=(),
)


def plan(version: int, rows: str = "") -> PrivacyPlan:
    """The plan for a table of which the policy keeps one column of two."""
    policy = Policy({A: {"id": Rule(mask="keep")}}, rows={A: rows} if rows else {})
    source: SourceFacts = replace(
        SOURCE, server=replace(SERVER, version_num=version * 10_000), tables=(TABLE,)
    )
    return plan_privacy(policy, DESCRIBED, source, Filters(spelled=policy.rows))


def told(found: PrivacyPlan, level: str) -> list[str]:
    return [str(finding) for finding in found.findings if finding.level == level]


def test_a_server_before_15_publishes_whole_tables_and_the_archiver_alone_protects() -> None:
    assert plan(15).parts == {A: Part(columns=("id",))}
    assert plan(14).parts == {}
    assert any("held back by the archiver alone" in text for text in told(plan(14), "note"))


def test_a_server_before_15_refuses_rules_of_rows() -> None:
    assert told(plan(15, rows="id > 5"), "missing") == []
    assert plan(15, rows="id > 5").parts == {A: Part(columns=("id",), row_filter="id > 5")}
    [problem] = told(plan(14, rows="id > 5"), "missing")
    assert problem.startswith("source.rows (a) needs PostgreSQL 15 or later")


def test_what_is_published_is_never_more_than_was_there_and_never_more_than_is_allowed() -> None:
    whole, some, other = Part(), Part(columns=("a", "b")), Part(columns=("b", "c"), row_filter="x")
    assert narrower(whole, whole) == whole
    assert narrower(some, whole) == narrower(whole, some) == some
    assert narrower(some, other) == Part(columns=("b",), row_filter="x")
    assert narrower(other, Part(row_filter="y")) == other, "the filter that is there stays"
