"""Connections over TLS, to a server that takes no others, on both sides."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from syncsite.demo import postgres as demo
from syncsite.demo.postgres import PostgresServer
from tests import processes
from tests.postgres import VERSIONS, binaries_of

HBA = """
hostssl with_certificate all 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True)
class Authority:
    """A throw-away certificate authority."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.path.write_bytes(self._sign(self.name, self.key.public_key(), is_authority=True))

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.crt"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate for *name*, and for the server's address, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate_file, key_file = self.folder / f"{name}-{self.name}.crt", self.folder / f"{name}.key"
        certificate_file.write_bytes(self._sign(name, key.public_key(), is_authority=False))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        key_file.chmod(0o600)
        return certificate_file, key_file

    def _sign(self, name: str, key: Any, *, is_authority: bool) -> bytes:
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        )
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Encrypted:
    """A server that takes connections over TLS alone, and the authority that vouches for it."""

    server: PostgresServer
    authority: Authority
    other: Authority

    def create(self, name: str) -> None:
        with self.server.connect(autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    # Not below pytest's own directory, which PostgreSQL's account cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="syncdata-tls-"))
    folder.chmod(0o755)
    authority = Authority(folder, "good")
    certificate, key = authority.issue("server")
    (folder / "hba.conf").write_text(HBA)
    if (account := demo._unprivileged_account()) is not None:
        shutil.chown(key, account.pw_uid)
    # The embedded server cannot do TLS; the system's can.
    settings = demo.SETTINGS | {
        "ssl": "on",
        "ssl_cert_file": str(certificate),
        "ssl_key_file": str(key),
        "ssl_ca_file": str(authority.path),
        "hba_file": str(folder / "hba.conf"),
    }
    server = PostgresServer(binaries=binaries_of(VERSIONS[1]), settings=settings)
    server.start()
    try:
        yield Encrypted(server, authority, Authority(folder, "other"))
    finally:
        server.stop()
        shutil.rmtree(folder)


def run(
    folder: Path, keys: dict[str, Any], *argv: str, source: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    (folder / "archive").mkdir(exist_ok=True)
    keys = {"archive_backend": "local", "archive_dir": str(folder / "archive")} | keys
    lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
    if source is not None:
        lines += ["[source]", *(f"{name} = {json.dumps(value)}" for name, value in source.items())]
    config = folder / "syncdata.toml"
    config.write_text("\n".join(lines))
    config.chmod(0o600)
    return processes.run("manage.py", *argv, env=os.environ | {"DATA_SYNC_CONFIG": str(config)})


def login(encrypted: Encrypted, database: str, **tls: Any) -> dict[str, Any]:
    server = encrypted.server
    return {
        "pg_host": server.host,
        "pg_port": server.port,
        "pg_user": server.user,
        "pg_password": server.password,
        "pg_database": database,
        **tls,
    }


def proved(authority: Authority) -> dict[str, Any]:
    return {"pg_sslmode": "verify-full", "pg_sslrootcert": str(authority.path)}


def test_the_local_side_proves_who_its_server_is(encrypted: Encrypted, tmp_path: Path) -> None:
    encrypted.create("local_side")
    right = login(encrypted, "local_side", **proved(encrypted.authority))

    for argv in (["migrate", "-v", "0"], ["syncdata_start", "--once"], ["list_tables"]):
        done = run(tmp_path, right, *argv)
        assert done.returncode == 0, done.stderr

    for wrong, words in [
        (proved(encrypted.other), "certificate verify failed"),
        ({"pg_sslmode": "disable"}, "no encryption"),
    ]:
        done = run(tmp_path, login(encrypted, "local_side", **wrong), "syncdata_start", "--once")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "SHD_SYN_090" in done.stderr and words in done.stderr


def test_a_client_certificate_takes_the_place_of_a_password(encrypted: Encrypted, tmp_path: Path) -> None:
    encrypted.create("with_certificate")
    certificate, key = encrypted.authority.issue("postgres")
    keys = login(encrypted, "with_certificate", **proved(encrypted.authority))
    del keys["pg_password"]

    refused = run(tmp_path, keys, "migrate", "-v", "0")
    done = run(tmp_path, keys | {"pg_sslcert": str(certificate), "pg_sslkey": str(key)}, "migrate", "-v", "0")

    assert refused.returncode == 1 and "certificate" in refused.stderr
    assert done.returncode == 0, done.stderr


def test_the_archiver_reads_and_replicates_over_tls(encrypted: Encrypted, tmp_path: Path) -> None:
    encrypted.create("production_side")
    with encrypted.server.connect("production_side", autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    right = login(encrypted, "production_side", tables=["t"], **proved(encrypted.authority))

    for argv in (
        ["setup_logical_replication"],
        ["archive_changes", "--once"],
        ["archive_changes", "--snapshot"],
    ):
        done = run(tmp_path, {}, *argv, source=right)
        assert done.returncode == 0, done.stderr

    for wrong in (proved(encrypted.other), {"pg_sslmode": "disable"}):
        done = run(
            tmp_path, {}, "archive_changes", "--once", source=right | wrong | {"pg_sslrootcert": ""} | wrong
        )
        assert done.returncode == 1 and "SHD_SYN_101" in done.stderr and "Traceback" not in done.stderr
