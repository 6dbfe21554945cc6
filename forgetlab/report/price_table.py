"""Prices as stored runs tell them, one row per strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from forgetlab.report.number_format import of_seeds, percent, short_bytes, short_count, short_operations

if TYPE_CHECKING:
    from forgetlab.report.summary import Summary


SHOWN = ("flops_forward", "task_bytes")  # a run that tells these has a row


def price_columns(summaries: Iterable[Summary]) -> dict[str, list[str]]:
    """The table of prices, column by column: header to cells; empty where no strategy attaches anything."""
    rows = {s.label: s for s in summaries if all(s.cells.get(name) is not None for name in SHOWN)}
    if not rows:
        return {}

    n = max(len(summary.seeds) for summary in rows.values())

    def column(name: str, written: Callable[[float], str]) -> list[str]:
        cells = [summary.cells.get(name) for summary in rows.values()]
        return ["\N{EN DASH}" if cell is None else of_seeds(written(cell.mean), cell.n, n) for cell in cells]

    ratios = [s.cells["flops_backward"].mean / s.cells["flops_forward"].mean for s in rows.values()]  # type: ignore[union-attr]
    return {
        "strategy": list(rows),
        "trainable": column("trainable", short_count),
        "kept per task": column("task_bytes", short_bytes),
        "of the backbone": column("task_share", percent),
        "shared": column("shared_bytes", short_bytes),
        "changed": column("changed_share", percent),
        "rank 90 %": column("rank_90", "{:.0f}".format),
        "forward": column("flops_forward", short_operations),
        "backward / forward": [f"{ratio:.2f}" for ratio in ratios],
        "saved activations": column("saved_activation_bytes", short_bytes),
        "latency": column("latency", "{:.2f}".format),
    }
