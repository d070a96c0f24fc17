"""One SFTP session that is made again when it is lost. Knows logins and the steps of a connection, each of
which has its time limit; knows nothing of files.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import paramiko

from syncdata.archive.host_keys import HostKeys
from syncdata.archive.login import Login
from syncdata.archive.sftp_session import LOSSES, SftpSession
from syncdata.archive.ssh_route import Hop, find_route
from syncdata.archive.ssh_transport import (
    NothingInCommon,
    ProxyCommand,
    Transport,
    connect_to,
    failures_as_known,
    reason_of,
    time_limit,
)
from syncdata.errors import ArchiveConnectionError, shortened
from syncdata.runtime.retry import Backoff

logger = logging.getLogger(__name__)
# paramiko logs its errors, with a traceback. They are raised here as ours, so its log would repeat them.
_paramiko_logger = logging.getLogger(f"{__name__}.paramiko")
_paramiko_logger.setLevel(logging.CRITICAL)

TRIES = 3
PAUSE_S = 1.0
# For each step of a connection: an address, the greeting, the key exchange, a channel, the start of SFTP. The
# ConnectTimeout of ~/.ssh/config takes its place.
CONNECT_TIMEOUT_S = 10.0
# For all of a login: greeting, key exchange and every key that is tried.
LOGIN_TIMEOUT_S = 60.0
# When a server does not finish an answer for so long, the connection counts as lost.
SILENCE_TIMEOUT_S = 60.0
KEEPALIVE_S = 30

T = TypeVar("T")


class _Closeable(Protocol):
    def close(self) -> None: ...


class SftpConnection:
    """Connects at first use, and again after a loss: TRIES times, with growing, jittered pauses.

    Raises ArchiveConnectionError when the host cannot be reached, or refuses us, or is not the host we
    know (the last two at once), and OSError for what the server says about a path.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._sftp: SftpSession | None = None
        self._opened: list[_Closeable] = []
        self._closed = threading.Event()
        self._told: set[str] = set()
        self._location = f"{login.user}@{login.host}"

    def persevere(self, work: Callable[[SftpSession], T]) -> T:
        """Return what *work* returns; it is begun again when the connection is lost in the middle."""
        backoff = Backoff(PAUSE_S)
        for attempt in range(1, TRIES + 1):
            try:
                return work(self._connected())
            except (OSError, EOFError, paramiko.SSHException) as error:
                if isinstance(error, OSError) and self._sftp is not None and not isinstance(error, LOSSES):
                    raise  # The server's answer about a path.
                self._disconnect()
                reason = reason_of(error)
                if attempt == TRIES or self._closed.is_set():
                    raise self._unreachable(reason) from error
                logger.info("%s: %s; trying again", self._location, reason)
            self._closed.wait(backoff.next_s())
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Disconnect for good; a request that is running fails."""
        self._closed.set()
        self._disconnect()

    def _connected(self) -> SftpSession:
        if self._sftp is None:
            try:
                self._sftp = self._connect()
            except BaseException:
                self._disconnect()
                raise
        if self._closed.is_set():
            self._disconnect()
            raise self._unreachable("the archive has been closed")
        return self._sftp

    def _connect(self) -> SftpSession:
        below: Transport | None = None
        for hop in find_route(self._login):
            self._location = hop.location
            for warning in sorted(set(hop.config.warnings) - self._told):
                self._told.add(warning)
                logger.warning("%s", warning)
            below = self._log_in(hop, self._wire(hop, below))
        assert below is not None
        return self._begin(below)

    def _wire(self, hop: Hop, below: Transport | None) -> Any:
        """Return what carries the bytes to *hop*: a channel through the host before it, a program, or TCP."""
        timeout_s = self._step_timeout_s(hop)
        if below is not None:
            with failures_as_known():
                return below.open_channel(
                    "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=timeout_s
                )
        if hop.proxy_command is not None:
            return self._keep(ProxyCommand(hop.proxy_command)).wire
        return self._keep(connect_to(hop.host, hop.port, timeout_s=timeout_s, is_closed=self._closed.is_set))

    def _log_in(self, hop: Hop, wire: Any) -> Transport:
        host_keys = HostKeys(self._login, hop, self._told)
        credentials = self._credentials(hop)
        client = self._keep(paramiko.SSHClient())
        client.set_log_channel(_paramiko_logger.name)
        client.set_missing_host_key_policy(host_keys)

        def make_transport(wire: Any, **options: Any) -> Transport:
            return self._keep(
                Transport(
                    wire,
                    host_key_algorithms=host_keys.algorithms(),
                    allowed=self._login.allow_algorithms,
                    timeout_s=self._step_timeout_s(hop),
                )
            )

        def stage() -> str:
            transport = client.get_transport()
            return transport.stage if isinstance(transport, Transport) else "the connection"

        try:
            with time_limit(LOGIN_TIMEOUT_S, client.close, stage), failures_as_known():
                client.connect(
                    hop.host,
                    port=hop.port,
                    username=hop.user,
                    sock=wire,
                    # The limit around it ends a login that takes too long; paramiko's own would be a refusal.
                    auth_timeout=LOGIN_TIMEOUT_S * 2,
                    transport_factory=make_transport,
                    **credentials,
                )
        except NothingInCommon as error:
            raise self._nothing_in_common(error) from error
        except paramiko.SSHException as error:
            transport = client.get_transport()
            # A server that hangs up may be only busy; one that stays connected has refused the login.
            if transport is not None and transport.is_active() and not self._closed.is_set():
                raise self._refused(credentials) from error
            raise _Lost(f"{reason_of(error)} (at {stage()})") from error
        except (OSError, EOFError) as error:
            raise _Lost(f"{reason_of(error)} (at {stage()})") from error
        transport = client.get_transport()
        assert isinstance(transport, Transport)
        transport.set_keepalive(KEEPALIVE_S)
        return transport

    def _begin(self, transport: Transport) -> SftpSession:
        def doing() -> str:
            return "the start of SFTP"

        with time_limit(CONNECT_TIMEOUT_S, transport.close, doing), failures_as_known():
            channel = transport.open_session(timeout=CONNECT_TIMEOUT_S)
            try:
                channel.invoke_subsystem("sftp")
            except paramiko.SSHException as error:
                raise _Lost("the server does not start SFTP") from error
            session = SftpSession(channel, SILENCE_TIMEOUT_S)
            session.begin()
        return session

    def _step_timeout_s(self, hop: Hop) -> float:
        return hop.config.connect_timeout_s or CONNECT_TIMEOUT_S

    def _keep(self, opened: Any) -> Any:
        """Remember what `_disconnect` has to close; close it at once when we are closed already."""
        self._opened.append(opened)
        if self._closed.is_set():
            opened.close()
        return opened

    def _disconnect(self) -> None:
        opened, self._opened, self._sftp = self._opened, [], None
        for item in reversed(opened):
            with suppress(OSError, EOFError, paramiko.SSHException):
                item.close()

    # Credentials

    def _credentials(self, hop: Hop) -> dict[str, Any]:
        """Return what to log in with at *hop*, as `SSHClient.connect` takes it."""
        login, config = self._login, hop.config
        if hop.is_last and (login.key_file is not None or login.password is not None):
            key = self._load_key()
            return {
                "pkey": key,
                "password": login.password,
                # A key file that only the agent can open is looked for there.
                "allow_agent": key is None and login.password is None,
                "look_for_keys": False,
            }
        files = config.identity_files
        if files is None and login.key_file is not None:
            # ssh would try the default keys at a jump host; the one that we are given is likelier.
            return {"pkey": self._load_key(), "allow_agent": True, "look_for_keys": False}
        return {
            "key_filename": [str(file) for file in files or () if _is_usable(file, login.key_passphrase)],
            "passphrase": login.key_passphrase,
            "allow_agent": not config.identities_only,
            "look_for_keys": files is None,
        }

    def _load_key(self) -> paramiko.PKey | None:
        """Return the key of archive_key_file; None when there is none, or only the agent can open it."""
        path = self._login.key_file
        if path is None:
            return None
        try:
            return _read_key(path, self._login.key_passphrase)
        except paramiko.PasswordRequiredException:
            return None
        except OSError as error:
            raise ArchiveConnectionError(
                f"the key file cannot be read: {error.strerror}",
                hint="check archive_key_file",
                file=str(path),
            ) from error
        except ValueError as error:
            raise ArchiveConnectionError(
                "the key file holds no usable private key, or the passphrase is wrong",
                hint="check archive_key_file and archive_key_passphrase with: ssh-keygen -yf FILE",
                file=str(path),
            ) from error

    # Words for the operator.

    def _unreachable(self, reason: str) -> ArchiveConnectionError:
        return ArchiveConnectionError(
            f"{self._location} cannot be reached, or the connection was lost: {reason}",
            hint="check archive_host, archive_port, the network and the SSH server",
        )

    def _refused(self, credentials: dict[str, Any]) -> ArchiveConnectionError:
        login = self._login
        tried = []
        if key := credentials.get("pkey"):
            tried.append(f"key {login.key_file} ({key.fingerprint})")
        tried += [f"key {name}" for name in credentials.get("key_filename", ())]
        if credentials["allow_agent"] and login.key_file is not None and not key:
            tried.append(f"the agent's keys, since {login.key_file} needs archive_key_passphrase")
        elif credentials["allow_agent"]:
            tried.append("the SSH agent")
        if credentials["look_for_keys"]:
            tried.append("the default keys")
        if credentials.get("password") is not None:
            tried.append("the password")
        return ArchiveConnectionError(
            f"login refused for {self._location}; tried {' and '.join(tried) or 'nothing: there is no key'}",
            hint="add the public key to authorized_keys there, or set archive_key_file,"
            " archive_key_passphrase or archive_password",
        )

    def _nothing_in_common(self, error: NothingInCommon) -> ArchiveConnectionError:
        hint = "have its SSH server updated, or another one set up"
        if error.could_allow:
            names = ", ".join(f'"{name}"' for name in error.could_allow)
            hint = (
                "have its SSH server updated; only where that cannot be, allow what is weak by name:"
                f" archive_allow_algorithms = [{names}]"
            )
        offered = shortened(", ".join(error.offered))
        return ArchiveConnectionError(
            f"{self._location} offers no {error.kind} that is allowed here, but only: {offered}", hint=hint
        )


class _Lost(paramiko.SSHException):
    """The connection did not come about, or was lost before the login was through."""


def _read_key(path: Path, passphrase: str | None) -> paramiko.PKey:
    """Return the private key. Raises OSError, PasswordRequiredException, and ValueError for what is none."""
    for key_class in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return key_class.from_private_key_file(str(path), passphrase)
        except (OSError, paramiko.PasswordRequiredException):
            raise
        except Exception as error:
            # Another kind of key, or a wrong passphrase: they look alike here, as does a broken file.
            logger.debug("%s is no %s: %s", path, key_class.__name__, type(error).__name__)
    raise ValueError("no usable private key")


def _is_usable(path: Path, passphrase: str | None) -> bool:
    """Tell whether a key of ~/.ssh/config can be tried; ssh, too, passes over those that cannot."""
    try:
        _read_key(path, passphrase)
    except (OSError, ValueError, paramiko.PasswordRequiredException) as error:
        logger.debug("the key %s is not tried: %s", path, type(error).__name__)
        return False
    return True
