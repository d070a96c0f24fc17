"""A first privacy policy, from what is known of the tables, as TOML to be read, corrected and kept.

Pure. What somebody has said already counts first: labels and comments of PostgreSQL Anonymizer, then the
fields of a project's models, then the columns' names. A rule that could not hold gives way to the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from syncdata.capture.described import Described
from syncdata.changes.names import TableName
from syncdata.privacy.facts import ColumnFacts, parse_type
from syncdata.privacy.key import TRIAL_KEY
from syncdata.privacy.mask import DATES
from syncdata.privacy.policy import Policy, TableVerdict
from syncdata.privacy.rules import parse_rule
from syncdata.privacy.suspicions import suggest, suspicions


class Hint(msgspec.Struct, frozen=True):
    """A rule for a column as a configuration spells it, and ``why``."""

    rule: object
    why: str


Hints = Mapping[TableName, Mapping[str, Hint]]


def first_rules(described: Mapping[TableName, Described], models: Hints) -> dict[TableName, dict[str, Hint]]:
    """Return a rule for each column. *models*: what the fields of a project's models say, by table."""
    suggested = suggest([one.facts for one in described.values()])
    rules = {
        table: {
            column.name: _hint(one, column, models.get(table, {}), suggested[table])
            for column in one.facts.columns
            if column.name in suggested[table]
        }
        for table, one in described.items()
    }
    for table, column in _refused(described, rules):
        rules[table][column] = Hint(suggested[table][column], f"not {rules[table][column].why}: cannot hold")
    # What was taken back may have been one end of a foreign key: then the suggestions, which fit each other.
    if next(_refused(described, rules), None) is not None:
        rules = {
            table: {column: Hint(rule, "") for column, rule in columns.items()}
            for table, columns in suggested.items()
        }
    return rules


def _hint(
    one: Described, column: ColumnFacts, models: Mapping[str, Hint], suggested: Mapping[str, object]
) -> Hint:
    for text in (one.labels.get(column.name), one.comments.get(column.name)):
        if text and (rule := rule_of_label(text, column, one.facts.identity)) is not None:
            return Hint(rule, "the label of PostgreSQL Anonymizer")
    if (hint := models.get(column.name)) is not None:
        return hint
    rule = suggested[column.name]
    if name := _check_of_values(one, column.name):
        return Hint("keep", f"all of its values are in CHECK {name}")
    if meaning := suspicions(one.facts).get(column.name):
        return Hint(rule, f"sounds like: {meaning}")
    return Hint(rule, "nobody can say what it holds" if rule != "keep" else "")


# As the server spells col IN ('a', 'b'), whatever the type of the column.
_VALUES = re.compile(r"\(?\(?[^ ]+\)?(?:::[\w ]+)? = ANY \(+ARRAY\[.*", re.DOTALL)


def _check_of_values(one: Described, column: str) -> str:
    """Return the CHECK that lists all values of *column*; empty where there is none."""
    return next(
        (
            check.name
            for check in one.checks
            if check.columns == (column,) and _VALUES.fullmatch(check.condition)
        ),
        "",
    )


def _refused(
    described: Mapping[TableName, Described], rules: Mapping[TableName, Mapping[str, Hint]]
) -> Iterator[tuple[TableName, str]]:
    """Yield the columns whose rules cannot hold."""
    for table, verdict in judge_hints(described, rules).items():
        yield from ((table, it.column) for it in verdict.columns if it.problem)


def judge_hints(
    described: Mapping[TableName, Described], rules: Mapping[TableName, Mapping[str, Hint]]
) -> dict[TableName, TableVerdict]:
    """Return what becomes of the tables under *rules*."""
    parsed = {
        table: {column: parse_rule(hint.rule) for column, hint in columns.items()}
        for table, columns in rules.items()
    }
    return Policy(parsed, key=TRIAL_KEY).judge([one.facts for one in described.values()])


