"""One SFTP connection that is made again when it is lost. Knows host keys and logins; knows nothing of files.

A host whose key is unknown or has changed is always refused: what it sends is written into a database.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

import paramiko
from paramiko.hostkeys import InvalidHostKey

from syncdata.archive.login import Login
from syncdata.errors import ArchiveConnectionError
from syncdata.runtime.retry import Backoff

logger = logging.getLogger(__name__)
# paramiko logs its errors, with a traceback. They are raised here as ours, so its log would repeat them.
_paramiko_logger = logging.getLogger(f"{__name__}.paramiko")
_paramiko_logger.setLevel(logging.CRITICAL)

TRIES = 3
PAUSE_S = 1.0
CONNECT_TIMEOUT_S = 10.0
# When a server sends nothing for so long in the middle of an answer, the connection counts as lost.
SILENCE_TIMEOUT_S = 60.0
KEEPALIVE_S = 30

T = TypeVar("T")


class SftpConnection:
    """Connects at first use, and again after a loss: TRIES times, with growing, jittered pauses.

    Raises ArchiveConnectionError when the host cannot be reached, or refuses us, or is not the host we
    know (the last two at once), and OSError for what the server says about a path.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._client: paramiko.SSHClient | None = None
        self._sftp: paramiko.SFTPClient | None = None
        self._closed = threading.Event()

    def persevere(self, work: Callable[[paramiko.SFTPClient], T]) -> T:
        """Return what *work* returns; it is begun again when the connection is lost in the middle."""
        backoff = Backoff(PAUSE_S)
        for attempt in range(1, TRIES + 1):
            try:
                return work(self._connected())
            except (OSError, EOFError, paramiko.SSHException) as error:
                if not self._is_loss(error):
                    raise
                self._disconnect()
                reason = str(error) or type(error).__name__
                if attempt == TRIES or self._closed.is_set():
                    raise self._unreachable(reason) from error
                logger.info("%s: %s; trying again", self._location, reason)
            self._closed.wait(backoff.next_s())
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Disconnect for good; a request that is running fails."""
        self._closed.set()
        self._disconnect()

    def _is_loss(self, error: Exception) -> bool:
        """Tell whether *error* means a lost connection; if not, it is the server's answer about a path."""
        if isinstance(error, (EOFError, paramiko.SSHException, ConnectionError, TimeoutError)):
            return True
        channel = self._sftp and self._sftp.get_channel()
        return not channel or channel.closed

    def _connected(self) -> paramiko.SFTPClient:
        if self._sftp is None and not self._closed.is_set():
            self._client = paramiko.SSHClient()
            try:
                self._sftp = self._connect(self._client)
            except BaseException:
                self._disconnect()
                raise
        if self._sftp is None or self._closed.is_set():
            self._disconnect()
            raise self._unreachable("the archive has been closed")
        return self._sftp

    def _connect(self, client: paramiko.SSHClient) -> paramiko.SFTPClient:
        login = self._login
        client.set_log_channel(_paramiko_logger.name)
        client.set_missing_host_key_policy(_RefuseUnknownHost(self))
        self._load_known_hosts(client)
        key = self._load_key()
        alone = key is not None or login.password is not None
        try:
            client.connect(
                login.host,
                port=login.port,
                username=login.user,
                pkey=key,
                password=login.password,
                allow_agent=not alone,
                look_for_keys=not alone and login.key_file is None,
                sock=_wire(login.host, login.port),
                timeout=CONNECT_TIMEOUT_S,
                banner_timeout=CONNECT_TIMEOUT_S,
                auth_timeout=CONNECT_TIMEOUT_S,
                channel_timeout=CONNECT_TIMEOUT_S,
            )
        except paramiko.BadHostKeyException as error:
            raise self.changed_host(error.key, error.expected_key) from error
        except paramiko.SSHException as error:
            transport = client.get_transport()
            # A server that hangs up may be only busy; one that stays connected has refused the login.
            if isinstance(error, paramiko.AuthenticationException) or (transport and transport.is_active()):
                raise self._refused(key) from error
            raise
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(KEEPALIVE_S)
        sftp = client.open_sftp()
        channel = sftp.get_channel()
        assert channel is not None
        channel.settimeout(SILENCE_TIMEOUT_S)
        return sftp

    def _disconnect(self) -> None:
        client, self._client, self._sftp = self._client, None, None
        if client is not None:
            client.close()

    def _load_known_hosts(self, client: paramiko.SSHClient) -> None:
        path = self._login.known_hosts
        try:
            client.load_system_host_keys(str(path))
        except FileNotFoundError:
            pass  # Then every host is unknown, and the refusal says how to make it known.
        except (OSError, UnicodeDecodeError, InvalidHostKey) as error:
            raise ArchiveConnectionError(
                f"the known hosts cannot be read: {type(error).__name__}",
                hint="mend the file or name another with archive_known_hosts",
                file=str(path),
            ) from error

    def _load_key(self) -> paramiko.PKey | None:
        """Return the key of archive_key_file; None when there is none, or only the agent can open it."""
        path, passphrase = self._login.key_file, self._login.key_passphrase
        if path is None:
            return None
        for key_class in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
            try:
                return key_class.from_private_key_file(str(path), passphrase)
            except paramiko.PasswordRequiredException:
                return None
            except OSError as error:
                raise ArchiveConnectionError(
                    f"the key file cannot be read: {error.strerror}",
                    hint="check archive_key_file",
                    file=str(path),
                ) from error
            except (paramiko.SSHException, ValueError):
                continue  # Another kind of key, or a wrong passphrase: they look alike here.
        raise ArchiveConnectionError(
            "the key file holds no usable private key, or the passphrase is wrong",
            hint="check archive_key_file and archive_key_passphrase with: ssh-keygen -yf FILE",
            file=str(path),
        )

    # Words for the operator.

    @property
    def _location(self) -> str:
        """The login and the host, without secrets."""
        return f"{self._login.user}@{self._login.host}:{self._login.port}"

    @property
    def _known_as(self) -> str:
        """The host's name in known_hosts."""
        host, port = self._login.host, self._login.port
        return host if port == paramiko.config.SSH_PORT else f"[{host}]:{port}"

    def _unreachable(self, reason: str) -> ArchiveConnectionError:
        return ArchiveConnectionError(
            f"{self._location} cannot be reached, or the connection was lost: {reason}",
            hint="check archive_host, archive_port, the network and the SSH server",
        )

    def _refused(self, key: paramiko.PKey | None) -> ArchiveConnectionError:
        login = self._login
        tried = []
        if key is not None:
            tried.append(f"key {login.key_file} ({key.fingerprint})")
        elif login.key_file is not None:
            tried.append(f"the agent's keys, since {login.key_file} needs archive_key_passphrase")
        if login.password is not None:
            tried.append("the password")
        if not tried:
            tried.append("the SSH agent and the default keys")
        return ArchiveConnectionError(
            f"login refused for {self._location}; tried {' and '.join(tried)}",
            hint="add the public key to authorized_keys there, or set archive_key_file,"
            " archive_key_passphrase or archive_password",
        )

    def unknown_host(self, seen: paramiko.PKey) -> ArchiveConnectionError:
        return ArchiveConnectionError(
            f"host key of {self._known_as} is not known; it showed {_fingerprint(seen)}",
            hint=f"if that is the fingerprint its administrator names, add it: {self._keyscan}",
        )

    def changed_host(self, seen: paramiko.PKey, known: paramiko.PKey) -> ArchiveConnectionError:
        known_hosts = self._login.known_hosts
        return ArchiveConnectionError(
            f"host key of {self._known_as} has changed; it showed {_fingerprint(seen)},"
            f" known is {_fingerprint(known)}",
            hint="somebody may be in between; only if its administrator confirms the new fingerprint:"
            f" ssh-keygen -R '{self._known_as}' -f {known_hosts}; {self._keyscan}",
        )

    @property
    def _keyscan(self) -> str:
        login = self._login
        return f"ssh-keyscan -p {login.port} {login.host} >> {login.known_hosts}"


class _RefuseUnknownHost(paramiko.MissingHostKeyPolicy):
    def __init__(self, connection: SftpConnection) -> None:
        self._connection = connection

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise self._connection.unknown_host(key)


def _wire(host: str, port: int) -> socket.socket:
    wire = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
    # Otherwise each small read request may wait until the one before is acknowledged: a third of the rate.
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def _fingerprint(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.fingerprint}"
