"""`python -m benchmarks`: measure every row, show the table, and keep it in latest.json."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is first imported

from benchmarks import encoder_rows
from benchmarks.encoder_rows import TextWork, newsgroups
from benchmarks.measure import Comparison
from benchmarks.rows import Work, comparisons
from forgetlab.plugins.registry import build

LATEST = Path(__file__).with_name("latest.json")
COLUMNS = "{:<36} {:>9} {:>9} {:>8}  {:<22} {}"


def main() -> int:
    """The exit status: 1 where the data are missing; a missed aim is told in its row."""
    import torch

    torch.set_num_threads(1)
    try:
        scenario = build("scenario", "split_fashion_mnist", {}, seed=0)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    images = comparisons(Work("Split Fashion-MNIST 5x2, class-incremental", scenario))
    texts = encoder_rows.comparisons(TextWork("20 Newsgroups", newsgroups(n=512, tokens=32)))
    rows = list(shown([*images, *texts]))
    LATEST.write_text(json.dumps([{**row, "measured": machine()} for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


def shown(measured: Iterable[Comparison]) -> Iterator[dict[str, Any]]:
    """Each row, printed as soon as it is there."""
    print(COLUMNS.format("", "ours", "theirs", "ratio", "aim", ""))
    for comparison in measured:
        row = comparison.row()
        verdict = {True: "holds", False: "missed", None: ""}[row["holds"]]
        numbers = f"{row['ours']:.3f} s", f"{row['theirs']:.3f} s", f"{row['ratio']:.2f}"
        print(COLUMNS.format(row["name"], *numbers, row["aim"], verdict), flush=True)
        yield row


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "date": date.today().isoformat(),
        "device": processor(),
        "threads": 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "avalanche-lib")},
    }


def processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
