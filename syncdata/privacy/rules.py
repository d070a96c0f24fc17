"""The rule of one column, as a configuration spells it: ``"email"`` or ``{ mask = "shift", by = "id" }``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

import msgspec

from syncdata.errors import shortened

# By mask, the options that it takes; those in _NEEDED it must have. `allow_collisions` goes with every mask.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "keep": (),
    "withhold": (),
    "null": (),
    "fixed": ("value",),
    "token": ("domain",),
    "email": ("domain",),
    "seal": ("domain",),
    "permute": ("domain",),
    "partial": ("keep_start", "keep_end", "fill"),
    "shift": ("by", "days", "domain"),
    "json": ("paths", "unnamed"),
    "name": ("domain",),
    "first_name": ("domain",),
    "last_name": ("domain",),
    "company": ("domain",),
    "street": ("domain",),
    "city": ("domain",),
    "phone": ("domain",),
}
_CUSTOM_OPTIONS = ("domain", "distinct")
_NEEDED: dict[str, tuple[str, ...]] = {"fixed": ("value",), "shift": ("by",)}
_CUSTOM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

MASKS = tuple(_OPTIONS)
KEYLESS = frozenset({"keep", "withhold", "null", "fixed", "partial"})
_MOST_DAYS = 36_500


class Rule(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of a column's values: the mask, by name or as ``package.module:function``, with options.

    ``domain``: columns that share one have the same results. ``by``: the column that says how far a date
    moves. ``unnamed``: what becomes of the parts of a document that no path names. ``distinct``: the function
    promises different results for different values.
    """

    mask: str
    domain: str = ""
    value: str | int | float | bool | None = None
    keep_start: int = 0
    keep_end: int = 0
    fill: str = "*"
    by: str = ""
    days: int = 30
    paths: dict[str, Rule] = {}
    unnamed: str = "withhold"
    distinct: bool = False
    allow_collisions: bool = False

    @property
    def is_custom(self) -> bool:
        return ":" in self.mask

    @property
    def kind(self) -> str:
        """The mask's name; a function's own name is the operator's business, so it is ``custom``."""
        return "custom" if self.is_custom else self.mask


def parse_rule(value: object) -> Rule:
    """Read the rule that *value* spells. Raises ValueError, which says in plain words what is wrong."""
    if isinstance(value, str):
        value = {"mask": value}
    if not isinstance(value, Mapping):
        raise ValueError('write the name of a mask, such as "keep", or { mask = "…", … }')
    mask = value.get("mask")
    if not isinstance(mask, str):
        raise ValueError('the mask is missing: { mask = "…", … }')
    _check_names(mask, set(value))
    options = {str(name): option for name, option in value.items()}
    if mask == "json":
        options["paths"] = _parse_paths(options.get("paths", {}))
    try:
        rule = msgspec.convert(options, Rule)
    except msgspec.ValidationError as error:
        raise ValueError(_in_plain_words(str(error))) from None
    _check_values(rule)
    return rule


# As msgspec says it: "Expected `bool`, got `str` - at `$.distinct`".
_UNFIT = re.compile(r"Expected `(?P<wanted>[^`]+)`.* at `\$\.(?P<option>\w+)`")
_KINDS = {"bool": "true or false", "int": "a whole number"}


def _in_plain_words(text: str) -> str:
    match = _UNFIT.fullmatch(text)
    if match is None:
        return text
    wanted = _KINDS.get(match["wanted"], "a text" if "str" in match["wanted"] else match["wanted"])
    return f"{match['option']} is {wanted}"


def _check_names(mask: str, names: set[object]) -> None:
    is_custom = _CUSTOM.fullmatch(mask) is not None
    if mask not in _OPTIONS and not is_custom:
        raise ValueError(
            f"there is no mask '{shortened(mask)}':"
            f" it is one of {', '.join(MASKS)} or package.module:function"
        )
    options = _CUSTOM_OPTIONS if is_custom else _OPTIONS[mask]
    others = sorted(str(name) for name in names - {"mask", "allow_collisions", *options})
    if others:
        takes = f"it takes {', '.join(options)}" if options else "it takes none"
        raise ValueError(f"{mask} has no option '{shortened(others[0])}': {takes}")
    missing = [name for name in _NEEDED.get(mask, ()) if name not in names]
    if missing:
        raise ValueError(f'{mask} needs {missing[0]}: {{ mask = "{mask}", {missing[0]} = … }}')


def _parse_paths(value: object) -> dict[str, Rule]:
    if not isinstance(value, Mapping):
        raise ValueError('paths are a table: { "contacts[].email" = "email" }')
    paths = {}
    for path, spelled in value.items():
        try:
            parse_path(str(path))
            rule = paths[str(path)] = parse_rule(spelled)
        except ValueError as error:
            raise ValueError(f"path '{shortened(str(path))}': {error}") from None
        if rule.mask in ("shift", "json"):
            raise ValueError(f"path '{shortened(str(path))}': {rule.mask} is none for a part of a document")
    _check_apart(paths)
    return paths


def _check_apart(paths: Iterable[str]) -> None:
    """Raise ValueError where one path leads into what another one masks, or two are the same."""
    steps = sorted(
        (parse_path(path) for path in paths), key=lambda path: [(step is None, step or "") for step in path]
    )
    for path, following in pairwise(steps):
        if following[: len(path)] == path:
            raise ValueError("of two paths, one is the other's beginning")


def _check_values(rule: Rule) -> None:
    if rule.mask == "fixed" and rule.value is None:
        raise ValueError('fixed needs a value; NULL is the mask "null"')
    if isinstance(rule.value, str) and "\0" in rule.value:
        raise ValueError("a text with the character NUL is no value")
    if min(rule.keep_start, rule.keep_end) < 0:
        raise ValueError("keep_start and keep_end count characters: 0 or more")
    if len(rule.fill) != 1 or rule.fill == "\0":
        raise ValueError("fill is one character")
    if not 1 <= rule.days <= _MOST_DAYS:
        raise ValueError(f"days is 1 to {_MOST_DAYS:,}")
    if rule.unnamed not in ("withhold", "keep"):
        raise ValueError("unnamed of a document is withhold or keep")


Step = str | None  # a key, or None for all elements of an array


def parse_path(text: str) -> tuple[Step, ...]:
    """Read a path in a document, such as ``contacts[].email`` or ``"odd.key"[]``. Raises ValueError."""
    steps: list[Step] = []
    place = 0
    while True:
        match = _KEY.match(text, place)
        if match is None and not (place == 0 and text.startswith("[]")):
            raise ValueError("write keys with dots between them, [] for all elements: contacts[].email")
        if match is not None:
            steps.append(match["plain"] or match["quoted"].replace('""', '"'))
            place = match.end()
        while text.startswith("[]", place):
            steps.append(None)
            place += 2
        if place == len(text):
            return tuple(steps)
        if text[place] != ".":
            raise ValueError("write keys with dots between them, [] for all elements: contacts[].email")
        place += 1


_KEY = re.compile(r'(?P<plain>[^".\[\]]+)|"(?P<quoted>(?:[^"]|"")+)"')
