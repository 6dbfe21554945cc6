"""Data sets that may not be on this machine, and texts that are written for a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from forgetlab.scenario import Dataset, dataset


def existing(name: str) -> Dataset:
    """The data set, or the test skipped with what is told where it is not there."""
    try:
        return dataset(name)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def write_topics(folder: Path, topics: Mapping[str, str]) -> None:
    """16 texts of each topic in a folder of its name, in which the topic's words follow one another in its order."""
    for topic, words in topics.items():
        (folder / topic).mkdir(parents=True)
        for i in range(16):
            start, length = i % 6, 6 + i // 6
            text = " ".join((words.split() * 3)[start : start + length])
            (folder / topic / f"{i}.txt").write_text(text)
