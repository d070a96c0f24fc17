"""The policy: what the rules of all columns mean for the tables that are there. Pure.

All tables are judged together, for a foreign key makes columns of several tables one domain: their values
must have the same mask, or rows would not find each other any more. A rule that cannot hold is a problem,
and its column is withheld; where the column tells rows apart, so is the whole table. So whatever a migration
does in mid-stream, no value goes out as it is because of it. Whoever starts refuses problems altogether.

Example: ``orders.buyer`` refers to ``users.email``, and both have the mask "email". The domain of both is
``users.email``, so a masked order still finds its masked user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from syncdata.changes.catalog import WITHHELD
from syncdata.changes.names import TableName
from syncdata.errors import SchemaError
from syncdata.privacy.facts import ColumnFacts, TableFacts, parse_type
from syncdata.privacy.key import MaskKey
from syncdata.privacy.mask import INTEGERS, Mask
from syncdata.privacy.masks import make_mask
from syncdata.privacy.row_mask import RowMask, Treatment
from syncdata.privacy.rules import Rule, parse_rule
from syncdata.privacy.values import harmless_value

Unnamed = Literal["withhold", "keep", "halt"]
_ID_BYTES = 8
_GONE = "{}: a rule, but no such column"
_Place = tuple[TableName, str]


class ColumnVerdict(msgspec.Struct, frozen=True):
    """What becomes of a column. ``rule``: the kind of mask that is in force; ``withhold`` where ``problem``
    says why the stated one cannot be. ``why``: what decided it. ``id``: the same id, the same function; empty
    for a column that goes as it is."""

    column: str
    rule: str
    why: str
    id: str = ""
    problem: str = ""
    is_named: bool = True
    allows_collisions: bool = False
    treatment: Treatment | None = None

    @property
    def privacy(self) -> str:
        """The kind of rule as a catalog has it: empty for a column that goes as it is."""
        return {"keep": "", "withhold": WITHHELD}.get(self.rule, self.rule)


class TableVerdict(msgspec.Struct, frozen=True):
    """What becomes of a table. ``halts``: why the archiver must stop; empty where it need not. ``problems``:
    all that an operator has to mend, ``notes``: what may be as it should; each names its column."""

    table: TableName
    columns: tuple[ColumnVerdict, ...]
    is_withheld: bool = False
    halts: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def row_mask(self, columns: Sequence[str]) -> RowMask | None:
        """Return what masks rows of *columns*, as they come; None where such rows go as they are. Columns
        that were not there when the table was judged are withheld."""
        known = {verdict.column: verdict for verdict in self.columns}
        treatments = {}
        for column in columns:
            verdict = known.get(column)
            if verdict is None or self.is_withheld:
                treatments[column] = Treatment(column, None)
            elif verdict.treatment is not None:
                treatments[column] = verdict.treatment
        return RowMask(columns, treatments) if treatments else None


class Policy:
    """What may leave production: rules by column, filters of rows, and what holds for columns without a rule.

    ``id`` changes with everything that decides what leaves. ``rows``: by table, the condition that its rows
    must fulfil. ``takes_snapshots``: a table whose rules change gets a new snapshot by itself.
    """

    def __init__(
        self,
        columns: Mapping[TableName, Mapping[str, Rule]],
        *,
        rows: Mapping[TableName, str] | None = None,
        unnamed: Unnamed = "withhold",
        key: MaskKey | None = None,
        takes_snapshots: bool = False,
    ) -> None:
        self.columns = columns
        self.rows = rows or {}
        self.unnamed = unnamed
        self.key = key
        self.takes_snapshots = takes_snapshots
        self.id = self._digest(
            {str(table): rules for table, rules in sorted(columns.items())},
            {str(table): condition for table, condition in sorted(self.rows.items())},
            unnamed,
        )

    def judge(self, tables: Sequence[TableFacts]) -> dict[TableName, TableVerdict]:
        """Return what becomes of each of *tables*, which are all that are published."""
        domains = Domains(tables)
        columns = {
            (facts.table, column.name): self._judge_column(facts, column, domains)
            for facts in tables
            for column in facts.columns
        }
        for place, problem in list(_unlike_ends(tables, columns)):
            columns[place] = _refused(columns[place], problem)
        for facts in tables:
            for column in facts.columns:
                if column.is_generated and _is_made_of_masked(facts, column, columns):
                    place = (facts.table, column.name)
                    columns[place] = _withheld(columns[place], "it is made of what does not go as it is")
        return {facts.table: self._judge_table(facts, columns) for facts in tables}

    def _judge_column(self, facts: TableFacts, column: ColumnFacts, domains: Domains) -> ColumnVerdict:
        rule = self.columns.get(facts.table, {}).get(column.name)
        if rule is None:
            return self._judge_unnamed(facts, column)
        verdict = ColumnVerdict(
            column.name, rule.mask, "the rule says so", allows_collisions=rule.allow_collisions
        )
        if rule.mask == "keep":
            return verdict
        if rule.mask == "withhold":
            return _withheld(verdict, verdict.why)
        kind, domain = parse_type(column.type), domains.of(facts.table, column.name)
        try:
            by_domain = domains.of(facts.table, rule.by) if rule.by else ""
            mask = make_mask(rule, kind, domain, self.key, by_domain=by_domain)
            _check(rule, mask, facts, column)
            substitute = self._substitute(rule, mask, facts, column, domain)
        except ValueError as error:
            return _refused(verdict, str(error))
        parts = (*mask.parts, "or", substitute.parts) if rule.is_custom else mask.parts
        treatment = Treatment(column.name, mask, substitute.function)
        return msgspec.structs.replace(verdict, rule=rule.kind, id=self._digest(parts), treatment=treatment)

    def _judge_unnamed(self, facts: TableFacts, column: ColumnFacts) -> ColumnVerdict:
        if column.is_generated:  # it says no more than what it is made of, see `_is_made_of_masked`
            return ColumnVerdict(column.name, "keep", "it is made of columns that go as they are")
        verdict = ColumnVerdict(column.name, "keep", f"no rule names it: {self.unnamed}", is_named=False)
        if self.unnamed != "keep":
            return _withheld(verdict, verdict.why)
        if gone := self._gone(facts, masked=True):
            # A masked column that has another name now must not go out under it.
            # Test: test_a_renamed_column_is_withheld_though_unnamed_ones_are_kept.
            return _withheld(verdict, f"no rule names it, and it may be what was {gone[0]}")
        return verdict

    def _gone(self, facts: TableFacts, *, masked: bool) -> list[str]:
        """Return the columns that rules name and the table does not have: with *masked*, only those that did
        not go as they are."""
        there = {column.name for column in facts.columns}
        return [
            column
            for column, rule in self.columns.get(facts.table, {}).items()
            if column not in there and not (masked and rule.mask == "keep")
        ]

    def _asks(self, verdict: ColumnVerdict) -> bool:
        """Tell whether a rule is asked for where *verdict* withholds: a column that halts says so itself."""
        return verdict.is_named or self.unnamed != "halt"

    def _substitute(
        self, rule: Rule, mask: Mask, facts: TableFacts, column: ColumnFacts, domain: str
    ) -> Mask:
        """Return what stands for a value that *mask* cannot take: NULL, a token where different values must
        stay different, or a harmless value. Raises ValueError where there is none, and one may be needed."""
        kind = parse_type(column.type)
        if not column.not_null and column.name not in facts.identity:
            return make_mask(Rule(mask="null"), kind, domain, None)
        if rule.is_custom and mask.is_distinct:
            other = Rule(mask="permute" if kind.name in INTEGERS else "token")
            return make_mask(other, kind, domain, self.key)
        harmless = harmless_value(kind)
        if harmless is None and rule.is_custom:
            raise ValueError("the column is NOT NULL, and nothing is known to stand for a value that fails")
        return make_mask(Rule(mask="fixed", value=harmless or ""), kind, domain, None)

    def _judge_table(self, facts: TableFacts, columns: Mapping[_Place, ColumnVerdict]) -> TableVerdict:
        verdicts = [columns[facts.table, column.name] for column in facts.columns]
        named = self.columns.get(facts.table)
        if named is None and self.unnamed == "withhold":
            return TableVerdict(facts.table, tuple(verdicts), is_withheld=True)
        keys = [verdict for verdict in verdicts if verdict.column in facts.identity]
        verdicts = [
            _refused(verdict, "it tells the rows apart, so it must travel: keep or mask it")
            if verdict in keys and verdict.rule == "withhold" and not verdict.problem and self._asks(verdict)
            else verdict
            for verdict in verdicts
        ]
        gone = [_GONE.format(column) for column in self._gone(facts, masked=False)]
        masked = [_GONE.format(column) for column in self._gone(facts, masked=True)]
        halted = [verdict.column for verdict in verdicts if not verdict.is_named]
        return TableVerdict(
            facts.table,
            tuple(verdicts),
            is_withheld=any(verdict.rule == "withhold" for verdict in keys),
            halts=f"no rule names {', '.join(halted)}" if halted and self.unnamed == "halt" else "",
            problems=(
                *(f"{one.column}: {one.problem}" for one in verdicts if one.problem),
                *(masked if self.unnamed == "keep" else ()),
            ),
            notes=(*gone, *_notes(facts, verdicts)),
        )

    def _digest(self, *parts: object) -> str:
        """Return a short text that is the same for the same *parts* and key, and tells nothing of either."""
        state = hashlib.blake2b(digest_size=_ID_BYTES)
        if self.key is not None:
            state = self.key.state(b"rule", size=_ID_BYTES)
        state.update(msgspec.json.encode(parts, order="sorted"))
        return state.hexdigest()


def parse_policy(
    columns: Mapping[str, object],
    *,
    rows: Mapping[str, object] | None = None,
    unnamed: object = "withhold",
    key: MaskKey | None = None,
    takes_snapshots: bool = False,
) -> tuple[Policy, tuple[tuple[str, str], ...]]:
    """Read a policy as a configuration spells it, and all that is wrong with it: (its key, why) for each.

    The keys are ``columns.users.email``, ``rows.orders``, ``unnamed``. What is wrong is not in the policy, so
    one with problems must not be used.
    """
    problems: list[tuple[str, str]] = []
    rules: dict[TableName, dict[str, Rule]] = {}
    for name, spelled in columns.items():
        table = _table(name, f"columns.{name}", problems)
        if not isinstance(spelled, Mapping):
            problems.append((f"columns.{name}", "write a table: a rule for each column"))
        elif table in rules:
            problems.append((f"columns.{name}", "the table is there twice"))
        elif table is not None:
            found = dict(_rules(f"columns.{name}", spelled, problems))
            if not (spelled and all(map(_is_table, spelled.values()))):
                rules[table] = found
    filters: dict[TableName, str] = {}
    for name, condition in (rows or {}).items():
        if isinstance(condition, Mapping):
            problems += [(f"rows.{name}.{inner}", f'{_QUOTES}: "{name}.{inner}"') for inner in condition]
            continue
        table = _table(name, f"rows.{name}", problems)
        if not isinstance(condition, str) or not condition.strip():
            problems.append((f"rows.{name}", "write the condition that rows must fulfil, as SQL"))
        elif table in filters:
            problems.append((f"rows.{name}", "the table is there twice"))
        elif table is not None:
            filters[table] = condition.strip()
    if unnamed not in ("withhold", "keep", "halt"):
        problems.append(("unnamed", "it is withhold, keep or halt"))
        unnamed = "withhold"
    policy = Policy(
        rules,
        rows=filters,
        unnamed=unnamed,  # type: ignore[arg-type]  # checked above
        key=key,
        takes_snapshots=takes_snapshots,
    )
    return policy, tuple(problems)


_QUOTES = "write the name of a table and its schema in quotes"


def _table(name: str, key: str, problems: list[tuple[str, str]]) -> TableName | None:
    try:
        return TableName.parse(name)
    except SchemaError as error:
        problems.append((key, str(error)))
        return None


def _rules(
    key: str, spelled: Mapping[str, object], problems: list[tuple[str, str]]
) -> Iterator[tuple[str, Rule]]:
    for column, value in spelled.items():
        if _is_table(value):
            # TOML takes [columns.shop.orders] for a table "orders" in a table "shop".
            name = f"{key.removeprefix('columns.')}.{column}"
            problems.append((f"{key}.{column}", f'{_QUOTES}: columns."{name}"'))
            continue
        try:
            yield column, parse_rule(value)
        except ValueError as error:
            problems.append((f"{key}.{column}", str(error)))


def _is_table(value: object) -> bool:
    """Tell whether *value*, in the place of a rule, holds rules of columns itself."""
    if not isinstance(value, Mapping) or not value or "mask" in value:
        return False
    try:
        for rule in value.values():
            parse_rule(rule)
    except ValueError:
        return False
    return True


def _withheld(verdict: ColumnVerdict, why: str) -> ColumnVerdict:
    treatment = Treatment(verdict.column, None)
    return msgspec.structs.replace(verdict, rule="withhold", why=why, id="", treatment=treatment)


def _refused(verdict: ColumnVerdict, problem: str) -> ColumnVerdict:
    """Return *verdict* for a rule that cannot hold: the column is withheld."""
    return msgspec.structs.replace(_withheld(verdict, problem), problem=problem)


def _is_made_of_masked(
    facts: TableFacts, column: ColumnFacts, columns: Mapping[_Place, ColumnVerdict]
) -> bool:
    """Tell whether a generated column holds something of a column that does not go as it is."""
    made_of = column.derives_from
    if made_of is None:
        made_of = tuple(other.name for other in facts.columns if not other.is_generated)
    verdicts = [columns.get((facts.table, name)) for name in made_of]
    return any(verdict is None or verdict.rule != "keep" for verdict in verdicts)


def _notes(facts: TableFacts, verdicts: Iterable[ColumnVerdict]) -> Iterator[str]:
    """Yield what an operator should know of columns whose rules hold."""
    not_null = {column.name for column in facts.columns if column.not_null and not column.is_generated}
    for verdict in verdicts:
        if verdict.rule == "withhold" and verdict.column in not_null:
            yield f"{verdict.column}: withheld though it is NOT NULL: the local column needs a default"
        elif verdict.column in facts.checked and verdict.treatment is not None and verdict.rule != "withhold":
            yield f"{verdict.column}: a CHECK constraint names it; see that masked values fulfil it"


def _check(rule: Rule, mask: Mask, facts: TableFacts, column: ColumnFacts) -> None:
    """Raise ValueError where *mask* would break what the table promises of *column*."""
    name = column.name
    if column.is_generated:
        raise ValueError("production works the column out: keep or withhold it")
    if rule.mask == "null" and column.not_null:
        raise ValueError("null cannot be, for the column is NOT NULL")
    if name in facts.identity and rule.mask in ("null", "fixed"):
        raise ValueError(f"it tells the rows apart, and {rule.mask} makes them all alike")
    if mask.by and mask.by not in {*facts.identity, *facts.primary_key}:
        raise ValueError(f"by = '{mask.by}' is no column of the primary key or the replica identity")
    if name in facts.identity and mask.by and mask.by not in facts.identity:
        raise ValueError(f"old keys come without '{mask.by}', so the same key could not be masked alike")
    if not mask.is_distinct and not rule.allow_collisions and (role := _role(facts, name)):
        raise ValueError(
            f"it is {role}, and {rule.kind} can make different values equal:"
            " take token, email, seal or permute, or say allow_collisions = true"
        )


def _role(facts: TableFacts, column: str) -> str:
    """Return as what *column* must keep different values different; empty where it need not."""
    if column in facts.identity:
        return "part of the replica identity"
    if any(column in unique for unique in facts.uniques):
        return "part of a unique key"
    if any(column in reference.columns for reference in facts.references):
        return "part of a foreign key"
    return ""


def _unlike_ends(
    tables: Sequence[TableFacts], columns: Mapping[_Place, ColumnVerdict]
) -> Iterator[tuple[_Place, str]]:
    """Yield the referring columns whose mask is not that of the column they refer to, and the problem."""
    for facts in tables:
        for reference in facts.references:
            for name, to in zip(reference.columns, reference.to, strict=True):
                here, there = columns.get((facts.table, name)), columns.get((reference.table, to))
                if here is None or there is None or "withhold" in (here.rule, there.rule):
                    continue  # nothing to meet
                if here.id != there.id and not here.allows_collisions:
                    yield (
                        (facts.table, name),
                        f"it refers to {reference.table}.{to}, which has another mask: {there.rule},"
                        f" not {here.rule}"
                        if here.rule != there.rule
                        else f"it refers to {reference.table}.{to}, whose {there.rule} has other options",
                    )


class Domains:
    """Which columns share their values: those that foreign keys tie together, in whatever order or circle."""

    def __init__(self, tables: Iterable[TableFacts]) -> None:
        self._groups: dict[_Place, set[_Place]] = {}
        self._referring: set[_Place] = set()
        for facts in tables:
            for reference in facts.references:
                for column, to in zip(reference.columns, reference.to, strict=True):
                    self._join((facts.table, column), (reference.table, to))
        self._names = {place: self._name(group) for place, group in self._groups.items()}

    def of(self, table: TableName, column: str) -> str:
        """Return the domain of a column: the name of the column that it refers to in the end, or its own."""
        return self._names.get((table, column)) or _spelled((table, column))

    def own(self, table: TableName, column: str) -> str:
        """Return the domain that a column names, and has where it refers to none."""
        return _spelled((table, column))

    def _join(self, place: _Place, other: _Place) -> None:
        if place == other:
            return
        self._referring.add(place)
        group = self._groups.get(place, {place}) | self._groups.get(other, {other})
        for member in group:
            self._groups[member] = group

    def _name(self, group: set[_Place]) -> str:
        """Return the name of the column that refers to none; where several do, or none, the first by name."""
        return _spelled(min(group - self._referring or group))


def _spelled(place: _Place) -> str:
    table, column = place
    if set(column) & {".", '"'}:
        column = '"' + column.replace('"', '""') + '"'
    return f"{table}.{column}"
