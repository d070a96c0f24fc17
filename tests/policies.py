"""Tables and policies for tests of privacy rules: facts by hand, one fixed key, masks by rule and type."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from syncdata.changes.names import TableName
from syncdata.privacy.facts import ColumnFacts, Reference, TableFacts
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import Policy, TableVerdict, parse_policy

KEY = MaskKey(bytes(range(32)))
OTHER_KEY = MaskKey(bytes(range(1, 33)))


def table(
    name: str,
    columns: Mapping[str, str],
    *,
    key: str = "id",
    uniques: tuple[tuple[str, ...], ...] = (),
    references: Mapping[str, tuple[str, str]] | None = None,
    not_null: tuple[str, ...] = (),
) -> TableFacts:
    """Return a table. *references*: by column, the table and the column that it refers to."""
    return TableFacts(
        table=TableName.parse(name),
        columns=tuple(
            ColumnFacts(column, kind, not_null=column in (key, *not_null)) for column, kind in columns.items()
        ),
        identity=(key,) if key else (),
        uniques=(*([(key,)] if key else []), *uniques),
        primary_key=(key,) if key else (),
        references=tuple(
            Reference((column,), TableName.parse(other), (to,))
            for column, (other, to) in (references or {}).items()
        ),
    )


def policy(
    columns: Mapping[str, Mapping[str, object]], *, key: MaskKey | None = KEY, unnamed: str = "withhold"
) -> Policy:
    made, problems = parse_policy(columns, key=key, unnamed=unnamed)
    assert not problems
    return made


def judged(
    facts: TableFacts, rules: Mapping[str, object], *, key: MaskKey | None = KEY, unnamed: str = "withhold"
) -> TableVerdict:
    """Return what becomes of one table with *rules* for its columns."""
    return policy({str(facts.table): rules}, key=key, unnamed=unnamed).judge([facts])[facts.table]


def masking(
    rule: object, kind: str = "text", *, key: MaskKey = KEY, by: str = "7"
) -> Callable[[str], object]:
    """Return what *rule* makes of a value of the type *kind*, in a column ``value`` that is NOT NULL."""
    facts = table("t", {"id": "bigint", "value": kind}, not_null=("value",))
    verdict = judged(facts, {"id": "keep", "value": rule}, key=key)
    assert not verdict.problems, verdict.problems
    row_mask = verdict.row_mask(("id", "value"))
    assert row_mask is not None
    return lambda text: row_mask.row([by, text])[1]
