"""The tables of a comparison, one for each way in which a test sample's task is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from forgetlab.report import number_format, price_table
from forgetlab.report.markdown import lines as markdown_lines
from forgetlab.report.summary import NEW_MODEL_PER_TASK, Summary

if TYPE_CHECKING:
    from rich.console import Group


SECTIONS = {
    "none": "No task identity used",
    "routed": "Task inferred by a router (routed)",
    "told": "Task told at test (oracle)",
}
FURTHER = {  # shown where a stream asks for them
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "log_loss": "log-loss",
    "prequential_accuracy": "prequential accuracy",
}
PRICE = "What a task costs"
DASH = "\N{EN DASH}"
FORGETTING = "forgetting (best \N{MINUS SIGN} last)"
TWO_SEEDS = (
    "Two seeds leave one degree of freedom (t = 12.7): their interval reaches 9 standard deviations to each side, "
    "so it says next to nothing."
)
NOTE = (
    "± is a 95 % t-interval over seeds; where it would leave the metric's bounds it is cut to them and stands as "
    "[low, high]. A cell with an n of its own is the mean of fewer seeds: the others do not define it. Seconds are "
    "processor time. Forgetting is a task's best accuracy since it was learned minus its "
    "last, averaged over all tasks but the last learned; joint and separate train a new model for each task, "
    "so theirs is a dash. Bytes kept are what a strategy stores plus what its memory holds. "
    "`forgetlab show metric NAME` gives each definition."
)


def _sections(summaries: Sequence[Summary]) -> Iterator[tuple[str, list[Summary]]]:
    """The rows by how a test sample's task is known, which never share a table; references come first."""
    for task_identity, heading in SECTIONS.items():
        rows = [summary for summary in summaries if summary.task_identity == task_identity]
        if rows:
            yield heading, sorted(rows, key=lambda summary: summary.family != "reference")


def _columns(rows: Sequence[Summary]) -> dict[str, list[str]]:
    """One section's table, column by column: header to cells."""
    n = max(len(summary.seeds) for summary in rows)

    def amounts(names: Sequence[str], written: Callable[[float], str]) -> list[str]:
        return [_amount(summary, names, written, n) for summary in rows]

    table = {
        "strategy": [summary.label for summary in rows],
        "average accuracy (final)": [_cell(summary, "average_accuracy", n) for summary in rows],
        FORGETTING: [DASH if _forgets_nothing(summary) else _cell(summary, "forgetting", n) for summary in rows],
        "learning accuracy": [_cell(summary, "learning_accuracy", n) for summary in rows],
        "seconds": amounts(("seconds",), "{:,.1f}".format),
        "parameters": amounts(("parameters",), number_format.short_count),
        "bytes kept": amounts(("stored_bytes", "memory_bytes"), number_format.short_bytes),
    }
    if any((cell := summary.cells.get("extra_updates")) is not None and cell.mean for summary in rows):
        table["extra updates"] = amounts(("extra_updates",), "{:,.0f}".format)
    if any("tuning_trials" in summary.cells for summary in rows):
        table["trials"] = amounts(("tuning_trials",), "{:.0f}".format)
    for name, header in FURTHER.items():
        if any(name in summary.cells for summary in rows):
            table[header] = [_cell(summary, name, n) for summary in rows]
    if rows[0].task_identity == "routed":
        table["router accuracy"] = [_cell(summary, "router_accuracy", n) for summary in rows]
    return table


def _cell(summary: Summary, name: str, n: int) -> str:
    """mean ± half width, and the number of seeds where it is not the table's."""
    cell = summary.cells.get(name)
    return DASH if cell is None else number_format.of_seeds(str(cell), cell.n, n)


def _forgets_nothing(summary: Summary) -> bool:
    return summary.family == "reference" and summary.strategy in NEW_MODEL_PER_TASK


def _amount(summary: Summary, names: Sequence[str], written: Callable[[float], str], n: int) -> str:
    """The mean over seeds of a sum of counts, without an interval."""
    cells = [summary.cells.get(name) for name in names]
    known = [cell for cell in cells if cell is not None]
    if len(known) < len(names):
        return DASH
    total = written(sum(cell.mean for cell in known))
    return number_format.of_seeds(total, min(cell.n for cell in known), n)


def _foot(rows: Sequence[Summary], columns: Mapping[str, Sequence[str]]) -> str:
    """What holds for one section: the number of seeds, what guessing gives where that is one number, what an interval
    of two seeds is worth where there is one, and whose runs an earlier version made."""
    n = max(len(summary.seeds) for summary in rows)
    seeds = "1 seed, so no interval" if n == 1 else f"n = {n} seeds"
    guesses = {f"{cell.mean:.3f}" for summary in rows if (cell := summary.cells.get("chance")) is not None}
    foot = f"{seeds}; guessing gives {guesses.pop()}." if len(guesses) == 1 else f"{seeds}."
    if n == 2 or any("(n = 2)" in cell for cells in columns.values() for cell in cells):
        foot = f"{foot} {TWO_SEEDS}"
    adopted = [f"{summary.label} ({summary.adopted} of {len(summary.seeds)})" for summary in rows if summary.adopted]
    return f"{foot} Adopted, made by an earlier version: {', '.join(adopted)}." if adopted else foot


class Part(NamedTuple):
    """One of the tables that are shown together: its heading, columns by header, and what is said below it."""

    heading: str
    columns: Mapping[str, Sequence[str]]
    foot: str = ""


def parts_of(summaries: Sequence[Summary]) -> list[Part]:
    """One table per section, each with its foot, and the prices."""
    found = []
    for heading, rows in _sections(summaries):
        columns = _columns(rows)
        found.append(Part(heading, columns, _foot(rows, columns)))
    paid = price_table.price_columns(summaries)
    return [*found, Part(PRICE, paid)] if paid else found


def in_markdown(parts: Sequence[Part], title: str, note: str = "") -> str:
    """Tables that are shown together, as Markdown: each with its foot, and the note."""
    lines = [f"## {title}", ""]
    for part in parts:
        lines += [f"### {part.heading}", "", *markdown_lines(part.columns), ""]
        lines += [part.foot, ""] if part.foot else []
    return "\n".join([*lines, note, ""] if note else lines)


def on_a_screen(parts: Sequence[Part], note: str = "") -> Group:
    """Tables that are shown together, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[Table | Text] = []
    for part in parts:
        table = Table(title=part.heading, caption=part.foot or None, title_justify="left", caption_justify="left")
        for number, header in enumerate(part.columns):
            table.add_column(header, justify="right" if number else "left", overflow="fold")
        for cells in zip(*part.columns.values(), strict=True):
            table.add_row(*map(Text, cells))
        shown.append(table)
    return Group(*shown, *([Text(note.replace("`", ""))] if note else []))


def markdown(summaries: Sequence[Summary], title: str) -> str:
    """The comparison as Markdown: one table per section, each with its foot, and the note."""
    return in_markdown(parts_of(summaries), title, NOTE)


def table(summaries: Sequence[Summary]) -> Group:
    """The comparison for a terminal: one rich table per section, and the note."""
    return on_a_screen(parts_of(summaries), NOTE)
