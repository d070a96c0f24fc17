"""Applies a table's batch although the server may refuse it as a set: other ways to the same rows, and in
the end the one record to blame. Knows the plan and the writer.

Example: customers 1 and 2 swap their unique e-mail addresses in one batch. The upsert of both fails, for
customer 1 gets the address that 2 still has. So both rows are removed and then written, which passes. If a
third record of the batch breaks a CHECK, that fails, too. Then the batch is halved, and the halves are
applied in their order, each as a set again; in the end that record is alone, refused, and known to the line.
"""

from __future__ import annotations

from dataclasses import replace

import psycopg

from syncdata.apply.counts import Counts
from syncdata.apply.plan.net_change import make_plan
from syncdata.apply.plan.table_plan import TableBatch, TablePlan, as_replacement
from syncdata.apply.postgres.connection import is_servers_fault, record_error
from syncdata.apply.postgres.held import RefusedError, refused_error
from syncdata.apply.postgres.keyed import ReplayNeededError
from syncdata.apply.postgres.writer import RowWriter

# Another row holds a value of the row to be written, perhaps only until its own turn comes.
_VALUE_IS_TAKEN = (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation)


def apply_table(writer: RowWriter, batch: TableBatch, plan: TablePlan) -> Counts:
    """Apply *batch*, whose plan is *plan*, in the caller's savepoint. Returns the counts with ``missing``.

    Raises ApplyError or SchemaError, with file and line, for the first record that cannot be applied,
    and psycopg.OperationalError when the server is at fault. Test:
    test_a_bad_value_is_found_to_the_line_and_never_shown.
    """
    try:
        return writer.write(plan)
    except (psycopg.Error, ReplayNeededError, RefusedError) as error:
        if is_servers_fault(error):
            raise
        if len(batch.records) == 1:
            (record,) = batch.records
            if isinstance(error, RefusedError):
                raise refused_error(error, record, batch.schema.name) from None
            refusal = error if isinstance(error, psycopg.Error) else None
            raise record_error(refusal, record, batch.schema) from None
        if isinstance(error, _VALUE_IS_TAKEN) and (counts := _replace(writer, plan)):
            return counts
    counts = Counts()
    # The key that locates the rows of all records locates those of some, too.
    for half in replace(batch, schema=plan.schema).halves():
        counts.add(apply_table(writer, half, make_plan(half)))
    return counts


def _replace(writer: RowWriter, plan: TablePlan) -> Counts | None:
    """Apply *plan* by removing all its rows before writing any; None, with nothing done, if it fails.

    It is tried only where the removal of a row, for a moment, has no consequences. Tests:
    test_two_rows_swap_a_unique_value_in_one_batch, test_a_swap_under_awake_keys_takes_no_children_along.
    """
    may_remove = writer.is_silent or not _has_consequences(plan)
    replacement = as_replacement(plan) if may_remove and plan.schema.key else None
    if replacement is None:
        return None
    try:
        return writer.write(replacement, removes_first=True)
    except (psycopg.Error, ReplayNeededError, RefusedError) as error:
        if is_servers_fault(error):
            raise
        return None


def _has_consequences(plan: TablePlan) -> bool:
    """Tell whether the removal of a row could change others, where triggers and foreign keys are awake.

    A key that changes may be passed on by ON UPDATE CASCADE, which a removal and an insert are not.
    """
    return (
        plan.schema.has_cascades
        or bool(plan.rekeyed or plan.schema.awake_guards(is_silent=False))
        or any(shape.mode == "move" for shape in plan.writes)
    )
