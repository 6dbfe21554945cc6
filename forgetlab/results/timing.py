"""The two clocks of ``timing.json``: the processor's, which other programs hardly disturb, and the one on the wall."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Stopwatch:
    """Seconds since it was made, by both clocks.

    Processor time is that of this process with all its threads, in user and in system mode: of a run, whichever process
    carries it out. Work on a GPU is not in it, but waiting for that work is.
    """

    def __init__(self) -> None:
        self.processor, self.wall = time.process_time(), time.perf_counter()

    def seconds(self) -> dict[str, float]:
        return {"processor": time.process_time() - self.processor, "wall": time.perf_counter() - self.wall}


def processor_seconds(timing: Mapping[str, Any]) -> float | None:
    """What a run took of the processor; None of an earlier version's run, which looked at the wall clock alone."""
    return timing.get("processor_seconds")


def wall_seconds(timing: Mapping[str, Any]) -> float:
    """How long a run took; earlier versions called it ``seconds``."""
    return float(timing.get("wall_seconds", timing.get("seconds", 0.0)))
