"""The SFTP archive against a real OpenSSH server."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import pwd
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import asyncssh
import paramiko
import pytest
from paramiko.sftp import CMD_OPENDIR

from syncdata.archive import ssh as sftp
from syncdata.archive.archive import Archive, ChangeFile, open_archive
from syncdata.archive.sftp import SftpSettings
from syncdata.archive.sftp_files import ReadAhead
from syncdata.archive.sftp_session import SftpSession
from syncdata.changes.filenames import temporary_name
from syncdata.errors import ArchiveConnectionError, DeliveryError, DiscoveryError, FetchError, ParseError
from tests.many_files import name_of, put_100_000
from tests.sshd import SshAgent, SshServer, fingerprint, make_key

NAME = "changes_20260205_103000.json"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "PAUSE_S", 0.02)


@contextmanager
def archive(settings: SftpSettings, spool_dir: Path | None = None) -> Iterator[Archive]:
    opened = open_archive(settings, spool_dir=spool_dir)
    try:
        yield opened
    finally:
        opened.close()


def put(server: SshServer, name: str = NAME, content: bytes = b"{}\n") -> ChangeFile:
    (server.archive_dir / name).write_bytes(content)
    return ChangeFile(name=name, size_bytes=len(content))


def content_of(opened: Archive, file: ChangeFile) -> bytes:
    with opened.fetch(file) as fetched:
        return fetched.read()


def refusal(settings: SftpSettings) -> str:
    with archive(settings) as opened, pytest.raises(ArchiveConnectionError) as caught:
        opened.discover(None)
    return str(caught.value)


# Listing


def test_change_files_are_listed_by_name_and_other_names_left_out(sshd: SshServer) -> None:
    late = put(sshd, "changes_20260205_120000.json.gz", b"xx")
    early = put(sshd, "changes_20260205_103000.json", b"{}\n")
    for other in (
        "notes.txt",
        ".changes_20260101_000001.json",
        "changes_20260101_000002.json.tmp",
        "changes_20260101_000003.json.gz.part",
    ):
        put(sshd, other)
    (sshd.archive_dir / "changes_20260101_000004.json").mkdir()
    (sshd.archive_dir / "changes_20260101_000005.json").symlink_to("nowhere")
    with archive(sshd.settings()) as opened:
        assert opened.discover(None) == [early, late]
        assert opened.discover(late.name) == [late]


def test_a_linked_change_file_has_the_size_of_its_target(sshd: SshServer) -> None:
    put(sshd, "elsewhere", b"12345")
    (sshd.archive_dir / NAME).symlink_to("elsewhere")
    with archive(sshd.settings()) as opened:
        assert opened.discover(None) == [ChangeFile(name=NAME, size_bytes=5)]


def test_an_empty_directory_holds_no_change_files(sshd: SshServer) -> None:
    with archive(sshd.settings()) as opened:
        assert opened.discover(None) == []


class Clock:
    """Seconds that pass when the test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_between_two_new_files_the_server_lists_nothing(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = SftpSession.ask

    def count(self: SftpSession, kind: int, *arguments: object) -> int:
        asked.append(kind)
        return ask(self, kind, *arguments)

    monkeypatch.setattr(SftpSession, "ask", count)
    clock = Clock()
    opened = Archive(sshd.settings().open_storage(spool_dir=None), clock_s=clock)

    def look(since: ChangeFile, after_s: float) -> tuple[list[ChangeFile], int]:
        """Return the files found, and the number of listings and other requests."""
        asked.clear()
        clock.now_s += after_s
        found = opened.discover(since.name)
        return found, asked.count(CMD_OPENDIR)

    try:
        first = put(sshd)
        os.utime(sshd.archive_dir, (1_000, 1_000))
        assert look(first, 1) == ([first], 1)
        second = put(sshd, "changes_20260205_103100.json")
        assert look(first, 60) == ([first, second], 1)
        assert look(second, 1) == ([second], 1), "the second of its name may still go on"
        assert look(second, 2) == ([second], 1)
        for _ in range(20):
            assert look(second, 1) == ([second], 0)
            assert len(asked) == 2, "the time of the directory, and the size of the file"
        second = put(sshd, second.name, b'{"it has": "grown"}\n')
        assert look(second, 1) == ([second], 0)
        (sshd.archive_dir / second.name).unlink()
        assert look(second, 1) == ([], 1)
        third = put(sshd, "changes_20260205_103200.json")
        os.utime(sshd.archive_dir, (2_000, 2_000))
        assert look(second, 1) == ([third], 1)
    finally:
        opened.close()


def test_three_new_files_among_100_000_are_found_quickly(sshd: SshServer) -> None:
    put_100_000(sshd.archive_dir)
    with archive(sshd.settings()) as opened:
        opened.discover("changes_20270101_000000.json")
        started = time.monotonic()
        found = opened.discover(name_of(99_997))
        took_s = time.monotonic() - started
    assert [file.name for file in found] == [name_of(number) for number in (99_997, 99_998, 99_999)]
    assert took_s < 8


def test_a_missing_directory_is_named(sshd: SshServer) -> None:
    with (
        archive(sshd.settings(directory="/no/such/place")) as opened,
        pytest.raises(DiscoveryError) as caught,
    ):
        opened.discover(None)
    assert str(caught.value).startswith("SHD_SYN_061: sftp://")
    assert "/no/such/place" in str(caught.value) and "that the archive is there" in str(caught.value)


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"\xff", b"new\nline", b"\x1b[31mred", b"x" * 255])
def test_a_name_that_is_no_text_hides_no_other(sshd: SshServer, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(sshd.archive_dir) + b"/" + name)).touch()
    file = put(sshd)
    with archive(sshd.settings()) as opened:
        assert opened.discover(None) == [file]


