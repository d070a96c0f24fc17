"""The only reader of the TOML file, the environment and ``settings.SYNCDATA``.

Knows where the configuration is and how it becomes a frozen value; connects to nothing and imports no model.
The local side reads a `SyncConfig`, the production side a `SourceConfig`; one file may hold both.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from syncdata.apply.plan.batches import Limits
from syncdata.archive.local import LocalSettings
from syncdata.archive.storage import ArchiveSettings
from syncdata.changes.names import TableName
from syncdata.changes.reader import DEFAULT_MAX_RECORD_BYTES
from syncdata.confkeys import (
    DATABASE_KEYS,
    FILE_KEYS,
    LOCAL_PRIVACY_KEYS,
    LOCAL_TABLES,
    PRIVACY_KEYS,
    SETTINGS_KEYS,
    SOURCE_KEYS,
    SOURCE_TABLES,
    ConfigValues,
    keys_of_archive,
)
from syncdata.errors import ConfigError, ConfigLoadError, shortened
from syncdata.privacy.key import TRIAL_KEY, MaskKey, from_text, read_key_file
from syncdata.privacy.policy import Policy, parse_policy
from syncdata.privacy.rules import KEYLESS
from syncdata.runtime.settings import Key, a_secret, expanded

logger = logging.getLogger(__name__)

CONFIG_VARIABLE = "DATA_SYNC_CONFIG"
NEW_PASSWORD_VARIABLE = "SOURCE_PG_NEW_PASSWORD"  # noqa: S105 - a name
_SETTINGS = "settings.SYNCDATA"
_MOST_BYTES = 1024 * 1024
# Each job has a connection of its own, and a server has a hundred for all who use it.
_MOST_JOBS = 8
# Behind these words tomllib quotes characters or keys of the file: of a password without its quotes, perhaps.
_QUOTING = re.compile(
    "Found invalid character|Illegal character|Cannot declare|Cannot mutate immutable namespace"
    "|Cannot redefine namespace|Duplicate inline table key"
)
_MAKE_A_KEY = {
    "source.privacy.": "python manage.py archive_changes --init",
    "privacy.": "(umask 077; openssl rand -hex 32 > mask.key)",
}
_NAME_A_FILE = f"{CONFIG_VARIABLE} must name a readable TOML file"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """The rules of what travels, and where their key is: in *key_file*, or in *key*, from the environment.

    ``label`` stands before ``key_file`` in messages: the name of its table.
    """

    rules: Policy
    key_file: Path | None = None
    key: MaskKey | None = None
    label: str

    def load_policy(self) -> Policy:
        """Return the policy with its key, which is read anew each time. Raises ConfigError."""
        return self._policy(self._load_key())

    @property
    def trial_policy(self) -> Policy:
        """The policy with a key that is nobody's: it judges alike, and what it masks is good for a trial."""
        return self._policy(TRIAL_KEY)

    def _policy(self, key: MaskKey | None) -> Policy:
        rules = self.rules
        return Policy(
            rules.columns,
            rows=rules.rows,
            unnamed=rules.unnamed,
            key=key,
            takes_snapshots=rules.takes_snapshots,
        )

    def _load_key(self) -> MaskKey | None:
        if self.key is not None or self.key_file is None:
            return self.key
        try:
            return read_key_file(self.key_file)
        except FileNotFoundError:
            problem = f"{self.key_file} is not there"
            hint = f"make one: {_MAKE_A_KEY[self.label]}; or bring the key that these rules had"
        except OSError as error:
            problem, hint = f"{self.key_file} cannot be read: {error.strerror}", "name a readable file"
        except ValueError as error:
            problem = f"{self.key_file}: {error}"
            hint = "it holds the key that these rules had, 64 hex digits, and is its owner's alone"
        raise ConfigError(f"{self.label}key_file: {problem}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """One valid configuration of the local side. Secrets stay out of ``repr``.

    *archive* is for `archive.open_archive`; its class depends on ``archive_backend``.
    """

    archive: ArchiveSettings
    pg_host: str = "127.0.0.1"
    pg_port: int = 5432
    pg_user: str = "admin"
    pg_password: str | None = field(default=None, repr=False)
    pg_database: str = ""
    pg_sslmode: str | None = None
    pg_sslrootcert: Path | str | None = None
    pg_sslcert: Path | None = None
    pg_sslkey: Path | None = None
    database: str = "default"
    data_sync_freq: int = 600
    metric_freq: int = 24
    stale_after: int = 600
    batch_records: int = 50_000
    batch_bytes: int = 32 * 1024 * 1024
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES
    apply_synchronous_commit: str = "off"
    jobs: int = field(default_factory=lambda: min(os.cpu_count() or 1, _MOST_JOBS))
    log_keep_days: int = 0
    heal: str = "off"
    verify: bool = True
    archive_public_keys: tuple[str, ...] = ()
    privacy: PrivacyConfig | None = None
    state_dir: Path
    config_file: Path | None = None

    @property
    def tls_params(self) -> dict[str, str]:
        """libpq's parameters for TLS; it has its own defaults for those that are not given."""
        return _tls_params(self)

    @property
    def limits(self) -> Limits:
        return Limits(
            batch_records=self.batch_records,
            batch_bytes=self.batch_bytes,
            max_record_bytes=self.max_record_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One valid configuration of the production side, where ``pg_*`` is the source. No secrets in ``repr``.

    With *prune_hours* 0 the archiver never prunes. *spool_dir* is absolute.
    """

    archive: ArchiveSettings
    pg_host: str = "127.0.0.1"
    pg_port: int = 5432
    pg_user: str
    pg_password: str | None = field(default=None, repr=False)
    pg_database: str
    pg_sslmode: str | None = None
    pg_sslrootcert: Path | str | None = None
    pg_sslcert: Path | None = None
    pg_sslkey: Path | None = None
    slot_name: str = "syncdata_slot"
    publication: str = "syncdata"
    failover: str = "auto"
    tables: tuple[TableName, ...]
    spool_dir: Path
    rotate_seconds: int = 60
    rotate_bytes: int = 64 * 1024 * 1024
    compression: str = "zstd"
    snapshot_bytes: int = 1 << 30
    verify_rows_per_second: int = 1_000
    verify_days: int = 1
    keep_days: int = 14
    prune_hours: int = 0
    signing_key_file: Path | None = None
    privacy: PrivacyConfig | None = None
    state_dir: Path
    config_file: Path | None = None

    @property
    def connection_params(self) -> dict[str, Any]:
        """The keyword arguments of ``psycopg.connect``. libpq's own variables supply the missing ones."""
        params = {
            "host": self.pg_host,
            "port": self.pg_port,
            "user": self.pg_user,
            "dbname": self.pg_database,
            "application_name": "syncdata",
            "connect_timeout": 10,
            **_tls_params(self),
        }
        # An empty password is left out, so that PGPASSFILE can supply one.
        return params | ({"password": self.pg_password} if self.pg_password else {})


def _tls_params(config: SyncConfig | SourceConfig) -> dict[str, str]:
    names = ("sslmode", "sslrootcert", "sslcert", "sslkey")
    values = ((name, getattr(config, f"pg_{name}")) for name in names)
    return {name: str(value) for name, value in values if value is not None}


def load_config() -> SyncConfig:
    """Return the local side's configuration: ``settings.SYNCDATA`` where there is one, else the file's.

    Raises ConfigLoadError when the file cannot be read, ConfigError with all problems at once.
    """
    values = _settings_values()
    return load_config_file() if values is None else config_from_settings(values, os.environ)


def load_source_config() -> SourceConfig:
    """Return the production side's configuration, from where `load_config` finds its own.

    Raises as `load_config` does; a local database need not be configured.
    """
    values = _settings_values()
    if values is not None:
        return source_from_settings(values, os.environ)
    path, file_values = _read_named_file()
    return source_from_toml(file_values, os.environ, path)


def load_config_file() -> SyncConfig:
    """Return the configuration of the file that DATA_SYNC_CONFIG names, and of the environment.

    Never touches Django's settings, which are built from it. Raises as `load_config` does.
    """
    path, values = _read_named_file()
    return config_from_toml(values, os.environ, path)


def new_source_password() -> str | None:
    """Return the password that the environment has for a role that is made at the source."""
    return os.environ.get(NEW_PASSWORD_VARIABLE) or None


def is_production_host() -> bool:
    """Tell whether the file that DATA_SYNC_CONFIG names has a ``[source]`` and nothing of a local database.

    Raises ConfigLoadError when the file cannot be read.
    """
    path = _named_file()
    return is_production_only(_read_toml(path), os.environ)


def is_production_only(values: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Tell whether a parsed TOML file and the environment describe a source, and no local database."""
    has_local = any(values.get(name) or environ.get(key.variable) for name, key in DATABASE_KEYS.items())
    return "source" in values and not has_local


def config_from_toml(values: Mapping[str, Any], environ: Mapping[str, str], path: Path) -> SyncConfig:
    """Return the configuration that a parsed TOML file and the environment describe."""
    found = ConfigValues(environ)
    found.read(values, FILE_KEYS | keys_of_archive(values, environ), unread=LOCAL_TABLES)
    found.require_archive()
    # The production side reads [source]; here it only has to be a table.
    if not isinstance(values.get("source", {}), Mapping):
        found.problems.append("source: must be a table, [source]")
    found.require("pg_database", FILE_KEYS)
    found.require_tls_pairs()
    privacy = _read_local_privacy(found, values, path.parent)
    return SyncConfig(**found.finish(str(path)), privacy=privacy, state_dir=path.parent, config_file=path)


def config_from_settings(values: object, environ: Mapping[str, str]) -> SyncConfig:
    """Return the configuration that ``settings.SYNCDATA`` and the environment describe."""
    given = _as_dictionary(values)
    found = ConfigValues(environ)
    found.read(given, SETTINGS_KEYS | keys_of_archive(given, environ), unread=LOCAL_TABLES)
    found.require_archive()
    found.require_state_dir()
    privacy = _read_local_privacy(found, given, found.values.get("state_dir", Path()))
    return SyncConfig(**found.finish(_SETTINGS), privacy=privacy)


def source_from_toml(values: Mapping[str, Any], environ: Mapping[str, str], path: Path) -> SourceConfig:
    """Return the production side's configuration that a parsed TOML file and the environment describe."""
    found = ConfigValues(environ)
    found.read(values, keys_of_archive(values, environ), unread=FILE_KEYS.keys() | LOCAL_TABLES)
    privacy = _read_source(found, values.get("source"), path.parent)
    return _source_config(found.finish(str(path)), path.parent, privacy, config_file=path)


def source_from_settings(values: object, environ: Mapping[str, str]) -> SourceConfig:
    """Return the production side's configuration that ``settings.SYNCDATA`` and the environment describe."""
    given = _as_dictionary(values)
    found = ConfigValues(environ)
    keys = keys_of_archive(given, environ) | {"state_dir": SETTINGS_KEYS["state_dir"]}
    found.read(given, keys, unread=SETTINGS_KEYS.keys() | LOCAL_TABLES)
    found.require_state_dir()
    privacy = _read_source(found, given.get("source"), found.values.get("state_dir", Path()))
    taken = found.finish(_SETTINGS)
    return _source_config(taken, taken.pop("state_dir").absolute(), privacy)


def _read_source(found: ConfigValues, table: object, state_dir: Path) -> PrivacyConfig | None:
    privacy = None
    if isinstance(table, Mapping):
        found.read(table, SOURCE_KEYS, prefix="source.", unread=SOURCE_TABLES)
        privacy = _read_privacy(
            found, table, "source.", SOURCE_TABLES, PRIVACY_KEYS, "SOURCE_MASK_KEY", state_dir
        )
        _refuse_rules_of_others(found, privacy)
        for name in ("pg_user", "pg_database", "tables"):
            found.require(name, SOURCE_KEYS, prefix="source.")
        found.require_tls_pairs(prefix="source.")
    elif table is None:
        found.problems.append("source: is required: the table [source] describes the production side")
    else:
        found.problems.append("source: must be a table, [source]")
    found.require_archive()
    return privacy


def _read_local_privacy(
    found: ConfigValues, given: Mapping[str, Any], state_dir: Path
) -> PrivacyConfig | None:
    # The archive's columns are known: what no rule names stays as it came.
    keys = LOCAL_PRIVACY_KEYS
    return _read_privacy(found, given, "", LOCAL_TABLES - {"source"}, keys, "MASK_KEY", state_dir)


def _read_privacy(
    found: ConfigValues,
    given: Mapping[str, Any],
    prefix: str,
    names: Collection[str],
    keys: Mapping[str, Key],
    variable: str,
    state_dir: Path,
) -> PrivacyConfig | None:
    """Return the policy that the tables *names* of *given* spell, noting all that is wrong; None without one.

    *variable*: of the environment, which may hold the key itself. *state_dir*: where relative paths begin.
    """
    tables = {name: given[name] for name in names if given.get(name) is not None}
    if wrong := sorted(name for name, table in tables.items() if not isinstance(table, Mapping)):
        found.problems += [f"{prefix}{name}: must be a table, [{prefix}{name}]" for name in wrong]
    if wrong or not tables:
        return None
    # The key itself is never a line of the file: whoever may read the rules need not know it.
    values = found.read_apart(tables.get("privacy", {}), keys, prefix=f"{prefix}privacy.")
    of_environment = {"key": Key(_mask_key, variable, is_secret=True)}
    values |= found.read_apart({}, of_environment, prefix=f"{prefix}privacy.")
    rules, problems = parse_policy(
        tables.get("columns", {}),
        rows=tables.get("rows"),
        unnamed=values.get("unnamed", _default_unnamed(tables, keys)),
        takes_snapshots=values.get("snapshot", False),
    )
    found.problems += [f"{prefix}{key}: {problem}" for key, problem in problems]
    key_file = values.get("key_file")
    if key_file is None and values.get("key") is None and _needs_key(rules):
        found.problems.append(f"{prefix}privacy.key_file: is required for masks (or {variable})")
    return PrivacyConfig(
        rules=rules,
        key_file=None if key_file is None else state_dir / key_file,
        key=values.get("key"),
        label=f"{prefix}privacy.",
    )


def _default_unnamed(tables: Mapping[str, Any], keys: Mapping[str, Key]) -> str:
    """Return what becomes of columns without a rule where nobody says it. Who filters rows and names no
    column at all chooses rows, not columns: all columns of these rows travel.
    Test: test_rules_for_rows_alone_leave_the_columns_as_they_are."""
    rows_alone = tables.get("rows") and "columns" not in tables
    return "keep" if rows_alone or "unnamed" not in keys else "withhold"


def _mask_key(value: object) -> MaskKey:
    return from_text(a_secret(value))


def _needs_key(policy: Policy) -> bool:
    """Tell whether a mask of *policy* depends on the key."""
    return any(rule.mask not in KEYLESS for rules in policy.columns.values() for rule in rules.values())


def _refuse_rules_of_others(found: ConfigValues, privacy: PrivacyConfig | None) -> None:
    """Note the tables with rules that are not archived: a name that is misspelled would rule nothing."""
    tables = found.values.get("tables")
    if privacy is None or tables is None:
        return
    for name, ruled in (("columns", privacy.rules.columns), ("rows", privacy.rules.rows)):
        found.problems += [
            f"source.{name}.{table}: is not in source.tables" for table in ruled if table not in tables
        ]


def _source_config(
    taken: dict[str, Any],
    state_dir: Path,
    privacy: PrivacyConfig | None,
    *,
    config_file: Path | None = None,
) -> SourceConfig:
    # A relative path begins beside the configuration, wherever the daemon was started.
    spool_dir = state_dir / taken.pop("spool_dir", "spool")
    if signing_key_file := taken.get("signing_key_file"):
        taken["signing_key_file"] = state_dir / signing_key_file
    archive = taken["archive"]
    if isinstance(archive, LocalSettings) and _is_same(archive.directory, spool_dir):
        # A file that is in the archive is removed from the spool; in one directory, that is the same file.
        raise ConfigError("source.spool_dir: must not be archive_dir", hint="choose another directory")
    return SourceConfig(
        **taken, privacy=privacy, spool_dir=spool_dir, state_dir=state_dir, config_file=config_file
    )


def _is_same(one: Path, other: Path) -> bool:
    # Not Path.resolve(), which raises RuntimeError where links go round in a circle.
    return os.path.realpath(one) == os.path.realpath(other)


def _settings_values() -> object:
    """``settings.SYNCDATA``, or None where no Django project configures us."""
    from django.conf import settings

    if settings.configured or "DJANGO_SETTINGS_MODULE" in os.environ:
        return getattr(settings, "SYNCDATA", None)
    return None


def _as_dictionary(values: object) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{_SETTINGS}: must be a dictionary")
    return values


def _named_file() -> Path:
    named = os.environ.get(CONFIG_VARIABLE, "").strip()
    if not named:
        raise ConfigLoadError(
            f"{CONFIG_VARIABLE} is not set", hint="set it to the path of the TOML configuration file"
        )
    try:
        return expanded(Path(named)).absolute()
    except ValueError as error:
        raise ConfigLoadError(f"{CONFIG_VARIABLE} {error}", hint=_NAME_A_FILE) from None
    except FileNotFoundError:
        raise ConfigLoadError(
            f"{CONFIG_VARIABLE} is a relative path, and the working directory is gone", hint=_NAME_A_FILE
        ) from None


def _read_named_file() -> tuple[Path, dict[str, Any]]:
    path = _named_file()
    values = _read_toml(path)
    _warn_if_readable_by_others(path, values)
    return path, values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigLoadError(
            f"the configuration file cannot be read: {error.strerror}", hint=_NAME_A_FILE, file=str(path)
        ) from error
    if len(content) > _MOST_BYTES:
        raise ConfigLoadError(
            f"the configuration file has more than {_MOST_BYTES:,} bytes", hint=_NAME_A_FILE, file=str(path)
        )
    return parse_toml(content, path)


def parse_toml(content: bytes, path: Path) -> dict[str, Any]:
    """Return the values in the *content* of a configuration file. Raises ConfigLoadError when it is none."""
    # The errors' causes are left out: they quote the file, and with it perhaps a password.
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front.
        return _with_small_keys(tomllib.loads(content.decode("utf-8-sig")), path)
    except UnicodeDecodeError:
        raise ConfigLoadError(
            "the configuration file is not UTF-8", hint="save it as UTF-8", file=str(path)
        ) from None
    except tomllib.TOMLDecodeError as error:
        message, line = _syntax_error(error)
        raise ConfigLoadError(
            f"not valid TOML: {message}", hint="mend that line", file=str(path), line=line
        ) from None
    except (ValueError, OverflowError):
        raise ConfigLoadError(
            "not valid TOML: a number or a date is out of range", hint="mend that value", file=str(path)
        ) from None
    except RecursionError:
        raise ConfigLoadError(
            "the configuration file is nested too deeply", hint=_NAME_A_FILE, file=str(path)
        ) from None


def _with_small_keys(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return *values* with the keys of the file and of its [source] in small letters: the predecessor took
    them in any. Deeper ones are names of tables and columns. Raises ConfigLoadError for one that comes twice.
    """
    small: dict[str, Any] = {}
    for name, value in values.items():
        key = name.lower()
        if key in small:
            raise ConfigLoadError(
                f"the key {shortened(key)} is there twice, in large and in small letters",
                hint="keep one of them",
                file=str(path),
            )
        small[key] = _with_small_keys(value, path) if key == "source" and isinstance(value, dict) else value
    return small


def _syntax_error(error: tomllib.TOMLDecodeError) -> tuple[str, int | None]:
    # Before Python 3.14 the line is only in the text.
    text = str(error)
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", text)
    line = int(at[1]) if at and at[1] else None
    message = text[: at.start()] if at else text
    quoting = _QUOTING.match(message)
    return (quoting[0] if quoting else shortened(message)), line


@cache
def _warn_once(path: Path) -> None:
    logger.warning("%s holds a password and can be read by every user; run: chmod 600 %s", path, path)


def _warn_if_readable_by_others(path: Path, values: Mapping[str, Any]) -> None:
    if _exposes_secrets(path, values):
        _warn_once(path)


def exposes_secrets(path: Path) -> bool:
    """Tell whether the configuration file at *path* holds a secret and every user can read it."""
    return _exposes_secrets(path, _read_toml(path))


def _exposes_secrets(path: Path, values: Mapping[str, Any]) -> bool:
    source = values.get("source")
    holds_secret = _holds_secret(values, FILE_KEYS | keys_of_archive(values, os.environ)) or (
        isinstance(source, Mapping) and _holds_secret(source, SOURCE_KEYS)
    )
    try:
        return holds_secret and bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:  # it has gone since it was read
        return False


def _holds_secret(values: Mapping[str, Any], keys: Mapping[str, Key]) -> bool:
    return any(key.is_secret and name in values for name, key in keys.items())
