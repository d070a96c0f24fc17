"""Reads the environment and ``.env`` for the site, whatever is in there. Knows no names of settings."""

from __future__ import annotations

import logging
from pathlib import Path

import environ

from syncdata.errors import ConfigError, ConfigLoadError


def read_env_file(env: environ.Env, path: Path) -> None:
    """Read the file at *path*, where there is one; the environment wins. Raises ConfigLoadError."""
    logging.getLogger("environ.environ").addFilter(_without_the_line)
    try:
        env.read_env(path)
    except UnicodeDecodeError:
        raise ConfigLoadError("it is not UTF-8", hint="save it as UTF-8", file=str(path)) from None
    except ValueError:  # os.environ takes no character 0
        raise ConfigLoadError(
            "a value in it cannot be an environment variable", hint="remove the character 0", file=str(path)
        ) from None


def read_seconds(env: environ.Env, name: str, default: int) -> int:
    """Return the whole number that the variable *name* holds. Raises ConfigError, which does not quote it."""
    try:
        seconds: int = env.int(name, default=default)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{name}: must be a whole number of seconds", hint=f"set {name}, or leave it out"
        ) from None
    return seconds


def _without_the_line(record: logging.LogRecord) -> bool:
    """Let a warning pass without the line of ``.env`` that it quotes, which may be a secret's."""
    if str(record.msg).startswith("Invalid line"):
        record.msg, record.args = "a line of .env is not NAME=value: it is left out", ()
    return True
