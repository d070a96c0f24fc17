"""Host certificates made by ssh-keygen, and what is wrong with some."""

from __future__ import annotations

import base64
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import paramiko
import pytest

from syncdata.archive.host_certificate import certificate_of
from tests.sshd import make_key

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen on this machine")


def blob(folder: Path, *options: str, kind: str = "ed25519") -> bytes:
    """The certificate of a new key, signed by a new authority."""
    for name in ("authority", "host"):
        make_key(folder / name, kind=kind)
    command = ["ssh-keygen", "-q", "-s", str(folder / "authority"), "-I", "x", *options]
    subprocess.run([*command, str(folder / "host.pub")], check=True, capture_output=True)
    return base64.b64decode((folder / "host-cert.pub").read_text().split()[1])


def shown(content: bytes, kind: str = "ed25519") -> paramiko.PKey:
    key_class = {"ed25519": paramiko.Ed25519Key, "ecdsa": paramiko.ECDSAKey, "rsa": paramiko.RSAKey}[kind]
    return key_class(data=content)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_of_every_kind_of_key_is_read(tmp_path: Path, kind: str) -> None:
    certificate = certificate_of(shown(blob(tmp_path, "-h", "-n", "backup,vault", kind=kind), kind))
    assert certificate is not None
    assert certificate.principals == ("backup", "vault")
    assert certificate.authority == base64.b64decode((tmp_path / "authority.pub").read_text().split()[1])
    assert certificate.objection("backup") == "" and certificate.objection("vault") == ""
    assert certificate.objection("other") == "its certificate does not name it"


@pytest.mark.parametrize(
    ("options", "objection"),
    [
        (("-n", "backup"), "its certificate is not one for hosts"),
        (("-h", "-n", "backup", "-O", "critical:new@example.com=1"), "conditions that are not understood"),
        (("-h", "-n", "backup", "-V", "-2h:-1h"), "has expired"),
        (("-h", "-n", "backup", "-V", "+1h:+2h"), "is not valid yet"),
    ],
)
def test_what_makes_a_certificate_not_count(tmp_path: Path, options: tuple[str, ...], objection: str) -> None:
    certificate = certificate_of(shown(blob(tmp_path, *options)))
    assert certificate is not None and objection in certificate.objection("backup")


def test_a_key_without_a_certificate_has_none(tmp_path: Path) -> None:
    make_key(tmp_path / "host")
    content = base64.b64decode((tmp_path / "host.pub").read_text().split()[1])
    assert certificate_of(shown(content)) is None


def test_a_certificate_that_was_altered_is_an_error(tmp_path: Path) -> None:
    content = blob(tmp_path, "-h", "-n", "backup")
    forged = content.replace(b"backup", b"victim")
    with pytest.raises(paramiko.SSHException, match="not signed by the authority"):
        certificate_of(shown(forged))


@pytest.mark.parametrize("cut", [1, 10, 60, 100])
def test_a_certificate_that_is_cut_off_or_has_more_behind_it_never_counts(tmp_path: Path, cut: int) -> None:
    content = blob(tmp_path, "-h", "-n", "backup")
    with suppress(paramiko.SSHException):
        certificate = certificate_of(shown(content[:-cut]))
        assert certificate is not None and certificate.objection("backup").startswith(
            "its certificate is signed"
        )
    with pytest.raises(paramiko.SSHException):
        certificate_of(shown(content + b"more"))
