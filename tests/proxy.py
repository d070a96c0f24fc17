"""TCP proxies: one loses the answer to a COMMIT, the other one can be broken and mended."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from syncsite.demo.postgres import PostgresServer


class CommitLosingProxy:
    """Passes everything on, but cuts the connection after the n-th COMMIT: the server gets it, the client
    never hears of it."""

    def __init__(self, server: PostgresServer, *, lose_commit: int) -> None:
        self._server = server
        self._left = lose_commit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.is_cut = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection((self._server.host, self._server.port))
            threading.Thread(target=self._to_server, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self._to_client, args=(upstream, client), daemon=True).start()

    def _to_server(self, client: socket.socket, upstream: socket.socket) -> None:
        while data := _receive(client):
            # A simple query message: 'Q', its length, the text with a final zero byte.
            if b"COMMIT\0" in data and not self.is_cut.is_set():
                self._left -= 1
                if self._left == 0:
                    self.is_cut.set()
                    client.shutdown(socket.SHUT_RDWR)
                    upstream.sendall(data)  # The server commits, and then finds that nobody is there.
                    break
            upstream.sendall(data)
        with suppress(OSError):  # The other thread may have closed it.
            upstream.shutdown(socket.SHUT_WR)

    def _to_client(self, upstream: socket.socket, client: socket.socket) -> None:
        while data := _receive(upstream):
            try:
                client.sendall(data)
            except OSError:
                break
        client.close()
        upstream.close()


def _receive(connection: socket.socket, most_bytes: int = 1 << 16) -> bytes:
    try:
        return connection.recv(most_bytes)
    except OSError:
        return b""


class Link:
    """A TCP link to *port* of this machine, to cut, stall, slow down or refuse, and to mend.

    ``accepted`` counts the connections that were let through, ``broken`` what was really broken: connections
    cut or refused, pieces held up.
    """

    def __init__(self, port: int) -> None:
        self._target_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._bytes_left: int | None = None
        self._pause_s = 0.0
        self._is_refused = False
        self.accepted = self.broken = 0
        self.mend()
        threading.Thread(target=self._accept, daemon=True).start()

    def mend(self) -> None:
        """Let everything through; what was held back goes on."""
        self._is_refused, self._pause_s, self._bytes_left = False, 0.0, None
        self._flows.set()

    def cut(self) -> None:
        """End the connections there are; new ones are served."""
        with self._lock:
            sockets = list(self._sockets)
        self.broken += len(sockets) > 0
        for connection in sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def cut_after(self, size_bytes: int) -> None:
        """Cut when so many more bytes have passed."""
        self._bytes_left = size_bytes

    def stall(self) -> None:
        """Let no byte through, without a word."""
        self._flows.clear()

    def slow_down(self, pause_s: float) -> None:
        """Pause before each piece of up to four kilobytes."""
        self._pause_s = pause_s

    def refuse(self) -> None:
        """End the connections there are, and every new one as soon as it is made."""
        self._is_refused = True
        self.cut()

    def lead_to(self, port: int) -> None:
        """Serve new connections from another *port*."""
        self._target_port = port

    def close(self) -> None:
        self._listener.close()
        self.refuse()
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_refused:
                client.close()
                self.broken += 1
                continue
            try:
                upstream = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, upstream}
            self.accepted += 1
            for one, other in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        while data := _receive(one, 4096 if self._pause_s else 1 << 16):
            self.broken += not self._flows.is_set() or self._pause_s > 0
            self._flows.wait()
            if self._pause_s:
                time.sleep(self._pause_s)
            try:
                other.sendall(data)
            except OSError:
                break
            self._count(len(data))
        # Both directions end together: each thread wakes the other one, and the last closes.
        for connection in (one, other):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self._lock:
            is_last = one not in self._sockets
            self._sockets -= {one, other}
        if is_last:
            one.close()
            other.close()

    def _count(self, size_bytes: int) -> None:
        if (left := self._bytes_left) is None:
            return
        if left > size_bytes:
            self._bytes_left = left - size_bytes
        else:
            self._bytes_left = None
            self.cut()