def test_a_link_that_leads_in_a_circle_is_left_out(sshd: SshServer) -> None:
    (sshd.archive_dir / "changes_20260205_093000.json").symlink_to("changes_20260205_093000.json")
    file = put(sshd)
    with archive(sshd.settings()) as opened:
        assert opened.discover(None) == [file]


@pytest.mark.parametrize("directory", ["~/{}", "{}", "{}/"])
def test_a_relative_directory_starts_at_the_remote_home(
    sshd: SshServer, directory: str, tmp_path: Path
) -> None:
    from_home = os.path.relpath(sshd.archive_dir, pwd.getpwuid(os.getuid()).pw_dir)
    file = put(sshd)
    with archive(sshd.settings(directory=directory.format(from_home))) as opened:
        assert opened.discover(None) == [file]
        assert content_of(opened, file) == b"{}\n"


# Fetching


@pytest.mark.parametrize("size_bytes", [0, 1, 32 * 1024, 32 * 1024 + 1, 9_000_000])
def test_a_fetched_file_equals_the_archived_one(sshd: SshServer, size_bytes: int, tmp_path: Path) -> None:
    file = put(sshd, content=os.urandom(size_bytes))
    spool_dir = tmp_path / "spool"
    spool_dir.mkdir()
    with archive(sshd.settings(), spool_dir) as opened, opened.fetch(file) as fetched:
        assert fetched.seekable() and fetched.tell() == 0
        assert list(spool_dir.iterdir()) == []  # Anonymous: nothing is left behind by a kill.
        assert fetched.read() == (sshd.archive_dir / NAME).read_bytes()


def test_a_file_that_grew_since_it_was_listed_is_fetched_as_it_is_now(sshd: SshServer) -> None:
    listed = put(sshd, content=b"one\n")
    put(sshd, content=b"one\ntwo\n")
    with archive(sshd.settings()) as opened, opened.fetch(listed) as fetched:
        assert fetched.read() == b"one\ntwo\n"


