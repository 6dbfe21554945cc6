"""The list of all experiments: what each costs, and which page shows it.

``python experiments/manifest.py [RUNS]`` writes ``MANIFEST`` anew: seeds and pages are read from the files, and what is
finished in the folder RUNS (``runs``) tells its price. A price that is not there is kept as it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
MANIFEST = HERE / "MANIFEST"
PAGES = ("README.md", "docs/experiments.md", "docs/methods.md", "docs/published.md")
HEAD = """\
# Every experiment: its file, the seeds, what all its runs and searches together take of one core (processor minutes),
# and the page that shows its numbers. Written by `python experiments/manifest.py`; `~` is what the file's head says,
# from an earlier version, `-` is not measured yet.
"""
COLUMNS = ("file", "seeds", "core_minutes", "page")
UNKNOWN = "-"
PROCESSOR_SECONDS = "processor_seconds"  # what timing.json calls them


@dataclass(frozen=True)
class Entry:
    """One line."""

    file: str  # below `experiments/`
    seeds: str
    core_minutes: str
    page: str

    @property
    def cells(self) -> tuple[str, ...]:
        return self.file, self.seeds, self.core_minutes, self.page


def files() -> list[Path]:
    """All scenario files here, those of this folder first."""
    return sorted(HERE.rglob("*.yaml"), key=lambda path: (len(path.relative_to(HERE).parts), path))


def read(path: Path = MANIFEST) -> list[Entry]:
    """The lines as they stand."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return [Entry(*row) for row in rows if tuple(row) != COLUMNS]


def entries(runs: Path, before: Sequence[Entry]) -> list[Entry]:
    """A line for each file."""
    known = {entry.file: entry.core_minutes for entry in before}
    found = []
    for path in files():
        name = path.relative_to(HERE).as_posix()
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        took = core_minutes(runs, document["name"]) or known.get(name, UNKNOWN)
        found.append(Entry(name, _in_short(document.get("seeds", [0])), took, page_of(name)))
    return found


def core_minutes(runs: Path, experiment: str) -> str | None:
    """What the finished runs and trials of an experiment took; None where there is none."""
    seconds = [_seconds(path) for path in _timings(runs, experiment)]
    known = [one for one in seconds if one is not None]
    return f"{sum(known) / 60:.1f}" if known else None


def _timings(runs: Path, experiment: str) -> Iterator[Path]:
    yield from (runs / experiment).glob("*/*/timing.json")
    yield from (runs / ".trials" / experiment).rglob("timing.json")


def _seconds(path: Path) -> float | None:
    """Processor seconds, as versions that measure them write them."""
    timing = json.loads(path.read_text(encoding="utf-8"))
    return timing.get(PROCESSOR_SECONDS)


def page_of(name: str) -> str:
    """The first page that names the file."""
    for page in PAGES:
        text = (HERE.parent / page).read_text(encoding="utf-8")
        if (
            f"experiments/{name}" in text
            or f"`{name}`" in text
            or _is_row_of(page, name, text)
            or _in_folder(name, text)
        ):
            return page
    return UNKNOWN


def _is_row_of(page: str, name: str, text: str) -> bool:
    """Whether it is a row of the page of published numbers."""
    return page == "docs/published.md" and f"| {Path(name).stem} |" in text


def _in_folder(name: str, text: str) -> bool:
    """Whether the page names its folder whole."""
    folder = Path(name).parent.as_posix()
    return folder != "." and f"experiments/{folder}/*.yaml" in text


def _in_short(seeds: Sequence[int]) -> str:
    """
    >>> _in_short([0, 1, 2]), _in_short([100])
    ('0-2', '100')
    """
    gapless = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}-{seeds[-1]}" if gapless and len(seeds) > 1 else ",".join(map(str, seeds))


def written(found: Sequence[Entry]) -> str:
    """The list as a text of aligned columns."""
    rows = [COLUMNS, *(entry.cells for entry in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    runs = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs")
    MANIFEST.write_text(written(entries(runs, read())), encoding="utf-8")


if __name__ == "__main__":
    main()
