"""`experiments/MANIFEST` lists every experiment, with its seeds and the page that shows it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from helpers.paths import EXPERIMENTS


@pytest.fixture(scope="module")
def manifest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiments_manifest", EXPERIMENTS / "manifest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


def test_it_is_what_the_files_and_pages_say(manifest: ModuleType, tmp_path: Path) -> None:
    stands = manifest.read()
    assert manifest.entries(tmp_path, stands) == stands
    assert manifest.written(stands) == manifest.MANIFEST.read_text(encoding="utf-8")


def test_every_experiment_has_a_page_and_a_price(manifest: ModuleType) -> None:
    assert [entry.file for entry in manifest.read() if manifest.UNKNOWN in (entry.page, entry.core_minutes)] == []


def test_a_file_that_is_missing_or_has_other_seeds_is_seen(manifest: ModuleType, tmp_path: Path) -> None:
    stands = manifest.read()
    assert manifest.entries(tmp_path, stands[1:]) != stands[1:]
    other = [manifest.Entry(stands[0].file, "0-99", stands[0].core_minutes, stands[0].page), *stands[1:]]
    assert manifest.entries(tmp_path, other) != other


def test_the_price_is_the_processor_time_of_all_runs_and_trials(manifest: ModuleType, tmp_path: Path) -> None:
    for place, seconds in (("mine/naive/seed-0", 60.0), ("mine/naive/seed-1", 30.0), (".trials/mine/a/seed-0", 6.0)):
        (tmp_path / place).mkdir(parents=True)
        timing = {manifest.PROCESSOR_SECONDS: seconds, "wall": 999.0}
        (tmp_path / place / "timing.json").write_text(json.dumps(timing), encoding="utf-8")
    (tmp_path / "other" / "naive" / "seed-0").mkdir(parents=True)
    assert manifest.core_minutes(tmp_path, "mine") == "1.6"
    assert manifest.core_minutes(tmp_path, "nothing") is None
