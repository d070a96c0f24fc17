"""Known-hosts files, each judged by OpenSSH and by us against a real server: the answers must be the same."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import paramiko
import pytest

from syncdata.archive.archive import open_archive
from syncdata.archive.known_hosts import matches
from syncdata.archive.sftp import SftpSettings
from syncdata.errors import ArchiveConnectionError
from tests.sshd import SshServer, fingerprint, make_key, public_key, running_server

KINDS = ("ed25519", "ecdsa", "rsa")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The private keys of a host, of two authorities, and of somebody else."""
    folder = tmp_path_factory.mktemp("keys")
    for kind in KINDS:
        make_key(folder / kind, kind=kind)
        make_key(folder / f"other_{kind}", kind=kind)
    make_key(folder / "authority")
    make_key(folder / "rsa_authority", kind="rsa")
    make_key(folder / "other_authority")
    return folder


def sign(keys: Path, *options: str, authority: str = "authority", kind: str = "ed25519") -> Path:
    """Make the certificate of the host's key of that *kind*; return its file."""
    key = keys / f"{kind}.pub"
    command = ["ssh-keygen", "-q", "-s", str(keys / authority), "-I", "host", "-h", *options, str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return keys / f"{kind}-cert.pub"


@pytest.fixture(scope="module")
def host(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A server with a key of each kind, and a certificate for one."""
    certificate = sign(keys, "-n", "127.0.0.1,localhost")
    more = [f"HostKey {keys / kind}" for kind in KINDS] + [f"HostCertificate {certificate}"]
    with serving(tmp_path_factory.mktemp("host") / "sshd", more) as server:
        yield server


def serving(folder: Path, more: list[str]) -> AbstractContextManager[SshServer]:
    return running_server(folder, "\n".join(more), own_host_key=False)


def accepted_by_openssh(server: SshServer, known_hosts: Path, *options: str) -> bool:
    command = [
        *("ssh", "-F", "/dev/null", "-p", str(server.port), "-i", str(server.key_file)),
        *("-o", f"UserKnownHostsFile={known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
        *("-o", "UpdateHostKeys=no", *options, f"{server.user}@{server.host}", "true"),
    ]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def refusal(settings: SftpSettings) -> str:
    """What we say to the server; empty when we take it for the one that we know."""
    archive = open_archive(settings)
    try:
        archive.discover(None)
    except ArchiveConnectionError as error:
        assert "host key" in str(error), error
        return str(error)
    finally:
        archive.close()
    return ""


def written(folder: Path, text: str, server: SshServer, keys: Path) -> Path:
    """Write a known-hosts file in which words in braces stand for names and keys."""
    words = {
        path.stem: public_key(path.with_suffix("")) for path in keys.glob("*.pub") if "-cert" not in path.name
    }
    name = f"[{server.host}]:{server.port}"
    words |= {
        "host": name,
        "port": str(server.port),
        "hashed": paramiko.HostKeys.hash_host(name),
        "hashed_other": paramiko.HostKeys.hash_host("other"),
        "cut": words["ed25519"][:-20],
    }
    path = folder / "known_hosts"
    path.write_text(text.format(**words))
    return path


TABLE = {
    "nothing": ("", False),
    "its ed25519 key": ("{host} {ed25519}\n", True),
    "its ecdsa key alone": ("{host} {ecdsa}\n", True),
    "its rsa key alone": ("{host} {rsa}\n", True),
    "another ed25519 key": ("{host} {other_ed25519}\n", False),
    "another ed25519 key, and its rsa key": ("{host} {other_ed25519}\n{host} {rsa}\n", False),
    "two keys of one type, the old one first": ("{host} {other_ed25519}\n{host} {ed25519}\n", True),
    "two keys of one type, the old one last": ("{host} {ed25519}\n{host} {other_ed25519}\n", True),
    "two rsa keys": ("{host} {other_rsa}\n{host} {rsa}\n", True),
    "a hashed name": ("{hashed} {ed25519}\n", True),
    "the hashed name of another": ("{hashed_other} {ed25519}\n", False),
    "a hash that is none": ("|1|abc|def {ed25519}\n", False),
    "several names": ("other,{host},third {ed25519}\n", True),
    "a star": ("[127.0.0.*]:{port} {ed25519}\n", True),
    "a question mark": ("[127.0.0.?]:{port} {ed25519}\n", True),
    "one question mark for two characters": ("[127.0.0?]:{port} {ed25519}\n", False),
    "a star for every host": ("* {ed25519}\n", True),
    "brackets are no pattern": ("[0-9]27.0.0.1 {ed25519}\n", False),
    "a negated pattern behind": ("[127.0.0.*]:{port},!{host} {ed25519}\n", False),
    "a negated pattern, which the name without its port evades": ("!{host},* {ed25519}\n", True),
    "a negation of another": ("!other,* {ed25519}\n", True),
    "nothing but a negation": ("!other {ed25519}\n", False),
    "the name without its port": ("127.0.0.1 {ed25519}\n", True),
    "another key under the name without its port": ("127.0.0.1 {other_ed25519}\n", False),
    "the name without its port, and its rsa key alone": ("127.0.0.1 {rsa}\n", False),
    "another port": ("[127.0.0.1]:1 {ed25519}\n", False),
    "the key revoked": ("{host} {ed25519}\n@revoked * {ed25519}\n", False),
    "the key revoked for others": ("{host} {ed25519}\n@revoked other {ed25519}\n", True),
    "ed25519 revoked, rsa fine": ("{host} {ed25519}\n{host} {rsa}\n@revoked {host} {ed25519}\n", True),
    "two ed25519 keys, the first revoked": (
        "{host} {other_ed25519}\n{host} {ed25519}\n{host} {rsa}\n@revoked * {other_ed25519}\n",
        True,
    ),
    "ed25519 revoked, rsa alone known": ("{host} {rsa}\n@revoked {host} {ed25519}\n", True),
    "an authority": ("@cert-authority {host} {authority}\n", True),
    "an authority for a pattern": ("@cert-authority * {authority}\n", True),
    "an authority for the name without its port": ("@cert-authority 127.0.0.1 {authority}\n", True),
    "an authority for others": ("@cert-authority *.example.com {authority}\n", False),
    "another authority": ("@cert-authority * {other_authority}\n", False),
    "another authority, and the key": ("@cert-authority * {other_authority}\n{host} {ed25519}\n", True),
    "an authority for others, and the key": ("@cert-authority *.corp {authority}\n{host} {ed25519}\n", True),
    "an authority, and another key": ("@cert-authority {host} {authority}\n{host} {other_ed25519}\n", True),
    "an authority, revoked": ("@cert-authority * {authority}\n@revoked * {authority}\n", False),
    "an authority, and the key revoked": ("@cert-authority * {authority}\n@revoked * {ed25519}\n", False),
    "an authority's key without the marker": ("{host} {authority}\n", False),
    "the key with an authority's marker": ("@cert-authority {host} {ed25519}\n", False),
    "a marker that nobody knows": ("@trusted * {ed25519}\n", False),
    "a marker that nobody knows, and the key": ("@trusted * {other_ed25519}\n{host} {ed25519}\n", True),
    "two markers": ("@revoked @cert-authority * {authority}\n", False),
    "comments and blank lines": ("# hosts\n\n   # more\n\t{host} {ed25519} a comment\n", True),
    "a broken line, and the key": ("{host} ssh-ed25519 AAAA!\n{host} {ed25519}\n", True),
    "a broken line of another host, and the key": ("other nonsense\n{host} {ed25519}\n", True),
    "a key that is cut off": ("{host} {cut}\n", False),
    "a key with the name of another type": ("{host} ssh-rsa {ed25519}\n", False),
    "letters of another size in the type": ("{host} SSH-{ed25519}\n", False),
    "bytes that are no text, and the key": ("h\u00f6st x y\n{host} {ed25519}\n", True),
    "no key behind the name": ("{host}\n", False),
    "lines that end as on Windows": ("{host} {ed25519}\r\n", True),
    "a comment with a form feed": ("# was:\f{host} {ed25519}\n", False),
    "a comment with a line separator": ("{host} {other_ed25519} was:\u2028{host} {ed25519}\n", False),
    "a comment with a carriage return": ("# was:\r{host} {ed25519}\n", False),
    "a form feed before the name": ("\f{host} {ed25519}\n", False),
    "a blank of another alphabet": ("{host}\u00a0{ed25519}\n", False),
    "names with nothing between commas": (",,{host},, {ed25519}\n", True),
    "a star for every port": ("[127.0.0.1]:* {ed25519}\n", True),
    "many stars": ("*************0.0.1]:{port} {ed25519}\n", True),
}


@pytest.mark.parametrize("what", TABLE)
def test_a_known_hosts_file_means_what_it_means_to_openssh(
    host: SshServer, keys: Path, tmp_path: Path, what: str
) -> None:
    text, is_known = TABLE[what]
    known_hosts = written(tmp_path, text, host, keys)
    assert accepted_by_openssh(host, known_hosts) == is_known
    assert (refusal(host.settings(known_hosts=known_hosts)) == "") == is_known


@pytest.mark.parametrize(
    ("options", "is_known", "words"),
    [
        (("-n", "127.0.0.1", "-V", "-2h:-1h"), False, "its certificate has expired"),
        (("-n", "127.0.0.1", "-V", "+1h:+2h"), False, "its certificate is not valid yet"),
        (("-n", "other.example.com"), False, "its certificate does not name it"),
        (("-n", "127.0.0.*"), False, "its certificate does not name it"),
        (("-n", "other,127.0.0.1"), True, ""),
        ((), True, ""),
    ],
)
def test_a_certificate_counts_when_it_counts_for_openssh(
    keys: Path, tmp_path: Path, options: tuple[str, ...], is_known: bool, words: str
) -> None:
    certificate = sign(keys, *options, kind="ecdsa")
    more = [f"HostKey {keys / 'ecdsa'}", f"HostCertificate {certificate}"]
    with serving(tmp_path / "sshd", more) as server:
        known_hosts = written(tmp_path, "@cert-authority * {authority}\n", server, keys)
        assert accepted_by_openssh(server, known_hosts) == is_known
        message = refusal(server.settings(known_hosts=known_hosts))
        assert (message == "") == is_known and words in message
        # The key itself may be known all the same.
        known_hosts = written(tmp_path, "@cert-authority * {authority}\n{host} {ecdsa}\n", server, keys)
        assert accepted_by_openssh(server, known_hosts)
        assert refusal(server.settings(known_hosts=known_hosts)) == ""


@pytest.mark.parametrize(("algorithm", "is_known"), [("rsa-sha2-512", True), ("ssh-rsa", False)])
def test_an_rsa_authority_counts_when_it_signs_with_sha_2(
    keys: Path, tmp_path: Path, algorithm: str, is_known: bool
) -> None:
    certificate = sign(keys, "-t", algorithm, "-n", "127.0.0.1", authority="rsa_authority", kind="rsa")
    more = [f"HostKey {keys / 'rsa'}", f"HostCertificate {certificate}"]
    with serving(tmp_path / "sshd", more) as server:
        known_hosts = written(tmp_path, "@cert-authority * {rsa_authority}\n", server, keys)
        assert accepted_by_openssh(server, known_hosts) == is_known
        assert (refusal(server.settings(known_hosts=known_hosts)) == "") == is_known


def test_a_refusal_says_why_an_authority_did_not_help(host: SshServer, keys: Path, tmp_path: Path) -> None:
    known_hosts = written(tmp_path, "@cert-authority * {other_authority}\n", host, keys)
    message = refusal(host.settings(known_hosts=known_hosts))
    assert "it showed no certificate of the authority that is known for it" in message
    assert fingerprint(keys / "ed25519") in message


def test_a_revoked_key_is_refused_with_the_line_that_says_so(
    host: SshServer, keys: Path, tmp_path: Path
) -> None:
    known_hosts = written(tmp_path, "{host} {ed25519}\n@revoked * {ed25519}\n", host, keys)
    message = refusal(host.settings(known_hosts=known_hosts))
    assert f"is revoked ({known_hosts}:2)" in message and "ssh-keyscan" not in message


def test_a_broken_line_is_named_once_and_condemns_no_other(
    host: SshServer, keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known_hosts = written(tmp_path, "other ssh-ed25519 AAAA!\n{host} {ed25519}\n", host, keys)
    archive = open_archive(host.settings(known_hosts=known_hosts))
    archive.discover(None)
    assert host.cut() > 0
    archive.discover(None)
    archive.close()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{known_hosts}:1: the key is not base64; the line is left out"]


def test_a_host_is_known_by_the_usual_files_where_none_is_named(
    host: SshServer, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    settings = host.settings(known_hosts=None)
    assert f">> {tmp_path}/.ssh/known_hosts" in refusal(settings)
    written(tmp_path / ".ssh", "{host} {ed25519}\n", host, keys)
    assert refusal(settings) == ""


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("", "", True),
        ("a", "a", True),
        ("a", "ab", False),
        ("*", "", True),
        ("a*b", "ab", True),
        ("a*b", "axxb", True),
        ("a*ba", "aba", True),
        ("aba*ba", "aba", False),
        ("*ab*", "aab", True),
        ("*a?c*c", "abcaxcc", True),
        ("a**c", "abc", True),
        ("*.a", "xaa", False),
    ],
)
def test_a_pattern_stands_for_what_it_says(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) == expected


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    started_s = time.monotonic()
    assert not matches("*a" * 30 + "*b", "a" * 250)
    assert time.monotonic() - started_s < 1
