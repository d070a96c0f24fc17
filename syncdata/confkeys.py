"""The keys of the configuration: how each is read, and every problem with them told at once.

Knows keys, environment names and limits; knows nothing of files, and defaults are the dataclasses' own.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from syncdata.apply.whitelist import parse_syncable
from syncdata.archive.backends import DEFAULT_BACKEND, backend_keys, find_backend
from syncdata.archive.signatures import read_public_keys
from syncdata.archive.storage import ArchiveSettings
from syncdata.changes.names import TableName
from syncdata.errors import ConfigError, WhitelistAddError, shortened
from syncdata.runtime.settings import (
    PORT,
    Key,
    a_host,
    a_path,
    a_secret,
    a_text,
    declared_keys,
    make_settings,
    one_of,
    required_keys,
    whole_number,
)


def _slot_name(value: object) -> str:
    name = a_text(value)
    if not re.fullmatch("[a-z0-9_]{1,63}", name):
        raise ValueError("must be 1 to 63 lower case letters, digits and underscores")
    return name


def _identifier(value: object) -> str:
    name = a_text(value)
    if len(name.encode(errors="replace")) > 63 or not name.isprintable():
        raise ValueError("must be a name of at most 63 bytes")
    return name


def _tables(value: object) -> tuple[TableName, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError('must be a list of tables, such as ["users", "shop.orders"]')
    tables, problems = [], []
    for name in value:
        try:
            tables.append(parse_syncable(a_text(name)))
        except WhitelistAddError as error:
            problems.append(error.message)
        except ValueError:
            problems.append(f"{shortened(repr(name))} is not a table name")
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(dict.fromkeys(tables))


def _public_keys(value: object) -> tuple[str, ...]:
    values = value.split(",") if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
        raise ValueError("must be a list of public keys, or of paths of files that have them")
    found = read_public_keys(item.strip() for item in values if item.strip())
    if not found:
        # Never silently without: who leaves the key empty would think that files are checked.
        raise ValueError("names no key; leave it out where files need not be signed")
    return found


def _failover(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else one_of("auto", "true", "false")(value)


def _switch(value: object) -> bool:
    return one_of("true", "false")(str(value).lower() if isinstance(value, bool) else value) == "true"


# libpq's own words, from the weakest to the one that proves who the server is.
_sslmode = one_of("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def _readable_file(value: object) -> Path:
    path = a_path(value)
    if not os.access(path, os.R_OK) or not os.path.isfile(path):
        raise ValueError(f"{shortened(str(path))} is not a file that this user can read")
    return path


def _root_certificate(value: object) -> Path | str:
    return "system" if value == "system" else _readable_file(value)


_YEAR_S = 366 * 24 * 3600
_YEAR_HOURS = _YEAR_S // 3600

_BACKEND = {"archive_backend": Key(find_backend, "ARCHIVE_BACKEND")}
ARCHIVE_KEYS = _BACKEND | backend_keys()
PACE_KEYS = {
    "data_sync_freq": Key(whole_number(1, _YEAR_S), "DATA_SYNC_FREQ"),
    "metric_freq": Key(whole_number(1, _YEAR_HOURS), "METRIC_FREQ"),
    "stale_after": Key(whole_number(1, _YEAR_S), "STALE_AFTER"),
    "batch_records": Key(whole_number(1, 10_000_000)),
    "batch_bytes": Key(whole_number(1, 2**40)),
    "max_record_bytes": Key(whole_number(1_024, 2**31 - 1)),
    "apply_synchronous_commit": Key(one_of("off", "on")),
    "jobs": Key(whole_number(1, 1_000)),
    "log_keep_days": Key(whole_number(0, 36_500)),
    "verify": Key(_switch),
    "heal": Key(one_of("off", "auto")),
}
PROOF_KEYS = {"archive_public_keys": Key(_public_keys, "ARCHIVE_PUBLIC_KEYS")}
DATABASE_KEYS = {
    "pg_host": Key(a_host, "PG_HOST"),
    "pg_port": Key(PORT, "PG_PORT"),
    "pg_user": Key(a_text, "PG_USER_NAME"),
    "pg_password": Key(a_secret, "PG_PASSWORD", is_secret=True),
    "pg_database": Key(a_text, "PG_DB_NAME"),
    "pg_sslmode": Key(_sslmode, "PG_SSLMODE"),
    "pg_sslrootcert": Key(_root_certificate, "PG_SSLROOTCERT"),
    "pg_sslcert": Key(_readable_file, "PG_SSLCERT"),
    "pg_sslkey": Key(_readable_file, "PG_SSLKEY"),
}
SOURCE_KEYS = {
    **{name: replace(key, variable=f"SOURCE_{key.variable}") for name, key in DATABASE_KEYS.items()},
    "slot_name": Key(_slot_name),
    "publication": Key(_identifier),
    "failover": Key(_failover),
    "tables": Key(_tables),
    "spool_dir": Key(a_path),
    "rotate_seconds": Key(whole_number(1, _YEAR_S)),
    "rotate_bytes": Key(whole_number(1, 2**40)),
    "compression": Key(one_of("zstd", "gzip", "none")),
    "snapshot_bytes": Key(whole_number(0, 2**50)),
    "verify_rows_per_second": Key(whole_number(0, 10_000_000)),
    "verify_days": Key(whole_number(0, 36_500)),
    "keep_days": Key(whole_number(0, 36_500)),
    "signing_key_file": Key(a_path),
    "prune_hours": Key(whole_number(0, _YEAR_HOURS)),
}
_TLS_PAIR = {"pg_sslcert", "pg_sslkey"}
# What may leave production, as whom; the rules themselves are tables of their own.
PRIVACY_KEYS = {
    "key_file": Key(a_path),
    "unnamed": Key(one_of("withhold", "keep", "halt")),
    "snapshot": Key(_switch),
}
# On the way in everything is known already, so what no rule names stays as it came.
LOCAL_PRIVACY_KEYS = {"key_file": Key(a_path)}
# Tables within the configuration: keys that are read apart from the others.
SOURCE_TABLES = frozenset({"privacy", "columns", "rows"})
LOCAL_TABLES = frozenset({"source", "privacy", "columns"})
# The keys of a file, and of ``settings.SYNCDATA``; the archive's backend may add more.
FILE_KEYS = ARCHIVE_KEYS | PROOF_KEYS | PACE_KEYS | DATABASE_KEYS
SETTINGS_KEYS = ARCHIVE_KEYS | PROOF_KEYS | PACE_KEYS | {"database": Key(a_text), "state_dir": Key(a_path)}


def keys_of_archive(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Key]:
    """Return the keys of the archive that is configured, and those of the backends that come with syncdata.

    A key that several backends have is read as the configured one declares it.
    """
    named = environ.get("ARCHIVE_BACKEND") or given.get("archive_backend") or DEFAULT_BACKEND
    try:
        return ARCHIVE_KEYS | declared_keys(find_backend(named))
    except ValueError:
        return ARCHIVE_KEYS  # The name itself is reported when it is read.


class ConfigValues:
    """The values read so far, and every problem met, so that the operator sees all problems at once."""

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

        Other names in *given* are problems, unless they are in *unread*. *prefix* stands before the keys'
        names in messages: the name of their table.
        """
        for name, key in keys.items():
            label = f"{prefix}{name}"
            # Empty counts as unset: that is how compose files and templates leave a value out.
            if variable := self._environ.get(key.variable, ""):
                self._read(name, key, variable, f"{label} (from {key.variable})")
            elif (value := given.get(name)) is not None and not (isinstance(value, str) and not value):
                self._read(name, key, value, label)
        for name in given:
            if name not in keys and name not in unread:
                self.problems.append(_unknown(str(name), prefix, [*keys, *unread]))

    def read_apart(self, given: Mapping[str, Any], keys: Mapping[str, Key], *, prefix: str) -> dict[str, Any]:
        """Return the values of a table within, whose names may be those of other keys; note its problems."""
        apart = ConfigValues(self._environ)
        apart.read(given, keys, prefix=prefix)
        self.problems += apart.problems
        return apart.values

    def require(self, name: str, keys: Mapping[str, Key], *, prefix: str = "") -> None:
        """Note a problem unless *name* has been given (a wrong value is a problem already)."""
        if name in self.values or name in self._wrong:
            return
        variable = keys[name].variable
        self.problems.append(f"{prefix}{name}: is required" + (f" (or {variable})" if variable else ""))

    def require_archive(self) -> None:
        if "archive_backend" not in self._wrong:
            for name in required_keys(self._backend):
                self.require(name, declared_keys(self._backend))

    def require_state_dir(self) -> None:
        """Note a problem unless ``state_dir`` is given: with a TOML file, it is the file's own directory."""
        self.require("state_dir", SETTINGS_KEYS)
        state_dir = self.values.get("state_dir")
        if state_dir is not None and not os.path.isdir(state_dir):
            self.problems.append(f"state_dir: {state_dir} is not a directory; make it: mkdir -p {state_dir}")

    def require_tls_pairs(self, *, prefix: str = "") -> None:
        """Note a problem where the keys of TLS do not fit each other."""
        given = self.values.get
        if (given("pg_sslcert") is None) != (given("pg_sslkey") is None) and not self._wrong & _TLS_PAIR:
            self.problems.append(f"{prefix}pg_sslcert, {prefix}pg_sslkey: are given together, or neither is")
        if given("pg_sslrootcert") == "system" and given("pg_sslmode") != "verify-full":
            self.problems.append(f"{prefix}pg_sslrootcert: system takes {prefix}pg_sslmode = verify-full")

    def finish(self, where: str) -> dict[str, Any]:
        """Return the values, those of the archive as its settings, ``archive``.

        Raises ConfigError with all problems, if there are any.
        """
        if self.problems:
            count = len(self.problems)
            title = "1 problem" if count == 1 else f"{count} problems"
            raise ConfigError("\n  - ".join([f"{where}: {title}", *self.problems]))
        of_archives = ARCHIVE_KEYS | declared_keys(self._backend)
        others = {name: value for name, value in self.values.items() if name not in of_archives}
        return {"archive": make_settings(self._backend, self.values), **others}

    @property
    def _backend(self) -> type[ArchiveSettings]:
        backend: type[ArchiveSettings] = self.values.get("archive_backend") or find_backend(DEFAULT_BACKEND)
        return backend

    def _read(self, name: str, key: Key, value: object, label: str) -> None:
        try:
            self.values[name] = key.parse(value)
        except ValueError as error:
            self._wrong.add(name)
            self.problems.append(f"{label}: {error}")
        except Exception as error:  # a value of a kind that its parser never thought of
            self._wrong.add(name)
            self.problems.append(f"{label}: cannot be read ({type(error).__name__})")


def _unknown(name: str, prefix: str, known: Collection[str]) -> str:
    if prefix and name in FILE_KEYS:
        return f"{prefix}{name}: is not a key of this table; write it at the top level, above [source]"
    if name in DATABASE_KEYS:
        return f"{name}: is not used here; name an alias of DATABASES with 'database'"
    close = difflib.get_close_matches(name, known, n=1)
    name = shortened(name, 80)
    return f"{prefix}{name}: is not a known key" + (f"; did you mean {prefix}{close[0]}?" if close else "")
