"""`python -m benchmarks.long`: what a task costs early and late in a stream of a hundred tasks, for every method.

Training alone is timed, by the processor's clock. The figures are kept in long.json.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ours
from benchmarks.__main__ import machine  # it sets one thread before torch is imported
from benchmarks.large import anonymous
from benchmarks.measure import seconds
from forgetlab import engine
from forgetlab.config import load
from forgetlab.description import Run, Strategy

LONG = Path(__file__).with_name("long.json")
FILE = Path(__file__).parents[1] / "experiments" / "long_permuted.yaml"
EARLY, LATE = slice(10, 30), slice(-20, None)  # tasks
COLUMNS = "{:<32} {:>10} {:>10} {:>6} {:>12} {:>12} {:>8}"


def main() -> None:
    experiment = load(FILE)
    print(COLUMNS.format("", "early", "late", "ratio", "kept early", "kept late", "grown"))
    rows = list(shown(experiment.run(entry, experiment.seeds[0]) for entry in experiment.entries if trains(entry)))
    LONG.write_text(json.dumps([{**row, "measured": machine()} for row in rows], indent=2) + "\n", encoding="utf-8")


def trains(entry: Strategy) -> bool:
    """Whether it takes steps; a closed form does not."""
    return entry.reference in (None, {"name": "naive"})


def shown(runs: Iterator[Run]) -> Iterator[dict[str, Any]]:
    """Each row, printed as soon as it is there."""
    for run in runs:
        row = measured(run)
        times = (f"{1000 * row[when]:.1f} ms" for when in ("early", "late"))
        kept = (f"{row[when]}" for when in ("kept_early", "kept_late"))
        print(COLUMNS.format(row["name"], *times, f"{row['ratio']:.2f}", *kept, f"{row['grown_mib']:.1f}"), flush=True)
        yield row


def measured(run: Run) -> dict[str, Any]:
    """One strategy: the median processor seconds of training a task, the bytes it keeps, what the process grew by."""
    gc.collect()
    taken: list[float] = []
    kept: list[int | None] = []
    held: dict[int, int] = {}
    with ours.globals_of_the_engine():
        engine.set_process(run)
        learner = ours.prepared(run, engine.load_scenario(run))
        for task in range(len(learner.context.scenario.tasks)):
            taken.append(seconds(lambda task=task: learner.learn(task)))
            kept.append(learner.counts.memory_bytes)
            if task in (EARLY.stop - 1, len(learner.context.scenario.tasks) - 1):
                gc.collect()
                held[task] = anonymous()
    early, late = median(taken[EARLY]), median(taken[LATE])
    return {
        "name": run.strategy.name,
        "tasks": len(taken),
        "early": round(early, 5),
        "late": round(late, 5),
        "ratio": round(late / early, 3),
        "kept_early": kept[EARLY][-1],
        "kept_late": kept[-1],
        "grown_mib": round((held[len(taken) - 1] - held[EARLY.stop - 1]) / 2**20, 2),
    }


if __name__ == "__main__":
    main()
