"""A TCP proxy that loses connections: after so many bytes in one direction, or all of them at once."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Literal

Direction = Literal["to server", "to client"]
Manner = Literal["close", "reset", "silence"]


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.budget: dict[Direction, int | None] = {"to server": None, "to client": None}
        self.manner: Manner = "close"
        self.lock = threading.Lock()
        self.cut = False
        for direction, source, target in (
            ("to server", client, server),
            ("to client", server, client),
        ):
            threading.Thread(
                target=self._pump, args=(direction, source, target), daemon=True
            ).start()

    def _pump(self, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self.lock:
                    if self.cut:
                        return
                    left = self.budget[direction]
                    if left is not None:
                        data, left = data[:left], left - len(data)
                        self.budget[direction] = max(left, 0)
                    target.sendall(data)
                    if left is not None and left <= 0:
                        self.break_off(self.manner)
                        return
        with self.lock:
            self.break_off("close")

    def break_off(self, manner: Manner) -> None:
        """Ends it; called with the lock held. `silence` leaves the server's end open."""
        self.cut = True
        if manner == "reset":
            for end in (self.client, self.server):
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end(self.client, manner)
        if manner != "silence":
            self._end(self.server, manner)

    @staticmethod
    def _end(end: socket.socket, manner: Manner) -> None:
        with contextlib.suppress(OSError):
            if manner != "reset":
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def bury(self) -> None:
        with self.lock:
            self.break_off("close")


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
                self._sweep()
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._links.append(_Link(client, server))

    def _sweep(self) -> None:
        with self._lock:
            for link in self._links:
                if link.cut:
                    link.bury()
            self._links = [link for link in self._links if not link.cut]

    def cut_after(self, count: int, direction: Direction, manner: Manner) -> None:
        """Lets `count` more bytes through in that direction, then loses the newest connection."""
        with self._lock:
            if not self._links:
                return
            link = self._links[-1]
        with link.lock:
            link.manner = manner
            link.budget = {"to server": None, "to client": None, direction: max(count, 1)}

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
        self._listener.close()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.bury()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
