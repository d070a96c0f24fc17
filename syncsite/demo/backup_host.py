"""A backup host on loopback: an archive directory, what production writes there, and SFTP access to it.

Knows the format of change files, SSH keys and asyncssh; knows nothing of PostgreSQL.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import zstandard

from syncsite.demo.shop import Transaction, lsn_text

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".json": bytes,
    ".json.gz": gzip.compress,
    ".json.zst": zstandard.compress,
}


@dataclass(slots=True, kw_only=True)
class ArchiveWriter:
    """Writes change files into *folder* as a production would: whole under a temporary name, then renamed."""

    folder: Path
    _seq: int = field(default=0, init=False)
    _prev: str | None = field(default=None, init=False)

    def write_plain(self, transactions: Iterable[Transaction]) -> Path:
        """Write one file in the predecessor's way: records and nothing else."""
        transactions = list(transactions)
        lines = [
            json.dumps({**record, "ts": f"{transaction.committed:%Y-%m-%dT%H:%M:%S.%fZ}"}, ensure_ascii=False)
            for transaction in transactions
            for record in transaction.records
        ]
        return self._publish(transactions, ("\n".join(lines) + "\n").encode(), ".json")

    def write_framed(self, transactions: Iterable[Transaction], suffix: str = ".json") -> Path:
        """Write one file with header and footer, compressed as *suffix* says."""
        transactions = list(transactions)
        self._seq += 1
        header = {
            "syncdata": 1,
            "system_id": "7600000000000000001",
            "timeline": 1,
            "slot": "syncdata_slot",
            "epoch": 1,
            "seq": self._seq,
            "prev": self._prev,
            "start_lsn": lsn_text(transactions[0].commit_lsn),
            "created": f"{transactions[-1].committed:%Y-%m-%dT%H:%M:%SZ}",
        }
        lines = []
        for transaction in transactions:
            mark = {
                "xid": transaction.xid,
                "commit_lsn": lsn_text(transaction.commit_lsn),
                "ts": f"{transaction.committed:%Y-%m-%dT%H:%M:%S.%fZ}",
            }
            lines += [json.dumps({**record, **mark}, ensure_ascii=False) for record in transaction.records]
        body = _comment(header) + ("\n".join(lines) + "\n").encode()
        footer = {
            "end": True,
            "records": sum(len(transaction.records) for transaction in transactions),
            "transactions": len(transactions),
            "first_commit_lsn": lsn_text(transactions[0].commit_lsn),
            "last_commit_lsn": lsn_text(transactions[-1].commit_lsn),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return self._publish(transactions, body + _comment(footer), suffix)

    def _publish(self, transactions: list[Transaction], content: bytes, suffix: str) -> Path:
        path = self.folder / f"changes_{transactions[-1].committed:%Y%m%d_%H%M%S}{suffix}"
        if path.exists():
            raise FileExistsError(f"{path.name} is in the archive already")
        unfinished = path.with_name(f".{path.name}.part")
        unfinished.write_bytes(COMPRESSORS[suffix](content))
        unfinished.rename(path)
        self._prev = path.name.removesuffix(suffix) + ".json"
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class SftpAccess:
    """What a client needs to reach the archive."""

    host: str
    port: int
    user: str
    archive_dir: str
    key_file: Path
    known_hosts: Path


@contextmanager
def serve_sftp(folder: Path, keys: Path) -> Iterator[SftpAccess]:
    """Serve *folder* by SFTP on a loopback port, to the one client key that is made in *keys*."""
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    client_key = asyncssh.generate_private_key("ssh-ed25519")
    keys.mkdir(mode=0o700)
    key_file = keys / "client_key"
    client_key.write_private_key(str(key_file))
    key_file.chmod(0o600)
    connections: list[asyncssh.SSHServerConnection] = []
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        asyncssh.listen(
            "127.0.0.1",
            0,
            acceptor=connections.append,
            server_host_keys=[host_key],
            authorized_client_keys=asyncssh.import_authorized_keys(_public(client_key)),
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(folder).encode()),
        )
    )
    port = server.get_port()
    known_hosts = keys / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {_public(host_key)}")
    thread = threading.Thread(target=loop.run_forever, name="sftp", daemon=True)
    thread.start()
    try:
        yield SftpAccess(
            host="127.0.0.1",
            port=port,
            user="backupuser",
            archive_dir="/",
            key_file=key_file,
            known_hosts=known_hosts,
        )
    finally:
        asyncio.run_coroutine_threadsafe(_close(server, connections), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: asyncssh.SSHAcceptor, connections: list[asyncssh.SSHServerConnection]) -> None:
    server.close()
    await server.wait_closed()
    for connection in connections:
        connection.abort()
        await connection.wait_closed()


def _public(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode()


def _comment(content: dict[str, Any]) -> bytes:
    return b"# " + json.dumps(content, separators=(",", ":")).encode() + b"\n"
