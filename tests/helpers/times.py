"""Whether the mark ``slow`` stands where the time is: the processor time that each test takes of its own.

Fixtures that tests share are counted for none of them. Times are of the processor, those of processes that a test
waited for among them, so that a busy machine changes them little.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SLOW = 0.8  # seconds of a test, in the mean over its parameters: from here on it has to be marked
QUICK = 0.3  # and up to here it must not be; what lies between may be either


class Times:
    """Adds up what each test takes, and tells at the end which marks do not fit."""

    def __init__(self) -> None:
        self.spent = self.shared = 0.0
        self.found: dict[tuple[str, bool], list[float]] = defaultdict(list)  # by function, and whether it is marked

    @contextmanager
    def counted(self, item: pytest.Item) -> Iterator[None]:
        began, self.shared = processor_seconds(), 0.0
        yield
        self.spent += processor_seconds() - began - self.shared
        item.user_properties[:] = [("seconds", self.spent), ("slow", item.get_closest_marker("slow") is not None)]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.spent = 0.0
        with self.counted(item):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        with self.counted(item):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        began, before = processor_seconds(), self.shared
        result = yield
        if fixturedef.scope != "function":
            self.shared = before + processor_seconds() - began
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Also where another process ran the test."""
        if report.when == "call":
            told: dict[str, Any] = dict(report.user_properties)
            function = report.nodeid.partition("[")[0]
            self.found[function, told["slow"]].append(told["seconds"])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("marks that do not fit the time")
        means = [(sum(seconds) / len(seconds), *key) for key, seconds in self.found.items()]
        for mean, function, marked in sorted(means, reverse=True):
            if (marked and mean < QUICK) or (not marked and mean > SLOW):
                terminalreporter.write_line(f"{mean:6.2f} s, {'marked slow' if marked else 'not marked'}: {function}")
        quick = sum(sum(seconds) for (_, marked), seconds in self.found.items() if not marked)
        terminalreporter.write_line(f"{quick:.0f} s of the processor without what is marked slow")


def processor_seconds() -> float:
    """Of this process, and of those that it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
