"""Ways to the backup host (aliases, jump hosts, programs) and what may be used on them, with real servers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncdata.archive import ssh
from syncdata.archive.archive import ChangeFile, open_archive
from syncdata.archive.sftp import SftpSettings
from syncdata.errors import ArchiveConnectionError
from tests.sshd import SshServer, fingerprint, make_key, running_server

FILE = ChangeFile(name="changes_20260205_103000.json", size_bytes=3)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "PAUSE_S", 0.02)


@pytest.fixture
def jump(tmp_path: Path) -> Iterator[SshServer]:
    """Another server, which lets others in, with other keys."""
    with running_server(tmp_path / "jump") as server:
        yield server


def found(settings: SftpSettings) -> list[ChangeFile]:
    opened = open_archive(settings)
    try:
        return opened.discover(None)
    finally:
        opened.close()


def refusal(settings: SftpSettings) -> str:
    with pytest.raises(ArchiveConnectionError) as caught:
        found(settings)
    return str(caught.value)


def configured(server: SshServer, text: str, **changed: object) -> SftpSettings:
    """The settings of *server*, known as backup, with an SSH configuration of that *text*."""
    (server.archive_dir / FILE.name).write_bytes(b"{}\n")
    file = server.folder / "config"
    file.write_text(text)
    usual = {"host": "backup", "port": None, "ssh_config": file}
    return server.settings(**usual | changed)


def test_an_alias_leads_to_the_backup_host(sshd: SshServer) -> None:
    text = f"Host backup\n  HostName {sshd.host}\n  Port {sshd.port}\n"
    assert found(configured(sshd, text)) == [FILE]


def test_the_configuration_names_key_and_known_hosts(sshd: SshServer) -> None:
    text = (
        f"Host backup\n  HostName {sshd.host}\n  Port {sshd.port}\n"
        f"  IdentityFile {sshd.folder}/missing\n  IdentityFile {sshd.key_file}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {sshd.known_hosts}\n"
    )
    assert found(configured(sshd, text, key_file=None, known_hosts=None)) == [FILE]


def test_a_key_alias_is_looked_up_in_place_of_the_host(sshd: SshServer) -> None:
    text = f"Host backup\n  HostName {sshd.host}\n  Port {sshd.port}\n  HostKeyAlias vault\n"
    settings = configured(sshd, text)
    assert "host key of vault is not known" in refusal(settings)
    sshd.known_hosts.write_text(sshd.known_hosts.read_text().replace(f"[{sshd.host}]:{sshd.port}", "vault"))
    assert found(settings) == [FILE]


def test_the_settings_count_before_the_configuration(sshd: SshServer) -> None:
    text = f"Host {sshd.host}\n  Port 1\n  User nobody\n  IdentityFile /nowhere\n"
    assert found(configured(sshd, text, host=sshd.host, port=sshd.port)) == [FILE]


def test_the_usual_configuration_is_read(
    sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(f"Host backup\nHostName {sshd.host}\nPort {sshd.port}\n")
    assert found(configured(sshd, "", ssh_config=None)) == [FILE]


def over(jump: SshServer, sshd: SshServer, more: str = "") -> str:
    return (
        f"Host backup\n  HostName {sshd.host}\n  Port {sshd.port}\n  ProxyJump bastion\n"
        f"Host bastion\n  HostName {jump.host}\n  Port {jump.port}\n  IdentityFile {jump.key_file}\n{more}"
    )


def know(sshd: SshServer, jump: SshServer) -> None:
    sshd.known_hosts.write_text(sshd.known_hosts.read_text() + jump.known_hosts.read_text())


def test_a_jump_host_leads_to_the_backup_host(sshd: SshServer, jump: SshServer) -> None:
    know(sshd, jump)
    assert found(configured(sshd, over(jump, sshd))) == [FILE]
    assert "Accepted publickey" in jump.log and "Accepted publickey" in sshd.log


def test_a_chain_of_jump_hosts_leads_there(sshd: SshServer, jump: SshServer, tmp_path: Path) -> None:
    with running_server(tmp_path / "second") as second:
        for server in (jump, second):
            know(sshd, server)
        text = (
            f"Host backup\n  HostName {sshd.host}\n  Port {sshd.port}\n"
            f"  ProxyJump {jump.user}@{jump.host}:{jump.port},second\n"
            f"Host second\n  HostName {second.host}\n  Port {second.port}\n  IdentityFile {second.key_file}\n"
        )
        jump.authorize(sshd.key_file)
        assert found(configured(sshd, text)) == [FILE]
        assert "Accepted publickey" in jump.log and "Accepted publickey" in second.log


def test_an_unknown_jump_host_is_refused(sshd: SshServer, jump: SshServer) -> None:
    message = refusal(configured(sshd, over(jump, sshd)))
    assert f"host key of [{jump.host}]:{jump.port} is not known" in message
    assert fingerprint(jump.host_key) in message
    assert "Accepted" not in jump.log and "Accepted" not in sshd.log


def test_the_host_behind_a_jump_host_is_verified(sshd: SshServer, jump: SshServer) -> None:
    know(sshd, jump)
    sshd.change_host_key()
    message = refusal(configured(sshd, over(jump, sshd)))
    assert f"host key of [{sshd.host}]:{sshd.port} has changed" in message
    assert "Accepted" not in sshd.log


def test_a_login_that_a_jump_host_refuses_is_told_as_its_own(sshd: SshServer, jump: SshServer) -> None:
    know(sshd, jump)
    text = over(jump, sshd).replace(str(jump.key_file), str(jump.other_key_file))
    message = refusal(configured(sshd, text))
    assert f"login refused for {jump.user}@{jump.host}:{jump.port} (a jump host)" in message
    assert str(jump.other_key_file) in message


def test_a_password_is_not_shown_to_a_jump_host(sshd: SshServer, jump: SshServer) -> None:
    know(sshd, jump)
    text = over(jump, sshd).replace(str(jump.key_file), str(jump.other_key_file))
    message = refusal(configured(sshd, text, password="secret", key_file=None))
    assert "jump host" in message and "the password" not in message
    assert "Failed password" not in jump.log


def test_a_jump_host_that_cannot_reach_the_backup_host_is_told(sshd: SshServer, jump: SshServer) -> None:
    know(sshd, jump)
    sshd.stop()
    assert f"{sshd.host}:{sshd.port} cannot be reached" in refusal(configured(sshd, over(jump, sshd)))


def test_jump_hosts_in_a_circle_are_an_error(sshd: SshServer) -> None:
    text = f"Host *\n  HostName {sshd.host}\n  Port {sshd.port}\n  ProxyJump bastion\n"
    assert "in a circle" in refusal(configured(sshd, text))


def test_a_connection_over_a_jump_host_is_made_again(sshd: SshServer, jump: SshServer) -> None:
    know(sshd, jump)
    opened = open_archive(configured(sshd, over(jump, sshd)))
    assert opened.discover(None) == [FILE]
    assert jump.cut() > 0
    assert opened.discover(None) == [FILE]
    opened.close()


def test_a_program_is_the_way(sshd: SshServer) -> None:
    program = (
        "import socket, sys, threading, os\n"
        "wire = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def pump(read, write):\n"
        "    while block := read(65536): write(block)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=pump, args=(lambda n: os.read(0, n), wire.sendall)).start()\n"
        "pump(wire.recv, lambda block: os.write(1, block))\n"
    )
    script = sshd.folder / "way.py"
    script.write_text(program)
    text = (
        f"Host backup\n  HostName {sshd.host}\n  Port {sshd.port}\n"
        f"  ProxyCommand {sys.executable} {script} %h %p\n"
    )
    assert found(configured(sshd, text)) == [FILE]
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(script) not in running


def test_a_program_that_fails_is_an_error(sshd: SshServer) -> None:
    assert "SHD_SYN_060" in refusal(configured(sshd, "ProxyCommand exit 1\n"))


# What may be used

WEAK = {
    "cipher": ("Ciphers aes128-cbc,3des-cbc", "aes128-cbc, 3des-cbc", "aes128-cbc"),
    "checksum (MAC)": ("MACs hmac-sha1,hmac-md5\nCiphers aes128-ctr", "hmac-sha1, hmac-md5", "hmac-sha1"),
}


@pytest.mark.parametrize("kind", WEAK)
def test_a_server_that_offers_only_weak_algorithms_is_refused_unless_they_are_allowed(
    tmp_path: Path, kind: str
) -> None:
    more, offered, allowed = WEAK[kind]
    with running_server(tmp_path / "sshd", more) as server:
        message = refusal(server.settings())
        assert f"offers no {kind} that is allowed here, but only: {offered}" in message
        assert f'archive_allow_algorithms = ["{allowed}"' in message
        assert found(server.settings(allow_algorithms=(allowed,))) == []


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ("KexAlgorithms diffie-hellman-group14-sha1", "key exchange"),
        ("HostKeyAlgorithms ssh-rsa", "host key"),
    ],
)
def test_what_the_library_does_not_know_cannot_be_allowed(tmp_path: Path, more: str, kind: str) -> None:
    if kind == "host key":
        more += f"\nHostKey {make_key(tmp_path / 'rsa', kind='rsa')}"
    with running_server(tmp_path / "sshd", more, own_host_key=kind != "host key") as server:
        message = refusal(server.settings())
        assert f"offers no {kind} that is allowed here" in message and more.split()[1] in message
        assert "archive_allow_algorithms" not in message and "updated" in message


def test_nothing_weak_is_offered(sshd: SshServer) -> None:
    opened = open_archive(sshd.settings())
    opened.discover(None)
    connection = opened._storage._connection  # type: ignore[attr-defined]
    [transport] = [item for item in connection._opened if hasattr(item, "preferred_ciphers")]
    offered = [
        *transport.preferred_ciphers,
        *transport.preferred_macs,
        *transport.preferred_kex,
        *transport.preferred_keys,
        *transport.preferred_pubkeys,
    ]
    opened.close()
    assert len(offered) > 20
    for name in offered:
        assert not any(weak in name for weak in ("cbc", "3des", "md5", "sha1", "ssh-rsa", "dss", "arcfour"))
