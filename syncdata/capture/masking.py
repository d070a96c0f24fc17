"""Decodes the messages of pgoutput as a privacy policy lets them travel. Knows messages and masks; no I/O.

A change is masked before anything else sees it. A table that nobody has said may travel is withheld: of its
changes not even the rows are decoded.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from syncdata.capture.pgoutput import Decoder, Message, Relation, RowChange, Truncate, Withheld
from syncdata.privacy.row_mask import RowMask

_OID = struct.Struct(">I").unpack_from
_ROW_CHANGES = frozenset(b"IUD")


class MaskingDecoder(Decoder):
    """Decodes as `Decoder` does, and masks. Tables travel once `describe` has said how."""

    def __init__(self) -> None:
        super().__init__()
        self._masks: dict[int, RowMask | None] = {}

    @property
    def relations(self) -> tuple[Relation, ...]:
        """All tables that the stream has described, as it did last."""
        return tuple(self._relations.values())

    def describe(self, relation: Relation, mask: RowMask | None) -> None:
        """Take in how changes of *relation* travel from now on; without a mask they travel as they are."""
        self._masks[relation.oid] = mask

    def withhold(self, relation: Relation) -> None:
        """Take in that no change of *relation* travels from now on."""
        self._masks.pop(relation.oid, None)

    def decode(self, message: bytes) -> Message | None:
        """Return *message* decoded and masked. Raises as `Decoder.decode`."""
        if message[0] in _ROW_CHANGES and len(message) > 4:
            (oid,) = _OID(message, 1)
            relation = self._relations.get(oid)
            if relation is not None and oid not in self._masks:
                return Withheld(relation)
        decoded = super().decode(message)
        if isinstance(decoded, RowChange):
            mask = self._masks[decoded.relation.oid]
            return decoded if mask is None else masked(decoded, mask)
        if isinstance(decoded, Truncate):
            return Truncate(relations=tuple(r for r in decoded.relations if r.oid in self._masks))
        return decoded


def masked(change: RowChange, mask: RowMask) -> RowChange:
    """Return *change* as it travels."""
    old_keys = None if change.old_keys is None else mask.keys(change.old_keys)
    return RowChange(change.relation, change.op, _masked_row(change, mask), old_keys)


def _masked_row(change: RowChange, mask: RowMask) -> dict[str, str | None] | None:
    new, columns = change.new, change.relation.columns
    if new is None:
        return None
    values: list[Any] = new if isinstance(new, list) else [new.get(name, msgspec.UNSET) for name in columns]
    row = mask.row(values)
    return {name: value for name, value in zip(columns, row, strict=True) if value is not msgspec.UNSET}
