"""A TCP proxy that loses connections: after so many bytes in one direction, or all of them at once."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import Literal

Direction = Literal["to server", "to client"]
# how an end is lost: FIN, RST, or FIN for the client while the server hears nothing for now
Manner = Literal["close", "reset", "silence"]


class _Link:
    """One connection through the proxy. Its thread alone reads and closes the sockets."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._client = client
        self._server = server
        self._budget: dict[Direction, int | None] = {"to server": None, "to client": None}
        self._manner: Manner = "close"
        self._lock = threading.Lock()
        self._wake, self._bell = socket.socketpair()
        self.cut = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut_after(self, count: int, direction: Direction, manner: Manner) -> None:
        with self._lock:
            self._manner = manner
            self._budget = {"to server": None, "to client": None, direction: max(count, 1)}

    def bury(self) -> None:
        """Loses both ends now; returns when they are closed."""
        self.cut = True
        with contextlib.suppress(OSError):
            self._bell.send(b"!")
        self._thread.join(10)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while not self.cut:
                ready, _, _ = select.select([self._client, self._server, self._wake], [], [])
                if self._wake in ready:
                    break
                if self._client in ready:
                    self._pass("to server", self._client, self._server)
                if self._server in ready and not self.cut:
                    self._pass("to client", self._server, self._client)
        self.cut = True
        with self._lock:
            manner = self._manner
        if manner == "reset":
            for end in (self._client, self._server):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._client.close()
        if manner == "silence":
            self._wake.recv(1)
        self._server.close()
        self._wake.close()
        self._bell.close()

    def _pass(self, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        data = source.recv(65536)
        if not data:
            self.cut = True
            with self._lock:
                self._manner = "close"
            return
        with self._lock:
            left = self._budget[direction]
            if left is not None:
                data, left = data[:left], left - len(data)
                self._budget[direction] = left
                self.cut = left <= 0
        target.sendall(data)


class Proxy:
    """Listens on 127.0.0.1 and passes on to a server, until it is told not to."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._links: list[_Link] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                # what was lost in silence, the server learns of when its client comes back
                with self._lock:
                    gone = [link for link in self._links if link.cut]
                    self._links = [link for link in self._links if not link.cut]
                for link in gone:
                    link.bury()
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._links.append(_Link(client, server))

    def cut_after(self, count: int, direction: Direction, manner: Manner) -> None:
        """Lets `count` more bytes through in that direction, then loses the newest connection."""
        with self._lock:
            link = self._links[-1] if self._links else None
        if link is not None:
            link.cut_after(count, direction, manner)

    def cut_all(self) -> int:
        """Loses every connection now; how many there were."""
        with self._lock:
            alive = [link for link in self._links if not link.cut]
        for link in alive:
            link.bury()
        return len(alive)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        for link in self._links:
            link.bury()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
