"""Change records: one line of a change file, read with no digit lost. Pure; knows nothing of files."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from syncdata.changes.names import DEFAULT_SCHEMA
from syncdata.changes.position import parse_lsn
from syncdata.errors import ParseError, shortened

Mark = Literal["B", "C", "M"]
Op = Literal["INSERT", "UPDATE", "DELETE", "TRUNCATE"] | Mark

# Lines of the predecessor's script that are no records: a transaction begins, ends; a message.
MARKS: frozenset[str] = frozenset(("B", "C", "M"))


class ChangeRecord(msgspec.Struct, frozen=True, gc=False):
    """One row's INSERT, UPDATE or DELETE, or one TRUNCATE; or one of `MARKS`, which names no table.

    ``data`` and ``old_keys`` map column names to values: strings and fractional numbers are text,
    digit for digit; whole numbers, booleans and None are themselves; an array or object is
    :class:`Json`, its text as it stood in the file. A column absent from ``data`` is unchanged.
    """

    table: str
    op: Op
    data: dict[str, Any] | None = None
    old_keys: dict[str, Any] | None = None
    lsn: str | None = None
    ts: str | None = None
    schema: Annotated[str, msgspec.Meta(min_length=1)] = DEFAULT_SCHEMA
    xid: int | str | None = None
    commit_lsn: str | None = None


class OddRecord(ChangeRecord, frozen=True, gc=False):
    """A line that says whose it is, but is no record: ``problem`` says why. It blocks its own table alone."""

    problem: str = ""


class Json(str):
    """The text of a JSON array or object, exactly as it stood in the file."""

    __slots__ = ()


class _RawRecord(msgspec.Struct):
    """A line as the file has it: values are the bytes of the file, and a TRUNCATE may be called ``T``."""

    table: str
    op: Op | Literal["T"]
    data: dict[str, msgspec.Raw] | None = None
    old_keys: dict[str, msgspec.Raw] | None = None
    lsn: str | None = None
    ts: str | None = None
    schema: Annotated[str, msgspec.Meta(min_length=1)] = DEFAULT_SCHEMA
    xid: int | str | None = None
    commit_lsn: str | None = None


class _Blamed(msgspec.Struct):
    """What a line must hold so that its table alone can be blamed: that, and the end of its transaction."""

    table: str
    ts: str | None = None
    schema: Annotated[str, msgspec.Meta(min_length=1)] = DEFAULT_SCHEMA
    commit_lsn: str | None = None


# float_hook: a numeric must never pass through a float. Its cost is nil.
_decoder = msgspec.json.Decoder(ChangeRecord, float_hook=str)

_raw_decoder = msgspec.json.Decoder(_RawRecord)

_blamed_decoder = msgspec.json.Decoder(_Blamed)

_string_decoder = msgspec.json.Decoder(str)

_PARSE_HINT = "mend or replace the file in the archive; syncing goes on from this line by itself"

_NESTED = frozenset((dict, list))

_find_negative_zero = re.compile(rb"-0[,}\s]").search


def parse_record(line: bytes | bytearray) -> ChangeRecord:
    """Read one line of a change file. Raises ParseError (without file and line) when it is no record."""
    try:
        record = _decode(line)
    except msgspec.ValidationError as error:
        raise ParseError(f"not a change record: {_words(error)}", hint=_PARSE_HINT) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ParseError(f"not a line of JSON: {_words(error)}", hint=_PARSE_HINT) from None
    problem = _find_problem(record)
    if problem:
        raise ParseError(problem, hint=_PARSE_HINT)
    return record


def _words(error: Exception) -> str:
    """Return the words of *error*; those for text that is not UTF-8 would show a byte of it."""
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else shortened(str(error))


def odd_record(line: bytes | bytearray, problem: str) -> OddRecord | None:
    """Return what stands for *line*, which `parse_record` refuses with *problem*, where it names its table
    and its transaction. None where nobody can know whose it is.

    Example: ``{"table":"t","op":"MERGE","ts":…}``. Readers that do not sync ``t`` pass over it.
    """
    try:
        msgspec.json.decode(line)  # all of it: a damaged line may name any table
        blamed = _blamed_decoder.decode(line)
        if blamed.commit_lsn is not None:
            parse_lsn(blamed.commit_lsn)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not blamed.table:
        return None
    return OddRecord(
        table=blamed.table,
        op="UPDATE",
        ts=blamed.ts,
        schema=blamed.schema,
        commit_lsn=blamed.commit_lsn,
        problem=problem,
    )


def _decode(line: bytes | bytearray) -> ChangeRecord:
    try:
        record = _decoder.decode(line)
    except msgspec.ValidationError:  # a number that no integer holds, a ``T``; or it is no record either way
        return _decode_exactly(line)
    return _decode_exactly(line) if _has_lost(record, line) else record


def _has_lost(record: ChangeRecord, line: bytes | bytearray) -> bool:
    """Tell whether decoding *line* to *record* has lost the text of nested JSON, or the sign of a -0."""
    for values in (record.data, record.old_keys):
        if values and not _NESTED.isdisjoint(map(type, values.values())):
            return True
    return _find_negative_zero(line) is not None


def _decode_exactly(line: bytes | bytearray) -> ChangeRecord:
    raw = _raw_decoder.decode(line)
    return ChangeRecord(
        table=raw.table,
        op="TRUNCATE" if raw.op == "T" else raw.op,
        data=_exact_values(raw.data),
        old_keys=_exact_values(raw.old_keys),
        lsn=raw.lsn,
        ts=raw.ts,
        schema=raw.schema,
        xid=raw.xid,
        commit_lsn=raw.commit_lsn,
    )


def _exact_values(values: dict[str, msgspec.Raw] | None) -> dict[str, Any] | None:
    return None if values is None else {name: exact_value(bytes(raw)) for name, raw in values.items()}


def exact_value(raw: bytes) -> str | bool | None:
    """Return a JSON value with nothing lost: numbers as their text, arrays and objects as Json."""
    match raw[:1]:
        case b'"':
            return _string_decoder.decode(raw)
        case b"{" | b"[":
            return Json(raw.decode())
        case b"n":
            return None
        case b"t" | b"f":
            return raw == b"true"
        case _:
            return raw.decode()


def _find_problem(record: ChangeRecord) -> str | None:
    op = record.op
    if not record.table:
        return None if op in MARKS else "not a change record: it names no table"
    if op in MARKS:
        return f"not a change record: {op} names a table"
    if record.commit_lsn is not None:
        try:
            parse_lsn(record.commit_lsn)
        except ValueError:
            return "commit_lsn is not an LSN"
    return None
