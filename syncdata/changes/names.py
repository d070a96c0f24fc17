"""Names of tables: schema and name, and how a person writes them. Pure."""

from __future__ import annotations

import shlex

import msgspec

from syncdata.errors import SchemaError, shortened

DEFAULT_SCHEMA = "public"


class TableName(msgspec.Struct, frozen=True, order=True):
    """A table's schema and name, in the exact case of the catalog."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read ``table``, ``schema.table`` or parts in double quotes; case is kept as given.

        Raises SchemaError when *text* names no table.
        """
        parts = _split_identifiers(text.strip())
        is_name = parts is not None and len(parts) <= 2 and all(map(_is_identifier, parts))
        if parts is None or not is_name:
            raise SchemaError(
                f"'{shortened(text)}' is not a table name",
                hint='write table, schema.table, or "quoted.name" for a name with a dot',
            )
        return cls(*parts) if len(parts) == 2 else cls(DEFAULT_SCHEMA, parts[0])

    def __str__(self) -> str:
        name = _quote_if_needed(self.name)
        return name if self.schema == DEFAULT_SCHEMA else f"{_quote_if_needed(self.schema)}.{name}"

    @property
    def argument(self) -> str:
        """The name as a shell takes it for one argument: hints are pasted, and it may hold anything."""
        text = str(self)
        return shlex.quote(text) if text.isprintable() else _ansi_c_quoted(text)


def _is_identifier(part: str) -> bool:
    """Tell whether *part* can be a table's or schema's name: PostgreSQL cuts names off after 63 bytes."""
    return 0 < len(part.encode(errors="replace")) <= 63 and "\0" not in part


def _split_identifiers(text: str) -> list[str] | None:
    """Split at the dots outside double quotes; None when the quoting is broken."""
    parts: list[str] = []
    rest = text
    while True:
        if rest.startswith('"'):
            part, rest = "", rest[1:]
            while True:
                piece, quote, rest = rest.partition('"')
                if not quote:
                    return None
                part += piece
                if not rest.startswith('"'):
                    break
                part, rest = part + '"', rest[1:]
            if rest and not rest.startswith("."):
                return None
            dot, rest = rest[:1], rest[1:]
        else:
            part, dot, rest = rest.partition(".")
            if '"' in part:
                return None
        parts.append(part)
        if not dot:
            return parts


def _ansi_c_quoted(text: str) -> str:
    escapes = {ord("\\"): "\\\\", ord("'"): "\\'"} | {
        ord(c): ascii(c)[1:-1] for c in text if not c.isprintable()
    }
    return f"$'{text.translate(escapes)}'"


def _quote_if_needed(part: str) -> str:
    if "." in part or '"' in part or part != part.strip():
        return '"' + part.replace('"', '""') + '"'
    return part
