"""Asks the server which row rules of a policy it takes, and how it spells them. Nothing of it stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import psycopg

from syncdata.capture.publication import Part
from syncdata.changes.names import TableName
from syncdata.privacy.policy import Policy
from syncdata.provision.database import SourceDatabase
from syncdata.provision.privacy_plan import Filters


def spell_filters(
    database: SourceDatabase, policy: Policy, tables: Collection[TableName], there: Mapping[TableName, Part]
) -> Filters:
    """Return the row rules of *tables* as the server spells them. *there*: what is published already.

    Raises psycopg.Error when the server goes away.
    """
    spelled, refused = {}, {}
    for table, condition in policy.rows.items():
        if table not in tables:
            continue
        try:
            spelled[table] = database.spell_filter(table, condition)
        except psycopg.errors.InsufficientPrivilege:
            # A role that may make no temporary table may alter no publication either. To it, the filter that
            # is there is the one.
            part = there.get(table)
            spelled[table] = (part and part.row_filter) or condition
        except psycopg.DatabaseError as error:
            if database.is_lost:
                raise
            refused[table] = error.diag.message_primary or type(error).__name__
    return Filters(spelled=spelled, refused=refused)
