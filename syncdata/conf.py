"""The only reader of the TOML file, the environment and ``settings.SYNCDATA``.

Knows keys, defaults, environment names and limits; connects to nothing and imports no model.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from syncdata.engine.archive import LocalSettings
from syncdata.engine.errors import ConfigError, ConfigLoadError
from syncdata.engine.sftp import SftpSettings

logger = logging.getLogger(__name__)

CONFIG_VARIABLE = "DATA_SYNC_CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """One valid configuration. Secrets stay out of ``repr``."""

    archive_backend: str = "sftp"
    archive_host: str = ""
    archive_user: str = ""
    archive_dir: str = ""
    archive_port: int = 22
    archive_key_file: Path | None = None
    archive_key_passphrase: str | None = field(default=None, repr=False)
    archive_password: str | None = field(default=None, repr=False)
    archive_known_hosts: Path = field(default_factory=lambda: Path("~/.ssh/known_hosts").expanduser())
    pg_host: str = "127.0.0.1"
    pg_port: int = 5432
    pg_user: str = "admin"
    pg_password: str | None = field(default=None, repr=False)
    pg_database: str = ""
    database: str = "default"
    data_sync_freq: int = 600
    metric_freq: int = 24
    batch_records: int = 20_000
    batch_bytes: int = 32 * 1024 * 1024
    state_dir: Path
    config_file: Path | None = None

    @property
    def archive_settings(self) -> SftpSettings | LocalSettings:
        """What ``engine.archive.open_archive`` needs."""
        if self.archive_backend == "local":
            return LocalSettings(directory=Path(self.archive_dir).expanduser())
        return SftpSettings(
            host=self.archive_host,
            user=self.archive_user,
            directory=self.archive_dir,
            port=self.archive_port,
            key_file=self.archive_key_file,
            key_passphrase=self.archive_key_passphrase,
            password=self.archive_password,
            known_hosts=self.archive_known_hosts,
        )


def load_config() -> SyncConfig:
    """Return the configuration: ``settings.SYNCDATA`` where there is one, else the file of DATA_SYNC_CONFIG.

    Raises ConfigLoadError when the file cannot be read, ConfigError with all problems at once.
    """
    from django.conf import settings

    if settings.configured or "DJANGO_SETTINGS_MODULE" in os.environ:
        values = getattr(settings, "SYNCDATA", None)
        if values is not None:
            return config_from_settings(values, os.environ)
    return load_config_file()


def load_config_file() -> SyncConfig:
    """Return the configuration of the file that DATA_SYNC_CONFIG names, and of the environment.

    Never touches Django's settings, which are built from it. Raises as `load_config` does.
    """
    named = os.environ.get(CONFIG_VARIABLE, "").strip()
    if not named:
        raise ConfigLoadError(
            f"{CONFIG_VARIABLE} is not set", hint="set it to the path of the TOML configuration file"
        )
    path = Path(named).expanduser().absolute()
    values = _read_toml(path)
    _warn_if_readable_by_others(path, values)
    return config_from_toml(values, os.environ, path)


def config_from_toml(values: Mapping[str, Any], environ: Mapping[str, str], path: Path) -> SyncConfig:
    """Return the configuration that a parsed TOML file and the environment describe."""
    reading = _Reading(values, environ, known=_FILE_KEYS)
    # The production side reads its own table; here it only has to be one.
    if not isinstance(values.get("source", {}), Mapping):
        reading.problems.append("source: must be a table, [source]")
    reading.require("pg_database")
    return reading.finish(str(path), state_dir=path.parent, config_file=path)


def config_from_settings(values: object, environ: Mapping[str, str]) -> SyncConfig:
    """Return the configuration that ``settings.SYNCDATA`` and the environment describe."""
    where = "settings.SYNCDATA"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: must be a dictionary")
    reading = _Reading(values, environ, known=_SETTINGS_KEYS)
    reading.require("state_dir")
    state_dir = reading.values.get("state_dir")
    if state_dir is not None and not state_dir.is_dir():
        reading.problems.append(f"state_dir: {state_dir} is not a directory; make it: mkdir -p {state_dir}")
    return reading.finish(where)


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


@dataclass(frozen=True, slots=True)
class _Key:
    parse: Callable[[object], Any]
    variable: str = ""


_YEAR_S = 366 * 24 * 3600
_PORT = _whole_number(1, 65535)

_ARCHIVE_AND_PACE = {
    "archive_backend": _Key(_one_of("sftp", "local"), "ARCHIVE_BACKEND"),
    "archive_host": _Key(_text, "ARCHIVE_HOST"),
    "archive_user": _Key(_text, "ARCHIVE_USER"),
    "archive_dir": _Key(_directory, "ARCHIVE_DIR"),
    "archive_port": _Key(_PORT, "ARCHIVE_PORT"),
    "archive_key_file": _Key(_path, "ARCHIVE_KEY_FILE"),
    "archive_key_passphrase": _Key(_secret, "ARCHIVE_KEY_PASSPHRASE"),
    "archive_password": _Key(_secret, "ARCHIVE_PASSWORD"),
    "archive_known_hosts": _Key(_path, "ARCHIVE_KNOWN_HOSTS"),
    "data_sync_freq": _Key(_whole_number(1, _YEAR_S), "DATA_SYNC_FREQ"),
    "metric_freq": _Key(_whole_number(1, _YEAR_S // 3600), "METRIC_FREQ"),
    "batch_records": _Key(_whole_number(1, 10_000_000)),
    "batch_bytes": _Key(_whole_number(1, 2**40)),
}
_DATABASE = {
    "pg_host": _Key(_text, "PG_HOST"),
    "pg_port": _Key(_PORT, "PG_PORT"),
    "pg_user": _Key(_text, "PG_USER_NAME"),
    "pg_password": _Key(_secret, "PG_PASSWORD"),
    "pg_database": _Key(_text, "PG_DB_NAME"),
}
_FILE_KEYS = _ARCHIVE_AND_PACE | _DATABASE
_SETTINGS_KEYS = _ARCHIVE_AND_PACE | {"database": _Key(_text), "state_dir": _Key(_path)}
_SECRETS = frozenset({"archive_key_passphrase", "archive_password", "pg_password"})


class _Reading:
    """The values read so far, and every problem met, so that the operator sees all of them at once."""

    def __init__(
        self, values: Mapping[str, Any], environ: Mapping[str, str], known: Mapping[str, _Key]
    ) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self._known = known
        self._wrong: set[str] = set()
        for name, key in known.items():
            # Empty counts as unset: that is how compose files and templates leave a value out.
            if variable := environ.get(key.variable, ""):
                self._read(name, key, variable, f"{name} (from {key.variable})")
            elif values.get(name) not in (None, ""):
                self._read(name, key, values[name], name)
        for name in values:
            if name not in known and name != "source":
                self.problems.append(self._unknown(str(name)))
        self._require_archive()

    def require(self, name: str) -> None:
        """Note a problem unless *name* has been given (a wrong value is a problem already)."""
        if name in self.values or name in self._wrong:
            return
        variable = self._known[name].variable
        self.problems.append(f"{name}: is required" + (f" (or {variable})" if variable else ""))

    def finish(self, where: str, **more: Any) -> SyncConfig:
        if self.problems:
            count = len(self.problems)
            title = "1 problem" if count == 1 else f"{count} problems"
            raise ConfigError("\n  - ".join([f"{where}: {title}", *self.problems]))
        return SyncConfig(**self.values, **more)

    def _read(self, name: str, key: _Key, value: object, label: str) -> None:
        try:
            self.values[name] = key.parse(value)
        except ValueError as error:
            self._wrong.add(name)
            self.problems.append(f"{label}: {error}")

    def _require_archive(self) -> None:
        self.require("archive_dir")
        if self.values.get("archive_backend", "sftp") == "sftp" and "archive_backend" not in self._wrong:
            self.require("archive_host")
            self.require("archive_user")

    def _unknown(self, name: str) -> str:
        if name in _DATABASE:
            return f"{name}: is not used here; name an alias of DATABASES with 'database'"
        close = difflib.get_close_matches(name, self._known, n=1)
        return f"{name}: is not a known key" + (f"; did you mean {close[0]}?" if close else "")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigLoadError(
            f"the configuration file cannot be read: {error.strerror}",
            hint=f"{CONFIG_VARIABLE} must name a readable TOML file",
            file=str(path),
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigLoadError("the configuration file is not UTF-8", file=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        message, line = _syntax_error(error)
        raise ConfigLoadError(f"not valid TOML: {message}", file=str(path), line=line) from error


def _syntax_error(error: tomllib.TOMLDecodeError) -> tuple[str, int | None]:
    # Before Python 3.14 the line is only in the text.
    text = str(error)
    at = re.search(r" \(at line (\d+), column \d+\)$", text)
    return (text[: at.start()], int(at[1])) if at else (text, None)


@cache
def _warn_once(path: Path) -> None:
    logger.warning("%s holds a password and can be read by every user; run: chmod 600 %s", path, path)


def _warn_if_readable_by_others(path: Path, values: Mapping[str, Any]) -> None:
    if _exposes_secrets(path, values):
        _warn_once(path)


def exposes_secrets(path: Path) -> bool:
    """Whether the configuration file at *path* holds a secret and every user can read it."""
    return _exposes_secrets(path, _read_toml(path))


def _exposes_secrets(path: Path, values: Mapping[str, Any]) -> bool:
    source = values.get("source")
    holds_secret = not _SECRETS.isdisjoint(values) or (
        isinstance(source, Mapping) and any("password" in key for key in source)
    )
    return holds_secret and bool(path.stat().st_mode & stat.S_IROTH)
