"""The keys of the configuration: how each is read, and every problem with them told at once.

Knows keys, environment names and limits; knows nothing of files, and defaults are the dataclasses' own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncdata.apply.whitelist import parse_syncable
from syncdata.changes.names import TableName
from syncdata.errors import ConfigError, WhitelistAddError

# How one value is read. A parser raises ValueError with what the value must be.


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text")
    return value.strip()


def _secret(value: object) -> str:
    # Not stripped: blanks may belong to a password.
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return value


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value.expanduser()
    return Path(_text(value)).expanduser()


def _directory(value: object) -> str:
    return str(value) if isinstance(value, Path) else _text(value)


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be {' or '.join(choices)}, not {value!r}")
        return str(value)

    return parse


def _whole_number(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        # The environment has only text, and a bool is an int to Python but a mistake to an operator.
        text = value.strip() if isinstance(value, str) else ""
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            value = int(text)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    return parse


def _slot_name(value: object) -> str:
    name = _text(value)
    if not re.fullmatch("[a-z0-9_]{1,63}", name):
        raise ValueError(f"must be 1 to 63 lower case letters, digits and underscores, not {name!r}")
    return name


def _identifier(value: object) -> str:
    name = _text(value)
    if len(name.encode(errors="replace")) > 63 or not name.isprintable():
        raise ValueError(f"must be a name of at most 63 bytes, not {name!r}")
    return name


def _tables(value: object) -> tuple[TableName, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError('must be a list of tables, such as ["users", "shop.orders"]')
    tables, problems = [], []
    for name in value:
        try:
            tables.append(parse_syncable(_text(name)))
        except WhitelistAddError as error:
            problems.append(error.message)
        except ValueError:
            problems.append(f"{name!r} is not a table name")
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(dict.fromkeys(tables))


@dataclass(frozen=True, slots=True)
class Key:
    """How the value of a key is read, and the environment variable that wins over it."""

    parse: Callable[[object], Any]
    variable: str = ""


_YEAR_S = 366 * 24 * 3600
_YEAR_HOURS = _YEAR_S // 3600
_PORT = _whole_number(1, 65535)

ARCHIVE_KEYS = {
    "archive_backend": Key(_one_of("sftp", "local"), "ARCHIVE_BACKEND"),
    "archive_host": Key(_text, "ARCHIVE_HOST"),
    "archive_user": Key(_text, "ARCHIVE_USER"),
    "archive_dir": Key(_directory, "ARCHIVE_DIR"),
    "archive_port": Key(_PORT, "ARCHIVE_PORT"),
    "archive_key_file": Key(_path, "ARCHIVE_KEY_FILE"),
    "archive_key_passphrase": Key(_secret, "ARCHIVE_KEY_PASSPHRASE"),
    "archive_password": Key(_secret, "ARCHIVE_PASSWORD"),
    "archive_known_hosts": Key(_path, "ARCHIVE_KNOWN_HOSTS"),
}
PACE_KEYS = {
    "data_sync_freq": Key(_whole_number(1, _YEAR_S), "DATA_SYNC_FREQ"),
    "metric_freq": Key(_whole_number(1, _YEAR_HOURS), "METRIC_FREQ"),
    "batch_records": Key(_whole_number(1, 10_000_000)),
    "batch_bytes": Key(_whole_number(1, 2**40)),
}
DATABASE_KEYS = {
    "pg_host": Key(_text, "PG_HOST"),
    "pg_port": Key(_PORT, "PG_PORT"),
    "pg_user": Key(_text, "PG_USER_NAME"),
    "pg_password": Key(_secret, "PG_PASSWORD"),
    "pg_database": Key(_text, "PG_DB_NAME"),
}
SOURCE_KEYS = {
    **{name: Key(key.parse, f"SOURCE_{key.variable}") for name, key in DATABASE_KEYS.items()},
    "slot_name": Key(_slot_name),
    "publication": Key(_identifier),
    "tables": Key(_tables),
    "spool_dir": Key(_path),
    "rotate_seconds": Key(_whole_number(1, _YEAR_S)),
    "rotate_bytes": Key(_whole_number(1, 2**40)),
    "compression": Key(_one_of("zstd", "gzip", "none")),
    "keep_days": Key(_whole_number(0, 36_500)),
    "prune_hours": Key(_whole_number(0, _YEAR_HOURS)),
}
FILE_KEYS = ARCHIVE_KEYS | PACE_KEYS | DATABASE_KEYS
SETTINGS_KEYS = ARCHIVE_KEYS | PACE_KEYS | {"database": Key(_text), "state_dir": Key(_path)}
SECRET_KEYS = frozenset({"archive_key_passphrase", "archive_password", "pg_password"})


class Reading:
    """The values read so far, and every problem met, so that the operator sees all of them at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self._environ = environ
        self._wrong: set[str] = set()

    def read(
        self,
        given: Mapping[str, Any],
        keys: Mapping[str, Key],
        *,
        prefix: str = "",
        unread: Collection[str] = (),
    ) -> None:
        """Take the values of *keys* from *given* and the environment, which wins.

        Other names in *given* are problems, unless they are in *unread*. *prefix* is what a key's table
        puts before its name in messages.
        """
        for name, key in keys.items():
            label = f"{prefix}{name}"
            # Empty counts as unset: that is how compose files and templates leave a value out.
            if variable := self._environ.get(key.variable, ""):
                self._read(name, key, variable, f"{label} (from {key.variable})")
            elif given.get(name) not in (None, ""):
                self._read(name, key, given[name], label)
        for name in given:
            if name not in keys and name not in unread:
                self.problems.append(_unknown(str(name), prefix, [*keys, *unread]))

    def require(self, name: str, keys: Mapping[str, Key], *, prefix: str = "") -> None:
        """Note a problem unless *name* has been given (a wrong value is a problem already)."""
        if name in self.values or name in self._wrong:
            return
        variable = keys[name].variable
        self.problems.append(f"{prefix}{name}: is required" + (f" (or {variable})" if variable else ""))

    def require_archive(self) -> None:
        self.require("archive_dir", ARCHIVE_KEYS)
        if self.values.get("archive_backend", "sftp") == "sftp" and "archive_backend" not in self._wrong:
            self.require("archive_host", ARCHIVE_KEYS)
            self.require("archive_user", ARCHIVE_KEYS)

    def require_state_dir(self) -> None:
        """``settings.SYNCDATA`` must name the directory that is the TOML file's own elsewhere."""
        self.require("state_dir", SETTINGS_KEYS)
        state_dir = self.values.get("state_dir")
        if state_dir is not None and not state_dir.is_dir():
            self.problems.append(f"state_dir: {state_dir} is not a directory; make it: mkdir -p {state_dir}")

    def finish(self, where: str) -> dict[str, Any]:
        """Return the values. Raises ConfigError with all problems, if there are any."""
        if self.problems:
            count = len(self.problems)
            title = "1 problem" if count == 1 else f"{count} problems"
            raise ConfigError("\n  - ".join([f"{where}: {title}", *self.problems]))
        return self.values

    def _read(self, name: str, key: Key, value: object, label: str) -> None:
        try:
            self.values[name] = key.parse(value)
        except ValueError as error:
            self._wrong.add(name)
            self.problems.append(f"{label}: {error}")


def _unknown(name: str, prefix: str, known: Collection[str]) -> str:
    if prefix and name in FILE_KEYS:
        return f"{prefix}{name}: is not a key of this table; write it at the top level, above [source]"
    if name in DATABASE_KEYS:
        return f"{name}: is not used here; name an alias of DATABASES with 'database'"
    close = difflib.get_close_matches(name, known, n=1)
    return f"{prefix}{name}: is not a known key" + (f"; did you mean {prefix}{close[0]}?" if close else "")
