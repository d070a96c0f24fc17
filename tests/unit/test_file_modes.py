"""Production's rows are for those who are meant to read them, whatever the umask says."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncdata.archive.archive import Archive
from syncdata.archive.local import LocalStorage
from syncdata.capture.spool import FileWriter
from syncdata.changes.header import Header
from syncdata.daemon import PidFile
from syncdata.runtime.settings import a_file_mode

NAME, SNAPSHOT = "changes_20260205_103000.json", "snapshot_20260205_103000/public.users.json.gz"


@pytest.fixture(params=[0o000, 0o022, 0o077])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize(
    ("mode", "directory_mode"), [(0o640, 0o750), (0o600, 0o700), (0o644, 0o755), (0o660, 0o770)]
)
def test_an_archives_files_and_directories_have_the_permissions_that_are_set(
    tmp_path: Path, mode: int, directory_mode: int
) -> None:
    archive = Archive(LocalStorage(tmp_path, file_mode=mode))
    for name in (NAME, SNAPSHOT):
        archive.put(name, io.BytesIO(b"rows"))
    archive.write_head(b"{}")
    assert [mode_of(tmp_path / name) for name in (NAME, SNAPSHOT, "head.json")] == [mode] * 3
    assert mode_of((tmp_path / SNAPSHOT).parent) == directory_mode


@pytest.mark.usefixtures("_umask")
def test_files_of_a_setgid_directory_stay_the_readers_groups(tmp_path: Path) -> None:
    tmp_path.chmod(0o2750)
    Archive(LocalStorage(tmp_path)).put(SNAPSHOT, io.BytesIO(b"rows"))
    made = (tmp_path / SNAPSHOT).parent
    assert mode_of(made) == 0o2750 and mode_of(tmp_path / SNAPSHOT) == 0o640


@pytest.mark.usefixtures("_umask")
def test_spool_and_pid_file_are_their_owners_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # made by somebody else
    (tmp_path / ".changes.part").touch(mode=0o666)  # left by an older version
    writer = FileWriter(tmp_path, ".changes.part", Header(syncdata=1), "none")
    assert mode_of(tmp_path / ".changes.part") == 0o600
    file = writer.finish(
        "changes_20260205_103000",
        records=0,
        transactions=0,
        first_commit_lsn=None,
        last_commit_lsn=None,
        end_lsn=None,
    )
    assert mode_of(file.path) == 0o600
    with PidFile(tmp_path / ".pid"):
        assert mode_of(tmp_path / ".pid") == 0o600


@pytest.mark.parametrize(("value", "expected"), [("0640", "0640"), ("600", "0600"), (0o644, "0644")])
def test_permissions_are_octal(value: object, expected: str) -> None:
    assert a_file_mode(value) == expected


@pytest.mark.parametrize("value", ["0440", "0777", "rw-r-----", 640, "1640", True, ""])
def test_what_are_no_permissions_of_a_file_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match='such as "0640"'):
        a_file_mode(value)
