"""Settings that are declared once: key, environment variable, parser, and whether they are secret.

Knows values and the fields of dataclasses; knows nothing of files, or of the settings' purpose. A
parser (`a_text`, …) returns the value of a setting, or raises ValueError with what it must be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the configuration: the parser of its value, and the environment variable that overrides it."""

    parse: Callable[[object], Any]
    variable: str = ""
    is_secret: bool = False


def setting(key: str, parse: Callable[[object], Any], variable: str | None = None) -> dict[str, Any]:
    """Return the metadata of a dataclass's field that is read from *key*, or from the variable *variable*.

    The variable is the key in capitals unless it is given. A field without a default is required; one that
    stays out of ``repr`` is a secret.
    """
    return {"key": key, "parse": parse, "variable": key.upper() if variable is None else variable}


def declared_keys(settings: type) -> dict[str, Key]:
    """Return the keys that the fields of *settings*, a dataclass, declare, in their order."""
    return {
        item.metadata["key"]: Key(item.metadata["parse"], item.metadata["variable"], is_secret=not item.repr)
        for item in fields(settings)
        if "key" in item.metadata
    }


def required_keys(settings: type) -> list[str]:
    """Return the keys of *settings* that have no default, in the order of the alphabet."""
    return sorted(
        item.metadata["key"]
        for item in fields(settings)
        if "key" in item.metadata and item.default is MISSING and item.default_factory is MISSING
    )


def make_settings(settings: type[T], values: Mapping[str, Any]) -> T:
    """Return *settings* made of *values*, which are parsed, by key; other keys are ignored."""
    return settings(
        **{
            item.name: values[item.metadata["key"]]
            for item in fields(settings)  # type: ignore[arg-type]
            if item.metadata.get("key") in values
        }
    )


def a_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text")
    text = _encodable(value.strip())
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError("must be a text of one line, without control characters")
    return text


def a_secret(value: object) -> str:
    # Not stripped: blanks may belong to a password.
    if not isinstance(value, str):
        raise ValueError("must be a text")
    if "\0" in value:
        raise ValueError("must not hold the character 0")
    return _encodable(value)


def a_host(value: object) -> str:
    """The name or address of a host, or a directory of sockets."""
    text = a_text(value)
    if text.startswith("/"):
        return text
    try:
        # What the resolver is handed; it knows neither longer names nor empty parts of one.
        text.removesuffix(".").encode("idna")
    except UnicodeError:
        raise ValueError(
            "must be a host: a name of at most 253 characters, none of its parts empty or longer than 63"
        ) from None
    if len(text) > 253:
        raise ValueError("must be a host: a name of at most 253 characters")
    return text


def a_path(value: object) -> Path:
    return expanded(value if isinstance(value, Path) else Path(a_text(value)))


def expanded(path: Path) -> Path:
    """Return *path* with its ``~`` replaced. Raises ValueError where nobody can say what that is."""
    _encodable(str(path))
    try:
        return path.expanduser()
    except RuntimeError:
        # A container's user without a name and without HOME, or ~name of a user that is not there.
        raise ValueError("begins with ~, and there is no such home directory: write the whole path") from None


def _encodable(text: str) -> str:
    """Return *text*. Raises ValueError where it cannot be given to the system: an environment variable that
    is not UTF-8, or half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return text


def a_remote_path(value: object) -> str:
    """A path at another host, where ``~`` is that host's to expand."""
    return str(value) if isinstance(value, Path) else a_text(value)


def a_file_mode(value: object) -> str:
    """The permissions of files: octal, ``"0640"`` or ``0o640``. Their owner may read and write them."""
    if isinstance(value, str) and re.fullmatch("(0o)?[0-7]{3,4}", value.strip()):
        value = int(value.strip().removeprefix("0o"), 8)
    if not isinstance(value, int) or isinstance(value, bool) or value & ~0o66 != 0o600:
        raise ValueError('must be the permissions of a file, such as "0640" or "0600"')
    return f"{value:04o}"


def directory_mode(file_mode: int) -> int:
    """Return the permissions of a directory whose files have *file_mode*: who may read may also enter."""
    return file_mode | (file_mode & 0o444) >> 2


def one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return value

    return parse


def whole_number(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        # A text is not quoted back: it may be a password that went into the wrong line.
        given = f", not {value}" if isinstance(value, int) and abs(value) < 10**18 else ""
        # The environment has only text, and a bool is an int to Python but a mistake to an operator.
        text = value.strip() if isinstance(value, str) else ""
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            value = int(text)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}{given}")
        return value

    return parse


PORT = whole_number(1, 65535)
