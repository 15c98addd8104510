"""Numbers as people read them."""

from __future__ import annotations


def number(value: float) -> str:
    """``12345`` as ``12,345``."""
    return f"{value:,.0f}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """``plural(1, 'orphan')`` is '1 orphan', ``plural(0, 'orphan')`` is '0 orphans'."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def money(usd: float | None) -> str:
    """Dollars, with cents, and with more digits below one cent; unknown as an em dash."""
    if usd is None:
        return "—"
    if usd == 0 or abs(usd) >= 0.995:
        return f"${usd:,.2f}"
    return f"${usd:.3f}" if abs(usd) >= 0.01 else f"${usd:.5f}"


def percent(part: float, whole: float = 1.0) -> str:
    """``percent(1, 8)`` is '12.5 %'; what is not quite all never reads as 100 %."""
    share = part / whole if whole else 0.0
    return "99.9 %" if 0.9995 <= share < 1 else f"{share * 100:.1f} %"


def duration(ms: float) -> str:
    """Milliseconds with three figures: ``0.42 ms``, ``12.3 ms``, ``1.25 s``."""
    if ms >= 999.5:
        return f"{ms / 1000:.3g} s"
    if ms >= 99.95:
        return f"{ms:.0f} ms"
    return f"{ms:.3g} ms"


def seconds(s: float) -> str:
    """``3501.7`` as ``58 min``, ``12.34`` as ``12.3 s``."""
    if s >= 7200:
        return f"{s / 3600:.1f} h"
    if s >= 120:
        return f"{s / 60:.0f} min"
    return f"{s:.1f} s"


def tokens(count: int) -> str:
    """Token counts: ``22.4 M``, ``310 k``."""
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.0f} k" if count >= 10_000 else number(count)
