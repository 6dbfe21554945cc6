"""`python -m benchmarks.large`: one epoch over data that stay on disk, against a part of them in memory.

The file is written for it, leaves the page cache before it is read, and is removed afterwards. The figures are kept in
large.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.__main__ import machine  # it sets one thread before torch is imported
from forgetlab.data import mapped_rows
from forgetlab.data.datasets import Dataset, Samples
from forgetlab.seeding import generator
from forgetlab.streams.build import split
from forgetlab.streams.scenario import Scenario

LARGE = Path(__file__).with_name("large.json")
SHAPE, N_CLASSES, N_TASKS = (3, 32, 32), 10, 5
HIDDEN, BATCH = 400, 128
RATE_AIM, GROWTH_AIM = 0.5, 1.0  # of the rate in memory; GiB
PART = 8192  # images that are generated at a time
IN_MEMORY = 0.5  # GiB
TEST = 2048  # images


def main() -> int:
    """The exit status: 1 where there is no room on disk; a missed aim is told in its row."""
    parser = argparse.ArgumentParser(description="Train on data larger than memory.")
    parser.add_argument("--gib", type=float, default=4, help="size of the file, default 4")
    gib = parser.parse_args().gib
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="forgetlab-") as folder:
        if shutil.disk_usage(folder).free < 1.2 * gib * mapped_rows.GIB:
            print(f"{folder} has no room for {gib:g} GiB; name another place in TMPDIR", file=sys.stderr)
            return 1
        row = measured(Path(folder) / "images.npy", round(gib * mapped_rows.GIB), round(IN_MEMORY * mapped_rows.GIB))
    print(json.dumps(row, indent=2))
    LARGE.write_text(json.dumps([{**row, "measured": machine()}], indent=2) + "\n", encoding="utf-8")
    return 0


@dataclass
class Epoch:
    """One pass over a stream."""

    samples: int
    seconds: float  # by the clock: to wait for the disk counts, to wait for other processes does not
    clock: float  # seconds, these included
    processor: float  # seconds of the processor
    peak: int  # bytes of anonymous memory of the process
    accuracy: float  # of the last task


def measured(path: Path, size: int, in_memory: int) -> dict[str, Any]:
    """Both passes; the one in memory before and after the other."""
    n, few = (amount // torch.Size(SHAPE).numel() for amount in (size, in_memory))
    before = anonymous()
    y = write(path, n)
    held = mapped_rows.open_npy(path).index_select(0, torch.arange(few))
    first = epoch(stream(held, y[:few]))
    forget_cached(path)
    x = mapped_rows.open_npy(path)
    from_disk = epoch(stream(x, y))
    second = epoch(stream(held, y[:few]))
    rates = [one.samples / one.seconds for one in (first, from_disk, second)]
    ratio = rates[1] / ((rates[0] + rates[2]) / 2)
    growth = (from_disk.peak - before - held.nbytes) / mapped_rows.GIB  # the part in memory is not of this pass
    return {
        "name": "data on disk",
        "work": work(size, in_memory, n),
        "mapped": isinstance(x, mapped_rows.Rows),
        "samples": n,
        "samples_per_second": {"disk": round(rates[1]), "memory": [round(rates[0]), round(rates[2])]},
        "clock_seconds": {
            "disk": round(from_disk.clock, 1),
            "memory": [round(one.clock, 1) for one in (first, second)],
        },
        "processor_seconds_per_1000": {
            "disk": round(1000 * from_disk.processor / n, 3),
            "memory": [round(1000 * one.processor / few, 3) for one in (first, second)],
        },
        "ratio": round(ratio, 3),
        "growth_gib": round(growth, 3),
        "accuracy_of_the_last_task": [round(one.accuracy, 3) for one in (from_disk, first)],
        "aim": f"disk / memory >= {RATE_AIM:g}, growth <= {GROWTH_AIM:g} GiB",
        "holds": ratio >= RATE_AIM and growth <= GROWTH_AIM,
    }


def work(size: int, in_memory: int, n: int) -> str:
    inputs = torch.Size(SHAPE).numel()
    text = f"{n} generated images, {size / mapped_rows.GIB:.3g} GiB on disk, not in the page cache at the start, and "
    text += f"{in_memory / mapped_rows.GIB:.3g} GiB of them in memory; {N_CLASSES} classes in {N_TASKS} tasks, "
    return f"{text}class-incremental, one epoch; MLP {inputs}-{HIDDEN}-{HIDDEN}-{N_CLASSES}, batch {BATCH}, Adam 1e-3"


def write(path: Path, n: int) -> Tensor:
    """Images on disk, and their labels."""
    y = torch.randint(0, N_CLASSES, (n,), generator=generator("large", "labels"))
    mapped_rows.write_npy(path, (images(part, i) for i, part in enumerate(y.split(PART))))
    return y


def images(y: Tensor, number: int) -> Tensor:
    """Each class has a picture of its own, which noise covers by half."""
    pictures = torch.randint(0, 128, (N_CLASSES, *SHAPE), generator=generator("large", "pictures"), dtype=torch.uint8)
    draw = generator("large", "noise", number)
    return pictures[y] + torch.randint(0, 128, (len(y), *SHAPE), generator=draw, dtype=torch.uint8)


def stream(x: Tensor, y: Tensor) -> Scenario:
    """Cut by class; the test data are generated beside."""
    labels = torch.arange(TEST) % N_CLASSES
    data = Dataset(Samples(x, y), Samples(images(labels, -1), labels), tuple(map(str, range(N_CLASSES))))
    return split(data, setting="class-incremental", n_tasks=N_TASKS, seed=0)


def epoch(scenario: Scenario) -> Epoch:
    """Train on all tasks, one after another; what is made ready for it is not timed."""
    gc.collect()
    with ours.globals_of_the_engine(), watched() as memory:
        learner = ours.learner(scenario, HIDDEN, BATCH)
        start, busy, queued = time.perf_counter(), time.process_time(), waited()
        for task in range(len(scenario.tasks)):
            learner.learn(task)
        clock, processor, waiting = time.perf_counter() - start, time.process_time() - busy, waited() - queued
        scores = learner.evaluate(len(scenario.tasks) - 1)
    assert scores is not None
    samples = sum(len(task.train.y) for task in scenario.tasks)
    return Epoch(samples, clock - waiting, clock, processor, max(memory), scores["accuracy"])


@contextmanager
def watched(every: float = 0.05) -> Iterator[list[int]]:
    """Anonymous memory, looked at every so many seconds."""
    found, done = [anonymous()], threading.Event()

    def look() -> None:
        while not done.wait(every):
            found.append(anonymous())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.append(anonymous())


def waited() -> float:
    """Seconds in which this thread could have run, and others had the processor, as Linux tells them."""
    return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


def anonymous() -> int:
    """Bytes of memory that no file stands behind, as Linux tells them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return kib * 1024


def forget_cached(path: Path) -> None:
    """Let the file leave the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    sys.exit(main())
