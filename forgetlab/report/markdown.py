"""Tables as Markdown writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def lines(table: Mapping[str, Sequence[str]], words: int = 1) -> list[str]:
    """A table by its columns, header to cells; the first ``words`` columns are set to the left, as text is.

    >>> print(*lines({"method": ["er", "a|b"], "accuracy": ["0.5", "0.7"]}), sep="\\n")
    | method | accuracy |
    | :-- | --: |
    | er | 0.5 |
    | a\\|b | 0.7 |
    """
    sides = [":--"] * words + ["--:"] * (len(table) - words)
    return [_line(table), _line(sides), *(_line(cells) for cells in zip(*table.values(), strict=True))]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
