"""The tools around a privacy policy: its report, a sample of what it makes, and a first one.

Knows the order of the steps. Only reads from the source; the one thing it writes is a new key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psycopg import Connection

from syncdata.capture.trial import Sample, read_sample, try_masks
from syncdata.changes.names import TableName
from syncdata.errors import ConfigError, SourceSetupError
from syncdata.privacy.key import make_key_file
from syncdata.privacy.policy import Policy
from syncdata.privacy.suspicions import suspicions
from syncdata.provision.database import SourceDatabase, open_source
from syncdata.provision.privacy_filters import spell_filters
from syncdata.provision.privacy_init import Hints, first_rules, format_policy, judge_hints, withhold
from syncdata.provision.privacy_plan import Filters
from syncdata.provision.privacy_report import TableReport, report_table

_NO_POLICY = Policy({}, unnamed="keep")


def report(
    params: Mapping[str, Any], tables: Sequence[TableName], policy: Policy | None
) -> list[TableReport]:
    """Return what becomes of each column of *tables*, with what the server says to the masks' results.

    A table that is not there is a problem: of a database without tables, nothing would be wrong otherwise.
    """
    policy = policy or _NO_POLICY
    with open_source(params) as database:
        filters = spell_filters(database, policy, database.read_described(tables), {})
        with database.reading() as connection:
            return _report(database, connection, tables, policy, filters)


def _report(
    database: SourceDatabase,
    connection: Connection[Any],
    tables: Sequence[TableName],
    policy: Policy,
    filters: Filters,
) -> list[TableReport]:
    described = database.read_described(tables)
    verdicts = policy.judge([one.facts for one in described.values()])
    return [
        report_table(
            one,
            verdicts[table],
            suspicions(one.facts),
            rows=policy.rows.get(table, ""),
            tried=[
                *(misfit.text for misfit in try_masks(connection, one, verdicts[table])),
                *_refused(filters, table),
            ],
        )
        if (one := described.get(table)) is not None
        else TableReport(table=str(table), columns=(), problems=("there is no such table",))
        for table in tables
    ]


def _refused(filters: Filters, table: TableName) -> list[str]:
    reason = filters.refused.get(table)
    return [f"its condition in [source.rows] is refused by the server: {reason}"] if reason else []


def sample(
    params: Mapping[str, Any],
    tables: Sequence[TableName],
    policy: Policy,
    *,
    shown: Sequence[TableName],
    rows: int,
) -> list[Sample]:
    """Return *rows* rows of each table *shown*, before and after: nobody but production may see them. Raises
    SourceSetupError where one is not there.

    *tables*: all that are published, for a policy judges them together.
    """
    with open_source(params) as database, database.reading() as connection:
        described = database.read_described(tables)
        if missing := [str(table) for table in shown if table not in described]:
            raise SourceSetupError(
                f"there is no such table in production: {', '.join(missing)}",
                hint="create it, or correct source.tables",
            )
        verdicts = policy.judge([one.facts for one in described.values()])
        return [read_sample(connection, described[table], verdicts[table], rows=rows) for table in shown]


def first_policy(
    params: Mapping[str, Any], tables: Sequence[TableName], models: Hints, *, key_file: str | None
) -> str:
    """Return a first policy for *tables* as TOML. *models*: what the fields of a project's models say."""
    with open_source(params) as database, database.reading() as connection:
        described = database.read_described(tables)
        rules = first_rules(described, models)
        for table, verdict in judge_hints(described, rules).items():
            for misfit in try_masks(connection, described[table], verdict):
                withhold(rules[table], misfit.columns, described[table])
    return format_policy(rules, key_file=key_file)


def make_key(path: Path) -> bool:
    """Make a new key in *path*; return False where one is there already, which stays. Raises ConfigError."""
    try:
        make_key_file(path)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(
            f"the mask key {path} cannot be made: {error.strerror}", hint="name another key_file"
        ) from error
    return True