def test_a_server_that_sends_less_than_it_was_asked_for_is_asked_again(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenSSH caps an answer at 256 KiB, so asking for more makes every answer a short one.
    monkeypatch.setattr(ReadAhead, "BLOCK_BYTES", 300_000)
    content = os.urandom(2_000_000)
    with archive(sshd.settings()) as opened, opened.fetch(put(sshd, content=content)) as fetched:
        assert fetched.read() == content


@pytest.mark.parametrize("knows_posix_rename", [True, False])
def test_the_head_takes_the_place_of_the_one_before(
    sshd: SshServer, knows_posix_rename: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays there when it is tried again, because the answer was lost."""
    if not knows_posix_rename:
        real = SftpSession.ask

        def ask(self: SftpSession, kind: int, *arguments: object) -> int:
            unknown = [argument if argument != "posix-rename@openssh.com" else "?" for argument in arguments]
            return real(self, kind, *unknown)

        monkeypatch.setattr(SftpSession, "ask", ask)
    with archive(sshd.settings()) as opened:
        opened.write_head(b"old")
        opened.write_head(b"new")
    storage = sshd.settings().open_storage(spool_dir=None)
    storage.replace(temporary_name("head.json"), "head.json")
    storage.close()
    assert {path.name: path.read_bytes() for path in sshd.archive_dir.iterdir()} == {"head.json": b"new"}


@pytest.mark.parametrize("name", ["head.json", f"catalog/{'0' * 32}.json"])
def test_a_document_of_a_terabyte_is_not_fetched(sshd: SshServer, name: str, tmp_path: Path) -> None:
    path = sshd.archive_dir / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 10**12)
    started_s = time.monotonic()
    with archive(sshd.settings(), tmp_path) as opened, pytest.raises(ParseError) as caught:
        opened.read_head() if name == "head.json" else opened.read_catalog("0" * 32)
    assert time.monotonic() - started_s < 10
    assert "it has 1,000,000,000,000 bytes, and may have" in str(caught.value) and name in str(caught.value)


def test_a_head_that_is_refused_leaves_the_old_one(sshd: SshServer) -> None:
    (sshd.archive_dir / "head.json").mkdir()
    with archive(sshd.settings()) as opened, pytest.raises(DeliveryError, match=r"SHD_SYN_107: .*head\.json"):
        opened.write_head(b"new")
    assert [path.name for path in sshd.archive_dir.iterdir()] == ["head.json"]


def test_a_file_that_is_gone_is_a_fetch_error_at_once(sshd: SshServer) -> None:
    with archive(sshd.settings()) as opened, pytest.raises(FetchError) as caught:
        opened.fetch(ChangeFile(name=NAME, size_bytes=3))
    assert str(caught.value).startswith("SHD_SYN_062: sftp://") and NAME in str(caught.value)


def test_a_file_that_shrinks_while_it_is_fetched_is_an_error(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(sshd, content=bytes(1_000_000))
    blocks = ReadAhead.blocks

    def shrink_then_read(self: ReadAhead, start: int, end: int) -> Iterator[bytes]:
        os.truncate(sshd.archive_dir / NAME, 100)
        return blocks(self, start, end)

    monkeypatch.setattr(ReadAhead, "blocks", shrink_then_read)
    with archive(sshd.settings()) as opened, pytest.raises(FetchError, match="became shorter"):
        opened.fetch(file)


def test_a_full_spool_is_a_fetch_error_that_says_where_and_the_next_fetch_succeeds(
    sshd: SshServer, tmp_path: Path
) -> None:
    large = put(sshd, content=bytes(5_000_000))
    with archive(sshd.settings(), tmp_path) as opened:
        with largest_file(1_000_000), pytest.raises(FetchError) as caught:
            opened.fetch(large)
        assert str(tmp_path) in str(caught.value) and "free space" in str(caught.value)
        with opened.fetch(large) as fetched:
            assert len(fetched.read()) == 5_000_000


def test_a_spool_directory_that_is_missing_is_a_fetch_error(sshd: SshServer, tmp_path: Path) -> None:
    with archive(sshd.settings(), tmp_path / "none") as opened, pytest.raises(FetchError, match="none"):
        opened.fetch(put(sshd))


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let this process write files of *size_bytes* at most, as if the disk were full beyond."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Losing the connection


def cut_once_after(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, block_count: int, times: int = 1
) -> list[int]:
    """Cut the connection after *block_count* blocks, *times* times; return the offsets reads began at."""
    began: list[int] = []
    blocks = ReadAhead.blocks

    def cutting(self: ReadAhead, start: int, end: int) -> Iterator[bytes]:
        began.append(start)
        for number, block in enumerate(blocks(self, start, end)):
            if number == block_count and len(began) <= times:
                assert server.cut() > 0
            yield block

    monkeypatch.setattr(ReadAhead, "blocks", cutting)
    return began


def test_a_connection_cut_during_a_fetch_goes_on_where_it_was_cut(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(30_000_000)
    file = put(sshd, content=content)
    began = cut_once_after(sshd, monkeypatch, block_count=100, times=2)
    with archive(sshd.settings()) as opened, opened.fetch(file) as fetched:
        assert hashlib.sha256(fetched.read()).digest() == hashlib.sha256(content).digest()
    assert len(began) == 3 and 0 == began[0] < began[1] < began[2]


def test_a_connection_cut_again_and_again_is_given_up_and_works_in_the_next_cycle(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = put(sshd, content=bytes(30_000_000))
    cut_once_after(sshd, monkeypatch, block_count=0, times=sftp.TRIES)
    with archive(sshd.settings()) as opened:
        with pytest.raises(ArchiveConnectionError, match="connection was lost"):
            opened.fetch(file)
        with opened.fetch(file) as fetched:
            assert len(fetched.read()) == 30_000_000
    assert "Traceback" not in capfd.readouterr().err


def test_a_server_restarted_between_two_cycles_is_not_noticed(sshd: SshServer) -> None:
    file = put(sshd)
    with archive(sshd.settings()) as opened:
        assert opened.discover(None) == [file]
        sshd.stop()
        sshd.start()
        assert opened.discover(None) == [file]
        assert content_of(opened, file) == b"{}\n"


def test_a_host_that_refuses_connections_is_tried_three_times(
    sshd: SshServer, caplog: pytest.LogCaptureFixture
) -> None:
    sshd.stop()
    with caplog.at_level("INFO", logger="syncdata"):
        message = refusal(sshd.settings())
    assert message.startswith("SHD_SYN_060: ") and f"{sshd.host}:{sshd.port}" in message
    assert [record.message.endswith("trying again") for record in caplog.records] == [True, True]


def test_a_host_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, sshd: SshServer) -> None:
    monkeypatch.setattr(sftp, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert "SHD_SYN_060" in refusal(sshd.settings(port=mute.getsockname()[1]))


def test_a_server_that_falls_silent_is_taken_for_lost(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "SILENCE_TIMEOUT_S", 0.3)
    file = put(sshd)
    with archive(sshd.settings()) as opened:
        opened.discover(None)
        assert sshd.freeze() > 0
        assert opened.discover(None) == [file]  # Over a second connection.


def test_closing_from_another_thread_ends_a_fetch_soon(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(sshd, content=bytes(10_000_000))
    blocks = ReadAhead.blocks
    half_way = threading.Event()

    def slowly(self: ReadAhead, start: int, end: int) -> Iterator[bytes]:
        for block in blocks(self, start, end):
            half_way.set()
            time.sleep(0.05)
            yield block

    monkeypatch.setattr(ReadAhead, "blocks", slowly)
    with archive(sshd.settings()) as opened:

        def close_half_way() -> None:
            half_way.wait(10)
            opened.close()

        closer = threading.Thread(target=close_half_way)
        closer.start()
        started = time.monotonic()
        with pytest.raises(ArchiveConnectionError):
            opened.fetch(file)
        assert time.monotonic() - started < 3
        closer.join()


# Host keys


def test_an_unknown_host_is_refused_with_its_fingerprint_and_how_to_add_it(
    sshd: SshServer, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "empty"
    message = refusal(sshd.settings(known_hosts=known_hosts))
    assert message.startswith(f"SHD_SYN_060: host key of [{sshd.host}]:{sshd.port} is not known")
    assert fingerprint(sshd.host_key) in message
    assert f"ssh-keyscan -p {sshd.port} {sshd.host} >> {known_hosts}" in message
    assert not known_hosts.exists()


def test_the_command_in_the_message_makes_the_host_known(sshd: SshServer, tmp_path: Path) -> None:
    settings = sshd.settings(known_hosts=tmp_path / "known")
    command = refusal(settings).rpartition("add it: ")[2].rstrip(")")
    subprocess.run(command, shell=True, check=True, capture_output=True)
    with archive(settings) as opened:
        assert opened.discover(None) == []


def test_a_changed_host_key_is_refused_with_both_fingerprints(sshd: SshServer) -> None:
    sshd.change_host_key()
    message = refusal(sshd.settings())
    assert "has changed" in message
    assert fingerprint(sshd.host_key) in message and fingerprint(sshd.other_host_key) in message
    assert f"ssh-keygen -R '[{sshd.host}]:{sshd.port}'" in message


def test_a_host_key_that_changes_between_two_cycles_is_refused(sshd: SshServer) -> None:
    with archive(sshd.settings()) as opened:
        opened.discover(None)
        sshd.change_host_key()
        with pytest.raises(ArchiveConnectionError, match="has changed"):
            opened.discover(None)


def test_a_refusal_is_not_tried_again(sshd: SshServer, caplog: pytest.LogCaptureFixture) -> None:
    sshd.change_host_key()
    with caplog.at_level("INFO", logger="syncdata"):
        refusal(sshd.settings())
        refusal(sshd.settings(known_hosts=Path("/nowhere")))
        refusal(sshd.settings(key_file=sshd.other_key_file))
    assert caplog.records == []


def test_hashed_known_hosts_are_understood(sshd: SshServer) -> None:
    name, key = sshd.known_hosts.read_text().split(" ", 1)
    sshd.known_hosts.write_text(f"{paramiko.HostKeys.hash_host(name)} {key}")
    with archive(sshd.settings()) as opened:
        assert opened.discover(None) == []


def test_a_broken_known_hosts_file_is_named(sshd: SshServer) -> None:
    sshd.known_hosts.write_text(f"[{sshd.host}]:{sshd.port} ssh-ed25519 AAAA!\n")
    assert str(sshd.known_hosts) in refusal(sshd.settings())


# Logging in


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_keys_of_every_kind_log_in(sshd: SshServer, tmp_path: Path, kind: str) -> None:
    key_file = make_key(tmp_path / "key", kind=kind)
    sshd.authorize(key_file)
    with archive(sshd.settings(key_file=key_file)) as opened:
        assert opened.discover(None) == []


def test_a_key_with_a_passphrase_logs_in(sshd: SshServer, tmp_path: Path) -> None:
    key_file = make_key(tmp_path / "key", passphrase="open sesame")
    sshd.authorize(key_file)
    with archive(sshd.settings(key_file=key_file, key_passphrase="open sesame")) as opened:
        assert opened.discover(None) == []


def test_a_wrong_passphrase_is_told_without_showing_it(sshd: SshServer, tmp_path: Path) -> None:
    key_file = make_key(tmp_path / "key", passphrase="open sesame")
    message = refusal(sshd.settings(key_file=key_file, key_passphrase="guessed"))
    assert str(key_file) in message and "passphrase is wrong" in message
    assert "guessed" not in message


def test_a_missing_passphrase_is_asked_for(sshd: SshServer, tmp_path: Path) -> None:
    key_file = make_key(tmp_path / "key", passphrase="open sesame")
    message = refusal(sshd.settings(key_file=key_file))
    assert str(key_file) in message and "archive_key_passphrase" in message


def test_a_key_file_that_is_missing_is_named(sshd: SshServer) -> None:
    message = refusal(sshd.settings(key_file=Path("/no/key")))
    assert message.startswith("SHD_SYN_060: /no/key: ") and "archive_key_file" in message


def test_the_agent_logs_in(sshd: SshServer, ssh_agent: SshAgent) -> None:
    ssh_agent.add(sshd.key_file)
    with archive(sshd.settings(key_file=None)) as opened:
        assert opened.discover(None) == []


def test_the_agent_opens_a_key_file_whose_passphrase_is_not_given(
    sshd: SshServer, ssh_agent: SshAgent, tmp_path: Path
) -> None:
    ssh_agent.add(sshd.key_file)
    locked = make_key(tmp_path / "key", passphrase="open sesame")
    with archive(sshd.settings(key_file=locked)) as opened:
        assert opened.discover(None) == []


def test_the_default_key_logs_in(sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    sshd.authorize(make_key(tmp_path / ".ssh" / "id_ed25519"))
    with archive(sshd.settings(key_file=None)) as opened:
        assert opened.discover(None) == []


def test_a_refused_key_is_named_with_its_fingerprint(sshd: SshServer) -> None:
    message = refusal(sshd.settings(key_file=sshd.other_key_file))
    assert f"login refused for {sshd.user}@{sshd.host}:{sshd.port}" in message
    assert str(sshd.other_key_file) in message and fingerprint(sshd.other_key_file) in message


def test_a_login_without_any_credentials_is_refused_at_once(
    sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert "tried the SSH agent and the default keys" in refusal(sshd.settings(key_file=None))


# A password, against a server in this process: a real sshd would need an account with one.


class ServerWithoutFsync(asyncssh.SFTPServer):
    def fsync(self, file_obj: object) -> None:
        raise asyncssh.SFTPOpUnsupported("no such extension")


class PasswordServer(asyncssh.SSHServer):
    def __init__(self, connections: list[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connections.append(conn)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("backup", "correct horse")


@pytest.fixture
def password_server(tmp_path: Path) -> Iterator[SftpSettings]:
    """Settings of a server that knows one password and no key, without the password."""
    loop = asyncio.new_event_loop()
    connections: list[asyncssh.SSHServerConnection] = []
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    server = loop.run_until_complete(
        asyncssh.create_server(
            lambda: PasswordServer(connections),
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            sftp_factory=ServerWithoutFsync,
        )
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    port = server.get_port()
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
    directory = tmp_path / "archive"
    directory.mkdir()
    (directory / NAME).write_bytes(b"{}\n" * 100_000)
    yield SftpSettings(
        host="127.0.0.1", port=port, user="backup", directory=str(directory), known_hosts=known_hosts
    )

    async def stop() -> None:
        server.close()
        for connection in connections:
            connection.abort()
            await connection.wait_closed()
        await server.wait_closed()

    asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def with_password(settings: SftpSettings, password: str) -> SftpSettings:
    return replace(settings, password=password)


def test_a_password_logs_in_and_files_come_from_another_kind_of_server(password_server: SftpSettings) -> None:
    with archive(with_password(password_server, "correct horse")) as opened:
        [file] = opened.discover(None)
        assert content_of(opened, file) == b"{}\n" * 100_000


def test_another_kind_of_server_without_fsync_takes_files_and_overwrites_none(
    password_server: SftpSettings,
) -> None:
    content = b"{}\n" * 100_000
    with archive(with_password(password_server, "correct horse")) as opened:
        for name in ("changes_20260101_000002.json", "snapshot_20260205_103000/public.users.json.gz"):
            opened.put(name, io.BytesIO(content))
            opened.put(name, io.BytesIO(content))
            with pytest.raises(DeliveryError, match="two archivers"):
                opened.put(name, io.BytesIO(content[:-1]))
        [file] = opened.discover_snapshots()
        with opened.fetch(file) as fetched:
            assert fetched.read() == content
        opened.remove(file.name)
        opened.remove(file.name)
        assert opened.discover_snapshots() == []
    assert sorted(os.listdir(password_server.directory)) == ["changes_20260101_000002.json", NAME]


def test_a_wrong_password_is_refused_without_showing_it(password_server: SftpSettings) -> None:
    message = refusal(with_password(password_server, "battery staple"))
    assert "login refused for backup@127.0.0.1" in message and "tried the password" in message
    assert "battery" not in message


def test_secrets_are_not_in_the_repr(password_server: SftpSettings) -> None:
    assert "battery" not in repr(with_password(password_server, "battery staple"))
