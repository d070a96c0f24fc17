"""One encrypted connection, with limits: what it may use, how much the other end may send, and when it ends.

Knows paramiko, and where paramiko would wait or read without end; knows nothing of logins or files.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import paramiko
from paramiko.packet import Packetizer

from syncdata.archive.ssh_algorithms import nothing_in_common, permitted
from syncdata.errors import SyncError, shortened

# OpenSSH's own limit of a packet (packet.c), and more than any greeting of a company's lawyers.
MOST_PACKET_BYTES = 256 * 1024
MOST_GREETING_BYTES = 64 * 1024
_TICK_S = 0.1

# What the library knows, the weak included. Its tables have no public name.
_KNOWN: Any = paramiko.Transport
PREFERRED_HOST_KEYS: Sequence[str] = _KNOWN._preferred_keys

# The ways in which paramiko fails that say something of the connection, and those that we raise ourselves.
_KNOWN_FAILURES = (SyncError, OSError, EOFError, paramiko.SSHException)


class NothingInCommon(paramiko.SSHException):
    """The server offers no algorithm that may be used. *could_allow* are those of its own that could be."""

    def __init__(self, kind: str, offered: Sequence[str], could_allow: Sequence[str]) -> None:
        super().__init__(f"no {kind} in common")
        self.kind, self.offered, self.could_allow = kind, offered, could_allow


class Transport(paramiko.Transport):
    """Offers the *host_key_algorithms* in their order, and no weak algorithm but those of *allowed*."""

    def __init__(
        self, wire: Any, *, host_key_algorithms: Sequence[str], allowed: Sequence[str], timeout_s: float
    ) -> None:
        super().__init__(wire, packetizer_class=_BoundedPacketizer)
        options = self.get_security_options()
        options.ciphers = permitted(self.preferred_ciphers, allowed)
        options.digests = permitted(self.preferred_macs, allowed)
        options.kex = permitted(self.preferred_kex, allowed)
        # The keys for a login have no option.
        self._preferred_pubkeys = tuple(permitted(self.preferred_pubkeys, allowed))
        self._host_key_algorithms = tuple(host_key_algorithms)
        self.banner_timeout = timeout_s
        self.handshake_timeout = timeout_s

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return self._host_key_algorithms

    @property
    def stage(self) -> str:
        """How far the connection has come, for people."""
        if not self.remote_version:
            return "waiting for the server's greeting"
        if not self.initial_kex_done:
            return "the key exchange"
        return "the login" if not self.is_authenticated() else "opening a channel"

    def _parse_kex_init(self, message: paramiko.Message) -> None:
        offered = _KNOWN._really_parse_kex_init(self, paramiko.Message(message.asbytes()))
        ours = {
            "kex_algo_list": self.preferred_kex,
            "server_key_algo_list": self.preferred_keys,
            "server_encrypt_algo_list": self.preferred_ciphers,
            "server_mac_algo_list": self.preferred_macs,
        }
        known = {
            "kex_algo_list": _KNOWN._preferred_kex,
            "server_key_algo_list": _KNOWN._preferred_keys,
            "server_encrypt_algo_list": _KNOWN._preferred_ciphers,
            "server_mac_algo_list": _KNOWN._preferred_macs,
        }
        if missing := nothing_in_common(offered, ours, known):
            raise NothingInCommon(*missing)
        _KNOWN._parse_kex_init(self, message)


class _BoundedPacketizer(Packetizer):
    _greeting_bytes = 0

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        if n > MOST_PACKET_BYTES:
            raise paramiko.SSHException(f"the server announces a packet of {n} bytes")
        return super().read_all(n, check_rekey)

    def _read_timeout(self, timeout: float) -> bytes:
        block = cast(bytes, cast(Any, super())._read_timeout(timeout))
        self._greeting_bytes += len(block)
        if self._greeting_bytes > MOST_GREETING_BYTES:
            raise paramiko.SSHException(": the server greets without end")
        return block


@contextmanager
def failures_as_known() -> Iterator[None]:
    """Raise whatever paramiko stumbles over (struct.error, UnicodeDecodeError, …) as an SSHException."""
    try:
        yield
    except _KNOWN_FAILURES:
        raise
    except Exception as error:
        raise paramiko.SSHException(
            f"what the server sent makes no sense ({type(error).__name__})"
        ) from error


@contextmanager
def time_limit(seconds: float, end: Callable[[], object], doing: Callable[[], str]) -> Iterator[None]:
    """Call *end*, which makes what runs in the block fail, after *seconds*; then raise TimeoutError."""
    has_expired = threading.Event()
    doing_then = ""

    def expire() -> None:
        nonlocal doing_then
        doing_then = doing()
        has_expired.set()
        end()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except _KNOWN_FAILURES as error:
        if has_expired.is_set():
            raise TimeoutError(f"{doing_then} took longer than {seconds:g} seconds") from error
        raise
    finally:
        timer.cancel()
    if has_expired.is_set():
        raise TimeoutError(f"{doing_then} took longer than {seconds:g} seconds")


def connect_to(host: str, port: int, *, timeout_s: float, is_closed: Callable[[], bool]) -> socket.socket:
    """Return a connected socket. Each address of the host may take *timeout_s*. Raises OSError."""
    problem: OSError = OSError("the name has no address")
    for family, kind, protocol, _, address in _addresses(host, port, timeout_s, is_closed):
        wire = socket.socket(family, kind, protocol)
        try:
            _connect(wire, address, timeout_s, is_closed)
            # Otherwise a small request may wait until the one before is acknowledged: a third of the rate.
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return wire
        except OSError as error:
            wire.close()
            problem = error
            if is_closed():
                break
    raise problem


def _addresses(host: str, port: int, timeout_s: float, is_closed: Callable[[], bool]) -> list[Any]:
    """Return what getaddrinfo says, which nothing can interrupt: it is asked in a thread."""
    answers: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            answers.put(error)
        except (UnicodeError, ValueError):
            answers.put(OSError("that is no name of a host"))

    threading.Thread(target=ask, daemon=True, name="syncdata-name").start()
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and not is_closed():
        with suppress(queue.Empty):
            answer = answers.get(timeout=_TICK_S)
            if isinstance(answer, OSError):
                raise answer
            return answer
    raise TimeoutError(f"looking up the name took longer than {timeout_s:g} seconds")


def _connect(wire: socket.socket, address: Any, timeout_s: float, is_closed: Callable[[], bool]) -> None:
    wire.setblocking(False)
    wire.connect_ex(address)
    waiting = select.poll()
    waiting.register(wire, select.POLLOUT)
    until = time.monotonic() + timeout_s
    while not waiting.poll(_TICK_S * 1000):
        if is_closed() or time.monotonic() >= until:
            raise TimeoutError(f"no connection came about within {timeout_s:g} seconds")
    if number := wire.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))
    wire.getpeername()  # Raises where the address was refused at once.
    wire.settimeout(timeout_s)


class ProxyCommand:
    """A program whose input and output are the connection (ssh_config(5), ProxyCommand)."""

    def __init__(self, command: str) -> None:
        self.wire, theirs = socket.socketpair()
        with theirs:
            # Through the shell, as ssh does: the command is written for one, in the user's own file.
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def close(self) -> None:
        self.wire.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
            return
        self._process.kill()
        self._process.wait()


def reason_of(error: BaseException) -> str:
    """Return what *error* says, short and printable, for an operator."""
    if isinstance(error, OSError) and error.strerror:
        return shortened(error.strerror)
    if isinstance(error, EOFError) and not str(error):
        return "the server closed the connection"
    return shortened(str(error)) or type(error).__name__
