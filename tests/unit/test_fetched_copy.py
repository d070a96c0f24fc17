"""Copies of fetched files: where they lie, who may read them, and what is left of them."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from syncdata.archive.fetched_copy import FetchedCopy
from syncdata.archive.local import LocalStorage
from syncdata.archive.storage import Storage
from syncdata.conf import config_from_settings
from syncdata.service import SyncDataService


@dataclass(frozen=True)
class Recording:
    """An archive that notes where it is told to keep its copies."""

    told: ClassVar[list[Path | None]] = []

    def open_storage(self, *, spool_dir: Path | None) -> Storage:
        self.told.append(spool_dir)
        return LocalStorage(Path("/nowhere"))


def test_a_copy_has_no_name_and_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    copy = FetchedCopy(None, "changes_20260205_103000.json")
    copy.write(b"a row")

    assert list(tmp_path.iterdir()) == []
    with copy.finish() as stream:
        status = os.fstat(stream.fileno())
        assert os.readlink(f"/proc/self/fd/{stream.fileno()}").startswith(str(tmp_path))
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert stream.read() == b"a row"


def test_the_local_side_keeps_its_copies_in_the_temporary_directory(tmp_path: Path) -> None:
    keys = {"archive_backend": "tests.unit.test_fetched_copy.Recording", "state_dir": tmp_path}

    with SyncDataService(config_from_settings(keys, {})) as service:
        service._resources.archive()

    assert Recording.told == [None]
