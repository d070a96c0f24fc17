"""Applies a table's batch although the server may refuse it as a set: other ways to the same rows, and in
the end the one record to blame. Knows the plan and the writer.

Example: customers 1 and 2 swap their unique e-mail addresses in one batch. The upsert of both fails, for
customer 1 gets the address that 2 still has. So both rows are removed and then written, which passes. If a
third record of the batch breaks a CHECK, that fails, too. Then the records are sent one after the other, a
hundred at a time. One that the server refuses, or that cannot go like this, is applied by itself, and the
others go on behind it. A piece with a record that is refused by itself, too, and a batch whose records cannot
go like this, is halved, and the halves are applied in their order, each as a set again; in the end that
record is alone, refused, and known to the line.
"""

from __future__ import annotations

from dataclasses import replace

import psycopg

from syncdata.apply.counts import Counts
from syncdata.apply.plan.net_change import make_plan, plan_each
from syncdata.apply.plan.table_plan import TableBatch, TablePlan, as_replacement
from syncdata.apply.postgres.connection import is_servers_fault, record_error
from syncdata.apply.postgres.direct import InTurnError
from syncdata.apply.postgres.held import RefusedError, refused_error
from syncdata.apply.postgres.keyed import ReplayNeededError
from syncdata.apply.postgres.writer import RowWriter
from syncdata.errors import SyncError

# Another row holds a value of the row to be written, perhaps only until its own turn comes.
_VALUE_IS_TAKEN = (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation)

# A row that is refused for these is refused beside any others, unless they are records of the same row.
_ITS_OWN_VALUES = (psycopg.errors.CheckViolation, psycopg.errors.NotNullViolation, psycopg.DataError)

# The records that go to the server together when they are applied one after the other.
_PIECE = 100


class _RefusedAloneError(Exception):
    """One record is refused by itself: ``error``. ``is_final``: so it is together with the others."""

    def __init__(self, error: SyncError, *, is_final: bool) -> None:
        super().__init__(is_final)
        self.error = error
        self.is_final = is_final


def apply_table(writer: RowWriter, batch: TableBatch, plan: TablePlan) -> Counts:
    """Apply *batch*, whose plan is *plan*, or nothing of it. Returns the counts with ``missing``.

    Raises ApplyError or SchemaError, with file and line, for the first record that cannot be applied,
    and psycopg.OperationalError when the server is at fault. Test:
    test_a_bad_value_is_found_to_the_line_and_never_shown.
    """
    return _apply(writer, batch, plan, may_go_in_turn=True)


def _apply(writer: RowWriter, batch: TableBatch, plan: TablePlan, *, may_go_in_turn: bool) -> Counts:
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
    with writer.savepoint():
        # The key that locates the rows of all records locates those of some, too.
        batch = replace(batch, schema=plan.schema)
        if not (may_go_in_turn and writer.may_write_in_turn(plan.schema)):
            return _apply_halves(writer, batch, may_go_in_turn=may_go_in_turn)
        counts = Counts()
        for start in range(0, len(batch.records), _PIECE):
            piece = replace(batch, records=batch.records[start : start + _PIECE])
            try:
                with writer.savepoint():
                    counts.add(_apply_in_turn(writer, piece))
            except _RefusedAloneError as refused:
                # Production may take at once what is refused here one by one: a constraint that is deferrable
                # there alone. Test: test_a_swap_that_production_defers_is_applied_beside_other_records.
                if refused.is_final or len(piece.records) == 1:
                    raise refused.error from None
                if len(piece.records) < len(batch.records):
                    counts.add(_apply(writer, piece, make_plan(piece), may_go_in_turn=False))
                else:  # as a whole it has been tried
                    counts.add(_apply_halves(writer, piece, may_go_in_turn=False))
        return counts


def _apply_halves(writer: RowWriter, batch: TableBatch, *, may_go_in_turn: bool) -> Counts:
    counts = Counts()
    for half in batch.halves():
        counts.add(_apply(writer, half, make_plan(half), may_go_in_turn=may_go_in_turn))
    return counts


def _apply_in_turn(writer: RowWriter, piece: TableBatch) -> Counts:
    """Apply the records of *piece* one after the other; one that cannot go with the others goes by itself.

    A hundred pairs of customers swap their addresses, and their orders hang on them, so that no row may be
    removed: halving would end at single records, with some ten statements for each of them and for each piece
    on the way. Tests: test_many_swaps_of_unique_values_cost_a_few_statements_a_record,
    test_trouble_in_a_small_batch_costs_a_few_round_trips.

    Raises _RefusedAloneError for the first record that is refused by itself.
    """
    plans = plan_each(piece)
    counts, done, refusal = Counts(), 0, None
    while done < len(plans):
        end = len(plans)
        while end > done:
            try:
                counts.add(writer.write_in_turn(plans[done:end]))
                break
            except InTurnError as failure:
                end, refusal = done + failure.number, failure.error
        if end < len(plans):
            alone = replace(piece, records=piece.records[end : end + 1])
            try:
                counts.add(_apply(writer, alone, plans[end], may_go_in_turn=False))
            except SyncError as error:
                is_own = isinstance(refusal, _ITS_OWN_VALUES) and _size(make_plan(piece)) == sum(
                    map(_size, plans)
                )
                raise _RefusedAloneError(error, is_final=is_own) from None
        done = end + 1
    return counts


def _size(plan: TablePlan) -> int:
    return len(plan.gone) + sum(map(len, plan.writes.values()))


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
