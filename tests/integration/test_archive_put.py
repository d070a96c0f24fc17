"""What the production side does to an archive, on this machine's disk and over a real OpenSSH server."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncdata.archive import sftp_storage
from syncdata.archive import ssh as sftp
from syncdata.archive.archive import Archive, open_archive
from syncdata.archive.local import LocalSettings
from syncdata.archive.sftp_files import WriteBehind, rename_file
from syncdata.archive.sftp_session import SftpSession
from syncdata.changes.filenames import snapshot_name
from syncdata.changes.names import TableName
from syncdata.errors import (
    ArchiveConnectionError,
    DeliveryError,
    DiscoveryError,
    FetchError,
    RetentionError,
    SpoolError,
)
from tests.disks import remount
from tests.sshd import SshServer, running_server

NAME = "changes_20260205_103000.json.zst"
TEMPORARY = f".{NAME}.part"
SNAPSHOT = "snapshot_20260205_103000"
USERS = snapshot_name("20260205_103000", TableName("public", "users"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "PAUSE_S", 0.02)


@pytest.fixture
def remote(sshd: SshServer) -> Iterator[Archive]:
    opened = open_archive(sshd.settings())
    yield opened
    opened.close()


Place = tuple[Archive, Path]


@pytest.fixture(params=["local", "sftp"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An archive of either kind, and its directory."""
    if request.param == "sftp":
        server: SshServer = request.getfixturevalue("sshd")
        archive, directory = open_archive(server.settings()), server.archive_dir
    else:
        directory = tmp_path / "archive"
        directory.mkdir()
        archive = open_archive(LocalSettings(directory=directory))
    yield archive, directory
    archive.close()


@contextmanager
def opened_at(kind: str, directory: Path, request: pytest.FixtureRequest) -> Iterator[Archive]:
    """An archive of that kind at *directory*."""
    if kind == "sftp":
        archive = open_archive(request.getfixturevalue("sshd").settings(directory=str(directory)))
    else:
        archive = open_archive(LocalSettings(directory=directory))
    try:
        yield archive
    finally:
        archive.close()


both_kinds = pytest.mark.parametrize("kind", ["local", "sftp"])


def put(archive: Archive, name: str, content: bytes) -> None:
    archive.put(name, io.BytesIO(content))


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


# Putting


@pytest.mark.parametrize(
    "size_bytes", [0, 1, WriteBehind.BLOCK_BYTES, WriteBehind.BLOCK_BYTES + 1, 9_000_000]
)
def test_a_delivered_file_is_what_was_given_from_its_beginning(place: Place, size_bytes: int) -> None:
    archive, directory = place
    content = io.BytesIO(os.urandom(size_bytes))
    content.seek(0, io.SEEK_END)
    archive.put(NAME, content)
    assert tree(directory) == {NAME: content.getvalue()}
    [file] = archive.discover(None)
    assert (file.name, file.size_bytes) == (NAME, size_bytes)


def test_the_directory_of_a_snapshot_is_made_and_used_again(place: Place) -> None:
    archive, directory = place
    orders = snapshot_name("20260205_103000", TableName("public", "orders"))
    put(archive, USERS, b"users")
    put(archive, orders, b"orders")
    assert tree(directory) == {USERS: b"users", orders: b"orders"}


@pytest.mark.parametrize("table", ["Bücher", 'O\'Neill "the" `one`', "日本.語", "a b*?$(x)", "line\nbreak"])
def test_names_of_every_kind_come_back_and_can_be_fetched(place: Place, table: str) -> None:
    archive, _ = place
    name = snapshot_name("20260205_103000", TableName("my.schema", table))
    put(archive, name, b"rows")
    [file] = archive.discover_snapshots()
    assert (file.name, file.table, file.size_bytes) == (name, TableName("my.schema", table), 4)
    with archive.fetch(file) as fetched:
        assert fetched.read() == b"rows"
    archive.remove(name)
    assert archive.discover_snapshots() == []


