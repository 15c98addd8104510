"""UUIDs of version 7 (RFC 9562): 48 bits of Unix milliseconds, then 74 random bits."""

from __future__ import annotations

import os
import time


class IdMaker:
    """Makes ids as text, dated by the server's clock as far as it is known.

    Args:
        skew_ms: the server's clock less this machine's, in milliseconds.
    """

    __slots__ = ("skew_ms",)

    def __init__(self, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms

    def __call__(self) -> str:
        """A fresh id in the canonical text form."""
        ms = time.time_ns() // 1_000_000 + self.skew_ms
        noise = int.from_bytes(os.urandom(10), "big")
        h = (
            f"{ms:012x}7{noise & 0xFFF:03x}"
            f"{0x8000 | (noise >> 12) & 0x3FFF:04x}{noise >> 32 & 0xFFFFFFFFFFFF:012x}"
        )
        return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
