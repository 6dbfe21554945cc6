"""The two clocks of a run."""

from __future__ import annotations

import time

import pytest

from forgetlab.results.timing import Stopwatch, processor_seconds, wall_seconds


def test_a_stopwatch_reads_both_clocks_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds go by, in one of which the process works."""
    processor, wall = iter([5.0, 6.0]), iter([100.0, 103.0])
    monkeypatch.setattr(time, "process_time", lambda: next(processor))
    monkeypatch.setattr(time, "perf_counter", lambda: next(wall))
    assert Stopwatch().seconds() == {"processor": 1.0, "wall": 3.0}


def test_what_earlier_versions_called_seconds_is_the_wall_clock() -> None:
    now, earlier = {"processor_seconds": 1.0, "wall_seconds": 3.0}, {"seconds": 4.0}
    assert (processor_seconds(now), wall_seconds(now)) == (1.0, 3.0)
    assert (processor_seconds(earlier), wall_seconds(earlier)) == (None, 4.0)
    assert (processor_seconds({}), wall_seconds({})) == (None, 0.0)
