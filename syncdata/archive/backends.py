"""The kinds of archive by name. To add one: a module of its own and a line here, or a dotted path."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import cast

from syncdata.archive.local import LocalSettings
from syncdata.archive.sftp import SftpSettings
from syncdata.archive.storage import ArchiveSettings
from syncdata.errors import shortened
from syncdata.runtime.settings import Key, declared_keys

DEFAULT_BACKEND = "sftp"
BACKENDS: Mapping[str, type[ArchiveSettings]] = {"sftp": SftpSettings, "local": LocalSettings}


def find_backend(name: object) -> type[ArchiveSettings]:
    """Return the settings of the archives called *name*: one of BACKENDS, or the dotted path of a class.

    Raises ValueError with what *name* must be.
    """
    if isinstance(name, str) and name in BACKENDS:
        return BACKENDS[name]
    if isinstance(name, str) and "." in name.strip("."):
        return _import(name)
    raise ValueError(f"must be {' or '.join(BACKENDS)}, or the dotted path of a class")


def backend_keys() -> dict[str, Key]:
    """Return the keys of all BACKENDS: keys of a backend that is not in use are known and ignored."""
    keys: dict[str, Key] = {}
    for settings in BACKENDS.values():
        keys |= {name: key for name, key in declared_keys(settings).items() if name not in keys}
    return keys


def _import(path: str) -> type[ArchiveSettings]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{shortened(path)!r} cannot be imported: {shortened(str(error))}") from error
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"{shortened(path)!r} cannot be imported ({type(error).__name__})") from error
    if not (isinstance(found, type) and is_dataclass(found) and hasattr(found, "open_storage")):
        raise ValueError(f"{path!r} is no kind of archive: it must be a dataclass with open_storage()")
    return cast(type[ArchiveSettings], found)
