"""What every test runs under: one thread, and, where asked for, no test skipped."""

from __future__ import annotations

import inspect
import os
import random
import sys
from collections.abc import Generator
from pathlib import Path
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", action="store_true", help="tell where the mark 'slow' does not fit the measured time")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("FORGETLAB_REQUIRE_ALL"):
        config.pluginmanager.register(NothingSkipped())
    if config.getoption("--times"):
        from helpers.times import Times

        config.pluginmanager.register(Times())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws from the global generators does not depend on the tests before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what ForgetLab keeps of data and models."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FORGETLAB_CACHE", str(folder))
    return folder


@pytest.fixture
def undeprecated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Avalanche's replay calls what Avalanche has marked as deprecated, and that resets the warnings' filters."""
    from avalanche.training.storage_policy import ExemplarsBuffer

    monkeypatch.setattr(ExemplarsBuffer, "update", inspect.unwrap(ExemplarsBuffer.update))


@pytest.fixture
def plugins_as_before() -> Generator[None, None, None]:
    """What a test plants among the plug-ins is forgotten after it."""
    from helpers import planted

    yield
    planted.forget()


@pytest.fixture
def no_starts_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretrained start is not taken from an earlier test's."""
    from forgetlab.training import pretraining

    monkeypatch.setattr(pretraining, "_made", {})
