"""Numbers in few characters."""

from __future__ import annotations

from collections.abc import Sequence


def of_seeds(text: str, n: int, usual: int) -> str:
    """A cell's text, and the number of seeds behind it where that is not the table's.

    >>> [of_seeds("0.812", n, usual=3) for n in (3, 2)]
    ['0.812', '0.812 (n = 2)']
    """
    return text if n == usual else f"{text} (n = {n})"


def short_count(value: float) -> str:
    """
    >>> [short_count(value) for value in (1234, 12_345, 999_990, 1_234_567, 2e9)]
    ['1,234', '12.3k', '1.0M', '1.2M', '2.0G']
    """
    if value < 10_000:
        return f"{value:,.0f}"
    return _scaled(value, 1000, ("", "k", "M", "G"))


def short_operations(value: float) -> str:
    """
    >>> short_operations(2.28e9)
    '2.3 GFLOP'
    """
    return _scaled(value, 1000, (" FLOP", " kFLOP", " MFLOP", " GFLOP", " TFLOP"))


def short_bytes(value: float) -> str:
    """
    >>> [short_bytes(value) for value in (0, 1023, 317_440, 1024**2)]
    ['0 B', '1023 B', '310.0 KiB', '1.0 MiB']
    """
    if value < 1024:
        return f"{value:.0f} B"
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB"))


def percent(value: float) -> str:
    """
    >>> [percent(value) for value in (0.0, 0.00012, 0.034, 1.0)]
    ['0 %', '0.012 %', '3.4 %', '100 %']
    """
    return f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:.0f} %"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while round(value, 1) >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{value:.1f}{units[power]}"
