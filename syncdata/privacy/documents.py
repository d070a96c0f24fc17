"""JSON, masked at the paths that are named. Pure.

Only the objects and arrays on a named path are taken apart. All else is passed on as it is spelled, so
numbers keep their digits; or it is left out, where what no path names is withheld. Where a path meets
something else than it says, such as an object in the place of an array, that is left out in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from syncdata.privacy.mask import Function, Lost
from syncdata.privacy.rules import Step

# What becomes of one part, spelled as JSON; None: it is left out.
Part = Callable[[bytes], bytes | None]

_NULL = b"null"
_encode = msgspec.json.Encoder().encode
_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_string = msgspec.json.Decoder(str).decode


def document_mask(parts: Mapping[tuple[Step, ...], Part], *, keeps_unnamed: bool) -> Function:
    """Return what masks a document's text. It raises ValueError where that is no JSON, and RecursionError
    where it is nested too deep."""
    root = _Node(keep if keeps_unnamed else leave_out)
    for path, part in parts.items():
        root.add(path, part)

    def masked(text: str) -> str:
        part = root(text.strip().encode())
        return (_NULL if part is None else part).decode()

    return masked


def keep(part: bytes) -> bytes:
    return part


def leave_out(part: bytes) -> None:
    return None


def constant(value: object) -> Part:
    spelled = _encode(value)
    return lambda part: spelled


def scalar(function: Function, lost: Lost) -> Part:
    """Return what masks a string, a number or a truth value by *function*. Anything else becomes null, and so
    does what *function* cannot take: both are counted as *lost*. A number stays one where the function
    gives an integer for it."""

    def masked(part: bytes) -> bytes:
        if part == _NULL:
            return _NULL
        if part[:1] in (b"{", b"["):
            lost.parts += 1
            return _NULL
        is_string = part[:1] == b'"'
        try:
            result = function(_read_string(part) if is_string else part.decode())
        except Exception:  # its text may hold the value
            lost.parts += 1
            return _NULL
        if result is not None and not is_string and result.removeprefix("-").isdecimal():
            return result.encode()
        return _encode(result)

    return masked


class _Node:
    """A place on named paths: what becomes of an object's named members, and of an array's elements."""

    def __init__(self, unnamed: Part) -> None:
        self._unnamed = unnamed
        self._members: dict[str, Part] = {}
        self._elements: Part | None = None

    def add(self, path: tuple[Step, ...], part: Part) -> None:
        step, rest = path[0], path[1:]
        inner = self._elements if step is None else self._members.get(step)
        if rest:
            node = inner if isinstance(inner, _Node) else _Node(self._unnamed)
            node.add(rest, part)
            part = node
        if step is None:
            self._elements = part
        else:
            self._members[step] = part

    def __call__(self, part: bytes) -> bytes | None:
        first = part[:1]
        if first == b"{" and (self._members or self._elements is None):
            members = {name: self._member(name, value) for name, value in _read_object(part).items()}
            return _encode({name: msgspec.Raw(value) for name, value in members.items() if value is not None})
        if first == b"[" and self._elements is not None:
            elements = [self._elements(bytes(element).strip()) for element in _read_array(part)]
            return _encode([msgspec.Raw(element) for element in elements if element is not None])
        return _NULL if part == _NULL else None

    def _member(self, name: str, value: msgspec.Raw) -> bytes | None:
        return self._members.get(name, self._unnamed)(bytes(value).strip())
