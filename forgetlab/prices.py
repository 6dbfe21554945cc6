"""Prices as stored runs tell them: their definitions, one row per strategy, and numbers as people write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forgetlab.report import Summary

PRICES: Mapping[str, str] = {  # name -> definition; a mean over tasks where each has its own
    "trainable": "numbers that the optimizer moves while a task is learned, its head's too; the most of any task",
    "task_bytes": "bytes that must be kept for one task, its module and its head, without what tasks share",
    "task_share": "task_bytes over the bytes of the backbone",
    "shared_bytes": "bytes kept for all tasks together beside the backbone: pools, masks, statistics, or one module",
    "changed": "numbers of the backbone that differ while a task's module is active; 0 where it only adds",
    "changed_share": "changed over the backbone's numbers",
    "rank": "the largest numerical rank of a changed weight matrix; full for any dense change, by rounding alone",
    "rank_90": "the largest rank, over the changed weight matrices, that holds 90 % of the change's energy "
    "(squared singular values)",
    "flops_forward": "operations of one sample's forward pass in training: matrix products, convolutions, attention; "
    "a multiplication and the addition after it are two",
    "flops_backward": "the same for the gradient by what is trained",
    "saved_activation_bytes": "bytes per sample that a training step keeps for its backward pass, each storage once, "
    "without parameters",
    "latency": "time to answer under a module over that of the bare backbone: median of paired ratios, batches of 8",
    "backbone_parameters": "numbers of the backbone",
}
SHOWN = ("flops_forward", "task_bytes")  # a run that tells these has a row


def of_run(counts: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float | None]:
    """Everything that a run paid, as single numbers."""
    per_task, total = counts.get("per_task", {}), counts.get("total", {})
    found = {name: _mean(per_task[name]) for name in PRICES if name in per_task and name != "trainable"}
    found |= {"backbone_parameters": total.get("backbone_parameters"), "latency": timing.get("latency")}
    kept, backbone = found.get("task_bytes"), found["backbone_parameters"]
    return found | {"task_share": kept / (4 * backbone) if kept is not None and backbone else None}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def price_columns(summaries: Iterable[Summary]) -> dict[str, list[str]]:
    """The table of prices, column by column: header to cells; empty where no strategy attaches anything."""
    rows = {s.label: s for s in summaries if all(s.cells.get(name) is not None for name in SHOWN)}
    if not rows:
        return {}

    def column(name: str, written: Callable[[float], str]) -> list[str]:
        cells = [summary.cells.get(name) for summary in rows.values()]
        return ["\N{EN DASH}" if cell is None else written(cell.mean) for cell in cells]

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
