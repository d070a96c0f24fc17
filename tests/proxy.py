"""A TCP proxy before PostgreSQL that loses what a test asks it to lose."""

from __future__ import annotations

import socket
import threading
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


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""
