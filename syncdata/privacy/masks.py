"""Makes of a rule the mask of one column, or says why the column cannot have it. Pure."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import msgspec

from syncdata.privacy import documents, texts
from syncdata.privacy.arrays import masked_array
from syncdata.privacy.dates import moved
from syncdata.privacy.facts import ValueType
from syncdata.privacy.key import MaskKey
from syncdata.privacy.mask import DATES, DOCUMENTS, INTEGERS, VERSION, Function, Lost, Mask
from syncdata.privacy.permutation import permutation
from syncdata.privacy.rules import KEYLESS, Rule, parse_path
from syncdata.privacy.sealing import sealer
from syncdata.privacy.values import check_value

_CUSTOM_DIGITS = 32


def make_mask(rule: Rule, kind: ValueType, domain: str, key: MaskKey | None, *, by_domain: str = "") -> Mask:
    """Return the mask of *rule* for values of type *kind*. Raises ValueError when there can be none.

    *domain* is the column's own, *by_domain* that of the column that the rule names with ``by``. A rule that
    names a domain has that one.
    """
    if key is None and rule.mask not in KEYLESS:
        raise ValueError(f"{rule.kind} needs a key: name a key_file")
    if rule.mask == "null":
        return Mask(_nothing, ("null",), takes_null=True)
    if rule.mask == "fixed":
        return _fixed(rule, kind)
    element = msgspec.structs.replace(kind, is_array=False)
    own = by_domain if rule.mask == "shift" else domain
    mask = _maker(rule)(rule, element, rule.domain or own, key)
    parts = (VERSION, rule.kind, *mask.parts)
    if not kind.is_array:
        return msgspec.structs.replace(mask, parts=parts)
    return msgspec.structs.replace(mask, parts=(*parts, "array"), function=_of_array(mask.function))


def _nothing(text: str | None) -> None:
    return None


def _fixed(rule: Rule, kind: ValueType) -> Mask:
    value = rule.value
    spelled = ("t" if value else "f") if isinstance(value, bool) else str(value)
    check_value(spelled, kind)
    return Mask(lambda text: spelled, ("fixed", spelled), takes_null=True)


def _of_array(function: Function) -> Function:
    return lambda text, *by: masked_array(text, function, *by)


def _seal(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    seal = sealer(key, domain)
    if kind.name == "bytea":
        return Mask(lambda text: "\\x" + seal(text), (domain, "bytea"), is_distinct=True)
    texts.check_is_text(rule, kind)
    if kind.length is not None or kind.name == "name":
        raise ValueError("a seal is longer than what it seals: the column must be a text without a limit")
    return Mask(seal, (domain,), is_distinct=True)


def _permute(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    _check_type(rule, kind, INTEGERS, "whole numbers")
    return Mask(permutation(key, domain).text, (domain,), is_distinct=True)


def _shift(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    """As many days as the other column's value says, which is never none."""
    _check_type(rule, kind, DATES, "dates and times")
    days, numbers = rule.days, texts.numbers_of(key, domain)
    choices = 2 * days

    def shifted(text: str, by: str) -> str:
        distance = numbers(by)[0] % choices - days
        return moved(text, distance if distance < 0 else distance + 1)

    return Mask(shifted, (domain, rule.by, days), by=rule.by)


def _json(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    _check_type(rule, kind, DOCUMENTS, "documents")
    parts, described, lost = {}, [], Lost()
    for path, part in sorted(rule.paths.items()):
        parts[parse_path(path)], what = _part(path, part, domain, key, lost)
        described.append((path, what))
    function = documents.document_mask(parts, keeps_unnamed=rule.unnamed == "keep")
    return Mask(function, (rule.unnamed, described), lost=lost)


def _part(path: str, rule: Rule, domain: str, key: MaskKey, lost: Lost) -> tuple[documents.Part, object]:
    """Return what becomes of the part of a document at *path*, and all that decides it. *lost* counts."""
    if rule.mask == "keep":
        return documents.keep, "keep"
    if rule.mask == "withhold":
        return documents.leave_out, "withhold"
    if rule.mask in ("null", "fixed"):
        return documents.constant(rule.value), (rule.mask, rule.value)
    kind = ValueType("bigint" if rule.mask == "permute" else "text")
    try:
        mask = make_mask(rule, kind, f"{domain}:{path}", key)
    except ValueError as error:
        raise ValueError(f"path '{path}': {error}") from None
    return documents.scalar(mask.function, lost), mask.parts


def _custom(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    """The operator's own function: of a value's text, and 32 hex digits that key, domain and text decide."""
    own, digits = _load(rule.mask), texts.hexadecimal_of(key, domain, _CUSTOM_DIGITS)

    def masked(text: str) -> str | None:
        result = own(text, digits(text))
        if result is not None:
            check_value(result, kind)
        return result

    return Mask(masked, (rule.mask, domain), is_distinct=rule.distinct)


def _load(name: str) -> Callable[[str, str], str | None]:
    """Return the function ``package.module:function``. Raises ValueError when it cannot be had."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever an import may raise
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}") from None
    if not callable(found):
        raise ValueError(f"{name} is no function")
    return found


def _check_type(rule: Rule, kind: ValueType, names: frozenset[str], what: str) -> None:
    if kind.name not in names:
        raise ValueError(f"{rule.mask} is for {what}, not for {kind.name}")


_MAKERS: dict[str, Callable[..., Mask]] = {
    "token": texts.token,
    "email": texts.email,
    "partial": texts.partial,
    "seal": _seal,
    "permute": _permute,
    "shift": _shift,
    "json": _json,
    **dict.fromkeys(texts.INVENTED, texts.invented),
}


def _maker(rule: Rule) -> Callable[..., Mask]:
    return _custom if rule.is_custom else _MAKERS[rule.mask]
