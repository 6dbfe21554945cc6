"""Writes the tables of the README and of the pages in ``docs/`` anew, from finished runs: ``make tables``.

A table stands between ``<!-- table: FILE -->`` and ``<!-- end -->``; FILE is that of its experiment, below
``experiments/`` and without ending. What a page says further inside the mark:

    <!-- table: FILE | hide: seconds, parameters -->             leave columns out, by their headers
    <!-- table: FILE | add: minus separate = relative_learning_accuracy -->    a column more, of any metric
    <!-- table: FILE | prices: no -->                            without what a task costs

The numbers are those of ``forgetlab compare``. A table whose runs are not all finished is left as it is, and told.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forgetlab.cli.tables import finished_of
from forgetlab.config.load import load
from forgetlab.report import tables
from forgetlab.report.summary import Summary, summarise
from forgetlab.results.store import Store

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/experiments.md", "docs/methods.md")
TABLE = re.compile(r"(<!-- table: ([^|>]+?)((?: \| [^|>]+?)*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
DASH = tables.DASH


class Unfinished(LookupError):
    """Some runs of a table are missing."""


@dataclass(frozen=True)
class Wanted:
    """What a mark asks for."""

    hide: tuple[str, ...] = ()
    add: Mapping[str, str] = field(default_factory=dict)  # header -> metric
    prices: bool = True

    @classmethod
    def read(cls, options: str) -> Wanted:
        """
        >>> Wanted.read(" | hide: seconds, parameters | add: minus separate = relative_learning_accuracy")
        Wanted(hide=('seconds', 'parameters'), add={'minus separate': 'relative_learning_accuracy'}, prices=True)
        """
        given: dict[str, str] = {}
        for option in options.split(" | "):
            if option.strip():
                key, _, value = option.partition(":")
                given[key.strip()] = value.strip()
        unknown = given.keys() - {"hide", "add", "prices"}
        if unknown:
            raise ValueError(f"a table's mark takes hide, add and prices, not {', '.join(sorted(unknown))}")
        pairs = [pair.split("=") for pair in given.get("add", "").split(",") if pair.strip()]
        return cls(
            hide=tuple(header.strip() for header in given.get("hide", "").split(",") if header.strip()),
            add={header.strip(): metric.strip() for header, metric in pairs},
            prices=given.get("prices", "yes") != "no",
        )


def summaries_of(name: str, runs: Path) -> list[Summary]:
    """One row per strategy of an experiment.

    Raises:
        Unfinished: not all of its runs are there, with today's settings.
    """
    experiment = load(ROOT / "experiments" / f"{name}.yaml")
    done = finished_of(Store(runs), experiment, experiment.name)
    wanted = len(experiment.entries) * len(experiment.seeds)
    if len(done) < wanted:
        raise Unfinished(f"{len(done)} of {wanted} runs are finished")
    return summarise(done)


def written(summaries: Sequence[Summary], wanted: Wanted) -> str:
    """The tables of one experiment as a page shows them."""
    text = tables.markdown(summaries, "title").split("\n", 2)[2].replace(tables.NOTE, "")
    if not wanted.prices:
        text = text.partition(f"### {tables.PRICE}\n")[0]
    text = re.sub(r"^### (.*)$", r"*\1*", text, flags=re.MULTILINE)
    by_label = {summary.label: summary for summary in summaries}
    lines = [_line(line) for line in text.strip().splitlines()]
    return "\n".join(_chosen(lines, wanted, by_label))


Line = str | list[str]  # a row of a table, as its cells


def _line(line: str) -> Line:
    if not line.startswith("| "):
        return line
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _chosen(lines: Sequence[Line], wanted: Wanted, by_label: Mapping[str, Summary]) -> list[str]:
    """The lines with the columns that are asked for."""
    found: list[str] = []
    kept: list[int] = []
    header = True
    priced = False
    for line in lines:
        if isinstance(line, str):
            found.append(line)
            priced = line == f"*{tables.PRICE}*" or (priced and not line.startswith("*"))
            header = True
            continue
        if header:
            kept = [i for i, cell in enumerate(line) if cell not in wanted.hide]
        cells = [line[i] for i in kept]
        if not priced:
            cells += _added(line, wanted, by_label, header=header)
        header = False
        found.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return found


def _added(line: Sequence[str], wanted: Wanted, by_label: Mapping[str, Summary], *, header: bool) -> list[str]:
    """The further cells of a line."""
    if header:
        return list(wanted.add)
    if set(line[0]) <= set(":-"):
        return ["--:"] * len(wanted.add)
    cells = [by_label[line[0]].cells.get(metric) for metric in wanted.add.values()]
    return [DASH if cell is None else str(cell) for cell in cells]


def rewritten(page: str, runs: Path, told: list[str]) -> str:
    """A page's text with its tables written anew; what could not be is told."""

    def table(match: re.Match[str]) -> str:
        mark, name, options, _, end = match.groups()
        if not (ROOT / "experiments" / f"{name}.yaml").is_file():
            return match[0]  # a table of something else
        try:
            return f"{mark}\n{written(summaries_of(name, runs), Wanted.read(options))}\n\n{end}"
        except Unfinished as error:
            told.append(f"{name}: {error}; its table is as it was")
            return match[0]

    return TABLE.sub(table, page)


def main() -> None:
    runs = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs")
    told: list[str] = []
    for name in PAGES:
        path = ROOT / name
        path.write_text(rewritten(path.read_text(encoding="utf-8"), runs, told), encoding="utf-8")
    print("\n".join(told))


if __name__ == "__main__":
    main()
