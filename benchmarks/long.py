"""`python -m benchmarks.long`: what a task costs early and late in a stream of a hundred tasks, for every method.

Training alone is timed, by the processor's clock. The ratio of late to early is of times over those of a yardstick, the
same bare steps after every task, so that what others do on the machine does not show. The figures stand in long.json.
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
from forgetlab.config.load import load
from forgetlab.engine import one_run
from forgetlab.experiment import Run, Strategy

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
    yards: list[float] = []
    kept: list[int | None] = []
    held: dict[int, int] = {}
    with ours.globals_of_the_engine():
        one_run.set_process(run)
        learner = ours.prepared(run, one_run.load_scenario(run))
        for task in range(len(learner.context.scenario.tasks)):
            taken.append(seconds(lambda task=task: learner.learn(task)))
            yards.append(seconds(yardstick))
            kept.append(learner.counts.memory_bytes)
            if task in (EARLY.stop - 1, len(learner.context.scenario.tasks) - 1):
                gc.collect()
                held[task] = anonymous()
    early, late = median(taken[EARLY]), median(taken[LATE])
    relative = [time / yard for time, yard in zip(taken, yards, strict=True)]
    return {
        "name": run.strategy.name,
        "tasks": len(taken),
        "early": round(early, 5),
        "late": round(late, 5),
        "ratio": round(median(relative[LATE]) / median(relative[EARLY]), 3),
        "kept_early": kept[EARLY][-1],
        "kept_late": kept[-1],
        "grown_mib": round((held[len(taken) - 1] - held[EARLY.stop - 1]) / 2**20, 2),
    }


def yardstick() -> None:
    """Some steps of a bare model of the stream's size."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    x, y = torch.rand(32, 784, generator=draws), torch.randint(10, (32,), generator=draws)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
