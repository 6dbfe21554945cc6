"""What every test runs under: one thread, and, where asked for, no test skipped."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is first imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


class NothingSkipped:
    """Turns every skip into a failure that tells its reason."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        return refuse_skip((yield))

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        return refuse_skip((yield))


collect_ignore_glob = ["config/broken_files/*"]  # a plug-in file there is meant not to load


def refuse_skip(report: Report) -> Report:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"FORGETLAB_REQUIRE_ALL is set, but: {reason}"
    return report


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("FORGETLAB_REQUIRE_ALL"):
        config.pluginmanager.register(NothingSkipped())