def withhold(rules: dict[str, Hint], columns: Sequence[str], described: Described) -> None:
    """Withhold those of *columns* that can be: the server did not take what masks make of them."""
    not_null = {it.name for it in described.facts.columns if it.not_null}
    for column in columns:
        if column not in described.facts.identity:
            why = "a CHECK or its type refuses what masks make"
            if column in not_null:
                why += "; where it is withheld, the local table needs a default for it"
            rules[column] = Hint("withhold", why)


# Labels of PostgreSQL Anonymizer: "MASKED WITH FUNCTION anon.partial(phone,2,$$***$$,2)", "MASKED WITH VALUE
# NULL", "NOT MASKED". Source: its documentation, "Declare masking rules".
_LABEL = re.compile(
    r"\s*(?:(?P<not>NOT\s+MASKED)|MASKED\s+WITH\s+(?P<kind>FUNCTION|VALUE)\s+(?P<what>.+?))\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)
_PARTIAL = re.compile(r"[^,]+,\s*(\d+)\s*,.*,\s*(\d+)\s*\)", re.DOTALL)
# By a part of a function's name, the mask that comes nearest; the first that fits counts.
_FUNCTIONS = (
    ("email", "email"),
    ("first_name", "first_name"),
    ("last_name", "last_name"),
    ("company", "company"),
    ("city", "city"),
    ("address", "street"),
    ("street", "street"),
    ("phone", "phone"),
    ("name", "name"),
    ("hash", "token"),
    ("digest", "token"),
    ("md5", "token"),
    ("string", "token"),
    ("iban", "token"),
    ("pseudo", "token"),
)


def rule_of_label(text: str, column: ColumnFacts, identity: Sequence[str]) -> object:
    """Return the rule that comes nearest to a label of PostgreSQL Anonymizer; None for another text."""
    match = _LABEL.fullmatch(text)
    if match is None:
        return None
    if match["not"]:
        return "keep"
    what = match["what"]
    if match["kind"].upper() == "VALUE":
        return _rule_of_value(what)
    function, _, arguments = what.partition("(")
    function = function.lower().removeprefix("anon.")
    if function == "partial" and (kept := _PARTIAL.fullmatch(arguments)):
        return {"mask": "partial", "keep_start": int(kept[1]), "keep_end": int(kept[2])}
    if parse_type(column.type).name in DATES and identity:
        return {"mask": "shift", "by": identity[0]}
    return next((mask for part, mask in _FUNCTIONS if part in function), "withhold")


def _rule_of_value(spelled: str) -> object:
    if spelled.upper() == "NULL":
        return "null"
    quoted = re.fullmatch(r"\$(\w*)\$(.*)\$\1\$|'(.*)'", spelled, re.DOTALL)
    if quoted is None:
        return {"mask": "fixed", "value": spelled}
    return {"mask": "fixed", "value": quoted[2] or (quoted[3] or "").replace("''", "'")}


# As TOML


def format_policy(rules: Mapping[TableName, Mapping[str, Hint]], *, key_file: str | None) -> str:
    """Return *rules* as the tables of a configuration; *key_file*: None where the environment has the key."""
    lines = ["", "# What leaves production: a first policy, to be read and corrected.", "[source.privacy]"]
    if key_file is not None:
        lines.append(f"key_file = {_text(key_file)}")
    lines.append('unnamed = "withhold"    # what no rule names stays at production')
    for table, columns in rules.items():
        lines += ["", f"[source.columns.{_key(str(table))}]"]
        cells = [(f"{_key(column)} = {_value(hint.rule)}", hint.why) for column, hint in columns.items()]
        width = max((len(cell) for cell, why in cells if why), default=0)
        lines += [f"{cell.ljust(width)}    # {_remark(why)}" if why else cell for cell, why in cells]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _text(name)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(str(name))} = {_value(item)}" for name, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    # TOML's basic strings are those of JSON, but for DEL, which it wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _remark(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