def test_putting_an_identical_file_again_writes_nothing(place: Place) -> None:
    archive, directory = place
    put(archive, NAME, b"same" * 100_000)
    before = (directory / NAME).stat()
    put(archive, NAME, b"same" * 100_000)
    after = (directory / NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert set(tree(directory)) == {NAME}


@pytest.mark.parametrize("other", [b"", b"other content", b"the content", b"the content is longer"])
def test_a_different_file_of_that_name_is_an_error_and_is_kept(place: Place, other: bytes) -> None:
    archive, directory = place
    put(archive, NAME, b"the_content")
    with pytest.raises(DeliveryError) as caught:
        put(archive, NAME, other)
    message = str(caught.value)
    assert message.startswith(f"SHD_SYN_107: {archive.describe()}/{NAME}: ")
    assert "two archivers write to this archive" in message
    assert tree(directory) == {NAME: b"the_content"}


def test_a_stale_temporary_file_is_replaced(place: Place) -> None:
    archive, directory = place
    (directory / TEMPORARY).write_bytes(b"left by a crash, and longer than the content")
    put(archive, NAME, b"content")
    assert tree(directory) == {NAME: b"content"}


def test_a_try_that_crashed_between_its_two_names_is_recognised(place: Place) -> None:
    # OpenSSH, too, renames by making the new name first and removing the old one then.
    archive, directory = place
    put(archive, NAME, b"content")
    (directory / TEMPORARY).hardlink_to(directory / NAME)
    put(archive, NAME, b"content")
    assert tree(directory) == {NAME: b"content"}


def test_a_stale_second_name_of_another_file_does_not_change_that_file(place: Place) -> None:
    archive, directory = place
    put(archive, NAME, b"content")
    (directory / TEMPORARY).hardlink_to(directory / NAME)
    (directory / NAME).rename(directory / "kept elsewhere")
    put(archive, NAME, b"new")
    assert tree(directory) == {NAME: b"new", "kept elsewhere": b"content"}


@pytest.mark.parametrize(
    "name",
    [
        "../changes_20260101_000001.json",
        "notes.txt",
        TEMPORARY,
        "changes_20260101_000001.json/x",
        "/etc/passwd",
    ],
)
def test_a_name_that_is_not_an_archives_is_a_mistake_of_the_program(place: Place, name: str) -> None:
    archive, directory = place
    with pytest.raises(ValueError, match="is no name of"):
        put(archive, name, b"")
    with pytest.raises(ValueError, match="is no name of"):
        archive.remove(name)
    assert tree(directory) == {}


class UnreadableContent(io.BytesIO):
    def read(self, length: int | None = -1) -> bytes:
        if self.tell() > 500_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(length)


def test_content_that_cannot_be_read_is_the_spools_error_and_leaves_nothing(place: Place) -> None:
    archive, directory = place
    with pytest.raises(SpoolError, match="SHD_SYN_106: .*Input/output error.*spool_dir"):
        archive.put(NAME, UnreadableContent(bytes(9_000_000)))
    assert tree(directory) == {}


def test_readers_never_see_a_half_file(place: Place, request: pytest.FixtureRequest) -> None:
    archive, directory = place
    kind = "local" if archive.describe().startswith("/") else "sftp"
    contents = {f"changes_20260101_0000{number:02}.json": os.urandom(3_000_000) for number in range(8)}
    seen: set[str] = set()
    wrong: list[str] = []
    done = threading.Event()

    def read(reader: Archive) -> None:
        while True:
            is_last_look = done.is_set()
            for file in reader.discover(None):
                with reader.fetch(file) as fetched:
                    if fetched.read() != contents[file.name]:
                        wrong.append(file.name)
                seen.add(file.name)
            if is_last_look:
                return

    with opened_at(kind, directory, request) as reader:
        thread = threading.Thread(target=read, args=(reader,))
        thread.start()
        try:
            for name, content in contents.items():
                put(archive, name, content)
        finally:
            done.set()
            thread.join()
    assert wrong == [] and seen == set(contents)


def test_where_there_are_no_hard_links_a_rename_does_and_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:  # What FAT says; no such file system can be counted on here.
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    archive = open_archive(LocalSettings(directory=tmp_path))
    put(archive, NAME, b"content")
    with pytest.raises(DeliveryError, match="two archivers"):
        put(archive, NAME, b"another")
    assert tree(tmp_path) == {NAME: b"content"}


# Refusals


def test_a_missing_archive_directory_is_not_made(place: Place) -> None:
    archive, directory = place
    directory.rmdir()
    for name in (NAME, USERS):
        with pytest.raises(
            DeliveryError, match="SHD_SYN_107: .*check that .* is there, and its disk mounted"
        ):
            put(archive, name, b"content")
    assert not directory.exists()


@both_kinds
def test_a_full_disk_is_named_nothing_is_left_and_it_goes_on_when_there_is_space(
    kind: str, small_disk: Path, request: pytest.FixtureRequest
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(700_000))
    content = os.urandom(900_000)
    with opened_at(kind, small_disk, request) as archive:
        with pytest.raises(DeliveryError) as caught:
            put(archive, NAME, content)
        message = str(caught.value)
        assert message.startswith(f"SHD_SYN_107: {archive.describe()}/{NAME}: ")
        assert "full" in message and f"df -h '{small_disk}'" in message
        assert set(tree(small_disk)) == {"filler"}
        filler.unlink()
        put(archive, NAME, content)
        assert tree(small_disk) == {NAME: content}


@both_kinds
def test_a_disk_that_is_mounted_read_only_is_named(
    kind: str, small_disk: Path, request: pytest.FixtureRequest
) -> None:
    (small_disk / NAME).write_bytes(b"old")
    remount(small_disk, "ro")
    with opened_at(kind, small_disk, request) as archive:
        with pytest.raises(DeliveryError, match="SHD_SYN_107: .*read-only"):
            put(archive, USERS, b"content")
        with pytest.raises(RetentionError, match="SHD_SYN_109: .*read-only"):
            archive.remove(NAME)
        assert [file.name for file in archive.discover(None)] == [NAME]


def test_files_that_are_too_large_for_the_limit_of_this_process_are_named(tmp_path: Path) -> None:
    archive = open_archive(LocalSettings(directory=tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(DeliveryError, match="SHD_SYN_107: .*File too large.*ulimit -f"):
            put(archive, NAME, bytes(2_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {}


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Nobody in particular, where the tests run as root, for whom permissions do not hold."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_may_not_be_written_to_is_named() -> None:
    # Not in tmp_path, where nobody else may even look.
    directory = Path(tempfile.mkdtemp())
    try:
        (directory / NAME).write_bytes(b"old")
        directory.chmod(0o555)
        archive = open_archive(LocalSettings(directory=directory))
        with as_somebody_else():
            assert [file.name for file in archive.discover(None)] == [NAME]
            with pytest.raises(DeliveryError) as delivery:
                put(archive, "changes_20260101_000002.json", b"content")
            with pytest.raises(RetentionError) as retention:
                archive.remove(NAME)
    finally:
        directory.chmod(0o755)
        shutil.rmtree(directory)
    for error, code in ((delivery.value, "SHD_SYN_107"), (retention.value, "SHD_SYN_109")):
        assert str(error).startswith(f"{code}: {directory}/changes_2") and "Permission denied" in str(error)
        assert error.hint == f"give the login write and search permission on '{directory}'"


def test_a_login_that_may_only_read_is_told_so(sshd: SshServer) -> None:
    (sshd.archive_dir / NAME).write_bytes(b"old")
    sshd.authorized_keys.write_text(
        f'command="internal-sftp -R" {sshd.authorized_keys.read_text()}'  # the server's read-only mode
    )
    archive = open_archive(sshd.settings())
    with pytest.raises(
        DeliveryError, match="SHD_SYN_107: sftp://.*give the login write and search permission"
    ):
        put(archive, "changes_20260101_000002.json", b"content")
    with pytest.raises(
        RetentionError, match="SHD_SYN_109: sftp://.*give the login write and search permission"
    ):
        archive.remove(NAME)
    archive.close()
    assert tree(sshd.archive_dir) == {NAME: b"old"}


# Losing the connection


class CuttingContent(io.BytesIO):
    """Does something to the connection when it is read to the middle, *times* times."""

    def __init__(self, content: bytes, disturb: Callable[[], int], times: int = 1) -> None:
        super().__init__(content)
        self._middle = len(content) // 2
        self._disturb = disturb
        self._times_left = times
        self.times_begun = 0

    def read(self, length: int | None = -1) -> bytes:
        before = self.tell()
        block = super().read(length)
        self.times_begun += before == 0
        if before < self._middle <= self.tell() and self._times_left:
            self._times_left -= 1
            assert self._disturb() > 0
        return block


def test_an_upload_that_is_cut_starts_over(sshd: SshServer, remote: Archive) -> None:
    content = CuttingContent(os.urandom(20_000_000), sshd.cut, times=2)
    remote.put(NAME, content)
    assert content.times_begun == 3
    assert tree(sshd.archive_dir) == {NAME: content.getvalue()}


def test_a_server_that_falls_silent_during_an_upload_is_taken_for_lost(
    sshd: SshServer, remote: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "SILENCE_TIMEOUT_S", 0.5)
    content = CuttingContent(os.urandom(20_000_000), sshd.freeze)
    remote.put(NAME, content)
    assert content.times_begun == 2
    assert tree(sshd.archive_dir) == {NAME: content.getvalue()}


def test_an_upload_that_is_cut_again_and_again_is_given_up_and_readers_see_nothing_of_it(
    sshd: SshServer, remote: Archive
) -> None:
    content = CuttingContent(os.urandom(20_000_000), sshd.cut, times=sftp.TRIES)
    with pytest.raises(ArchiveConnectionError, match="SHD_SYN_060: .*connection was lost"):
        remote.put(NAME, content)
    assert remote.discover(None) == [] and set(tree(sshd.archive_dir)) <= {TEMPORARY}
    remote.put(NAME, content)
    assert tree(sshd.archive_dir) == {NAME: content.getvalue()}


def test_a_rename_whose_answer_is_lost_is_recognised(
    sshd: SshServer, remote: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    renames: list[str] = []

    def rename_and_lose_the_answer(sftp: SftpSession, old: str, new: str) -> None:
        rename_file(sftp, old, new)
        renames.append(new)
        sshd.cut()
        raise ConnectionResetError

    monkeypatch.setattr(sftp_storage, "rename_file", rename_and_lose_the_answer)
    put(remote, NAME, b"content")
    assert len(renames) == 1 and tree(sshd.archive_dir) == {NAME: b"content"}


def test_another_file_that_takes_the_name_during_an_upload_is_kept(sshd: SshServer, remote: Archive) -> None:
    def take_the_name() -> int:
        return (sshd.archive_dir / NAME).write_bytes(b"another's")

    with pytest.raises(DeliveryError, match="two archivers"):
        remote.put(NAME, CuttingContent(os.urandom(2_000_000), take_the_name))
    assert tree(sshd.archive_dir) == {NAME: b"another's"}


def test_a_host_that_is_away_is_a_connection_error(sshd: SshServer, remote: Archive) -> None:
    sshd.stop()
    for work in (lambda: put(remote, NAME, b"content"), lambda: remote.remove(NAME)):
        with pytest.raises(ArchiveConnectionError, match="SHD_SYN_060"):
            work()


def test_an_upload_holds_little_of_the_file_in_memory(sshd: SshServer, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(300_000_000)
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from syncdata.archive.archive import open_archive; from syncdata.archive.sftp import SftpSettings\n"
        "host, port, user, directory, key, known = sys.argv[1:7]\n"
        "archive = open_archive(SftpSettings(host=host, port=int(port), user=user, directory=directory,"
        " key_file=Path(key), known_hosts=Path(known)))\n"
        "archive.discover(None); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "[archive.put(sys.argv[7], open(sys.argv[8], 'rb')) for _ in range(2)]\n"
        "archive.close(); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    settings = sshd.settings()
    arguments = [settings.host, str(settings.port), settings.user, settings.directory]
    arguments += [str(settings.key_file), str(settings.known_hosts), NAME, str(large)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 30_000  # KiB
    assert (sshd.archive_dir / NAME).stat().st_size == 300_000_000


# Snapshots


def test_only_finished_looking_files_of_snapshots_are_listed_the_newest_first(place: Place) -> None:
    archive, directory = place
    for stamp in ("20260101_000000", "20260301_000000", "20260201_000000"):
        for table in ("users", "orders"):
            put(archive, snapshot_name(stamp, TableName("public", table)), b"1234")
    newest = directory / "snapshot_20260301_000000"
    for other in (
        ".public.a.json.gz",
        "public.b.json.gz.tmp",
        ".public.c.json.gz.part",
        "public.d.json",
        "notes.txt",
    ):
        (newest / other).touch()
    (newest / "public.e.json.gz").mkdir()
    (newest / "public.f.json.gz").symlink_to("nowhere")
    (directory / "snapshot_20260401_000000").mkdir()
    (directory / "snapshot_20260501_000000").touch()
    for foreign in (".snapshot_20260601_000000", "snapshot_20260601", "snapshot_20260601_000000.part"):
        (directory / foreign).mkdir()
        (directory / foreign / "public.users.json.gz").touch()
    put(archive, NAME, b"")
    assert [(file.name, file.size_bytes) for file in archive.discover_snapshots()] == [
        (f"snapshot_{stamp}/public.{table}.json.gz", 4)
        for stamp in ("20260301_000000", "20260201_000000", "20260101_000000")
        for table in ("orders", "users")
    ]
    assert [file.name for file in archive.discover(None)] == [NAME]


def test_snapshots_of_a_missing_archive_cannot_be_listed(place: Place) -> None:
    archive, directory = place
    directory.rmdir()
    with pytest.raises(
        DiscoveryError, match="SHD_SYN_061: .*check in the configuration that the archive is there"
    ):
        archive.discover_snapshots()


def test_a_snapshot_that_vanishes_while_it_is_listed_is_no_error(place: Place) -> None:
    archive, directory = place
    stamps = [f"2026{month:02}01_000000" for month in range(1, 13)]
    for stamp in stamps:
        put(archive, snapshot_name(stamp, TableName("public", "users")), b"")

    def vanish() -> None:
        for stamp in stamps[:-1]:
            shutil.rmtree(directory / f"snapshot_{stamp}")
            time.sleep(0.002)

    thread = threading.Thread(target=vanish)
    thread.start()
    while thread.is_alive():
        assert archive.discover_snapshots()[0].stamp == stamps[-1]
    thread.join()
    assert [file.stamp for file in archive.discover_snapshots()] == stamps[-1:]


def test_a_snapshot_file_that_is_gone_is_a_fetch_error(place: Place) -> None:
    archive, directory = place
    put(archive, USERS, b"rows")
    [file] = archive.discover_snapshots()
    shutil.rmtree(directory / SNAPSHOT)
    with pytest.raises(FetchError, match=f"SHD_SYN_062: .*{USERS}: "):
        archive.fetch(file)


# Removal


def test_a_removed_file_is_gone_with_what_a_crash_left_of_it_and_once_more_is_fine(place: Place) -> None:
    archive, directory = place
    put(archive, NAME, b"1")
    put(archive, "changes_20260101_000002.json", b"2")
    (directory / TEMPORARY).touch()
    archive.remove(NAME)
    archive.remove(NAME)
    assert tree(directory) == {"changes_20260101_000002.json": b"2"}


def test_the_last_file_of_a_snapshot_takes_the_directory_with_it(place: Place) -> None:
    archive, directory = place
    orders = snapshot_name("20260205_103000", TableName("public", "orders"))
    put(archive, USERS, b"1")
    put(archive, orders, b"2")
    (directory / f"{SNAPSHOT}/.public.users.json.gz.part").touch()
    archive.remove(USERS)
    assert tree(directory) == {orders: b"2"}
    archive.remove(orders)
    assert list(directory.iterdir()) == []
    archive.remove(orders)
    assert list(directory.iterdir()) == []


def test_a_name_that_is_a_directory_cannot_be_removed(place: Place) -> None:
    archive, directory = place
    (directory / NAME).mkdir()
    with pytest.raises(RetentionError, match=f"SHD_SYN_109: .*{NAME}: the file cannot be removed"):
        archive.remove(NAME)
    assert (directory / NAME).is_dir()


@pytest.mark.parametrize(
    ("umask", "mode", "expected", "of_directory"),
    [
        ("0000", None, 0o640, 0o2750),
        ("0022", "0600", 0o600, 0o2700),
        ("0022", "0644", 0o644, 0o2755),
        ("0077", None, 0o600, 0o2700),
    ],
)
def test_a_lax_umask_at_the_backup_host_shows_rows_to_nobody(
    tmp_path: Path, umask: str, mode: str | None, expected: int, of_directory: int
) -> None:
    with running_server(tmp_path / "sshd", f"ForceCommand internal-sftp -u {umask}") as server:
        server.archive_dir.chmod(0o2750)
        archive = open_archive(server.settings(**({"file_mode": mode} if mode else {})))
        for name in (NAME, USERS):
            archive.put(name, io.BytesIO(b"rows"))
        archive.write_head(b"{}")
        archive.close()
        made = [server.archive_dir / name for name in (NAME, USERS, "head.json")]
        assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [expected] * 3
        assert stat.S_IMODE(made[1].parent.stat().st_mode) == of_directory
