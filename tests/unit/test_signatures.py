"""Keys of signatures, and what a signature covers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from syncdata.archive.signatures import PublicKeys, load_signer, read_public_keys
from syncdata.changes.head import Head
from syncdata.changes.header import Footer, Header
from syncdata.changes.reader import Inspection
from syncdata.conf import config_from_toml
from syncdata.errors import ConfigError, ParseError
from tests.keys import KeyPair, make_key

NAME = "changes_20260205_103000.json.zst"
FOOTER = Footer(
    end=True,
    records=3,
    transactions=2,
    first_commit_lsn="0/10",
    last_commit_lsn="0/20",
    end_lsn="0/21",
    sha256="ab" * 32,
)
HEAD = Head(version=1, time="2026-02-05T10:30:00Z", every_s=60.0, newest_file=NAME)


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path / "signing")


def error_of(keys: PublicKeys, footer: Footer | None, name: str = NAME) -> str:
    inspection = Inspection(header=Header(syncdata=1), footer=footer)
    return str(keys.checked(name, inspection).error or "")


def test_what_was_signed_is_believed_also_when_it_was_compressed_since(key: KeyPair) -> None:
    footer = key.signer.sign_footer(NAME, FOOTER)
    assert footer.key == key.signer.fingerprint and footer.key.startswith("SHA256:")
    for name in (NAME, "changes_20260205_103000.json", "changes_20260205_103000.json.gz"):
        assert error_of(key.public, footer, name) == ""


@pytest.mark.parametrize("field", [name for name in Footer.__struct_fields__ if name not in ("end", "key")])
def test_every_fact_of_a_footer_is_signed(key: KeyPair, field: str) -> None:
    footer = key.signer.sign_footer(NAME, FOOTER)
    other: dict[str, Any] = {field: 7 if field in ("records", "transactions") else "0/7"}
    assert "SHD_SYN_063" in error_of(key.public, msgspec.structs.replace(footer, **other))


@pytest.mark.parametrize(
    "name",
    [
        "changes_20260205_103001.json.zst",
        "snapshot_20260205_103000/public.users.json.gz",
    ],
)
def test_a_signature_is_of_one_name(key: KeyPair, name: str) -> None:
    assert "is not what was signed" in error_of(key.public, key.signer.sign_footer(NAME, FOOTER), name)


def test_a_snapshot_of_one_table_is_none_of_another(key: KeyPair) -> None:
    users = "snapshot_20260205_103000/public.users.json.gz"
    footer = key.signer.sign_footer(users, FOOTER)
    assert error_of(key.public, footer, users) == ""
    assert error_of(key.public, footer, users.replace("users", "orders"))
    assert error_of(key.public, footer, users.replace("103000", "103001"))


def test_what_is_not_signed_or_by_another_key_says_what_to_do(key: KeyPair, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    assert "it is not signed" in error_of(key.public, FOOTER)
    assert "it is not signed" in error_of(key.public, None)  # a plain file
    foreign = error_of(key.public, other.signer.sign_footer(NAME, FOOTER))
    assert other.signer.fingerprint in foreign and "archive_public_keys" in foreign
    # One that names our key, too.
    forged = msgspec.structs.replace(other.signer.sign_footer(NAME, FOOTER), key=key.signer.fingerprint)
    assert "is not what was signed" in error_of(key.public, forged)


def test_while_keys_change_both_are_believed(key: KeyPair, tmp_path: Path) -> None:
    new = make_key(tmp_path / "new")
    both = PublicKeys([key.line, new.line])
    assert both.fingerprints == [key.signer.fingerprint, new.signer.fingerprint]
    for signer in (key.signer, new.signer):
        assert error_of(both, signer.sign_footer(NAME, FOOTER)) == ""


@pytest.mark.parametrize("field", [name for name in Head.__struct_fields__ if name != "key"])
def test_every_fact_of_a_head_is_signed(key: KeyPair, field: str) -> None:
    head = key.signer.sign_head(HEAD)
    key.public.check_head(head, "head.json")
    other: dict[str, Any] = {field: 7 if field in ("version", "every_s", "timeline") else "x"}
    with pytest.raises(ParseError, match="SHD_SYN_063: head.json"):
        key.public.check_head(msgspec.structs.replace(head, **other), "head.json")
    with pytest.raises(ParseError, match="not signed"):
        key.public.check_head(HEAD, "head.json")


def test_both_forms_of_a_private_key_are_read_and_their_fingerprint_is_ssh_keygens(tmp_path: Path) -> None:
    made = make_key(tmp_path / "openssh")
    (tmp_path / "pem").write_bytes(
        made.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "pem").chmod(0o600)
    assert load_signer(tmp_path / "pem").fingerprint == made.signer.fingerprint
    assert "Ed25519PrivateKey" not in repr(made.signer)


def with_passphrase(path: Path, made: KeyPair) -> None:
    path.write_bytes(
        made.private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, BestAvailableEncryption(b"secret"))
    )


def of_another_kind(path: Path, made: KeyPair) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def the_public_half(path: Path, made: KeyPair) -> None:
    path.write_text(made.line)


def garbage(path: Path, made: KeyPair) -> None:
    path.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\xff\n")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path, made: path.chmod(0o640), "can be read by others"),
        (lambda path, made: path.chmod(0o604), "run: chmod 600"),
        (lambda path, made: path.unlink(), "cannot be read"),
        (with_passphrase, "without a passphrase"),
        (of_another_kind, "no ed25519 private key"),
        (the_public_half, "no ed25519 private key"),
        (garbage, "ssh-keygen -t ed25519"),
        (lambda path, made: path.write_bytes(b""), "no ed25519 private key"),
    ],
)
def test_a_private_key_that_cannot_be_used_names_the_key_of_the_configuration(
    tmp_path: Path, spoil: Callable[[Path, KeyPair], None], problem: str
) -> None:
    path = tmp_path / "key"
    spoil(path, make_key(path))
    with pytest.raises(ConfigError, match=r"SHD_SYN_002: source\.signing_key_file") as caught:
        load_signer(path)
    assert problem in str(caught.value) and "secret" not in str(caught.value)


def test_public_keys_are_lines_or_files_of_lines(key: KeyPair, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    (tmp_path / "keys.pub").write_text(f"# ours\n\n{key.line} production@2026\n{other.line}\n")
    assert read_public_keys([str(tmp_path / "keys.pub"), key.line]) == (key.line, other.line)


def configured(value: object) -> Any:
    values = {
        "archive_backend": "local",
        "archive_dir": "/srv",
        "pg_database": "d",
        "archive_public_keys": value,
    }
    return config_from_toml(values, {}, Path("/etc/syncdata.toml"))


def test_the_configuration_takes_one_key_or_several(key: KeyPair) -> None:
    assert configured(f"{key.line} a comment").archive_public_keys == (key.line,)
    assert configured([key.line]).archive_public_keys == (key.line,)


@pytest.mark.parametrize(
    "value", [[], [""], ",", ["ssh-ed25519 AAAA"], ["/no/such/file"], 7, [7], ["ssh-rsa AAAA"], ["\0"]]
)
def test_a_public_key_that_is_none_is_a_problem_and_never_means_that_nothing_is_checked(
    value: object,
) -> None:
    with pytest.raises(ConfigError, match="SHD_SYN_002.*\n.*archive_public_keys: "):
        configured(value)


def test_the_private_key_in_the_place_of_the_public_one_is_not_quoted(key: KeyPair) -> None:
    text = key.private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    for value in (text, [text], [f"ssh-ed25519 {text}"]):
        with pytest.raises(ConfigError) as caught:
            configured(value)
        assert text.splitlines()[1][:20] not in str(caught.value)


def test_the_line_of_a_key_is_openssh_s(key: KeyPair) -> None:
    line = key.private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert key.line == line
