"""Data sets that may not be on this machine, and texts that are written for a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetlab.batch import Batch
from forgetlab.data.datasets import Dataset, dataset
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator


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


def refused(name: str, option: str | None = None, **options: Any) -> str:
    """What is told of a data set's option that cannot be used, in one line."""
    with pytest.raises(OptionError) as error:
        dataset({"name": name, **options})
    assert error.value.option == option
    assert "\n" not in str(error.value)
    return str(error.value)


def two_classes(name: str, task: int, n: int = 6) -> Batch:
    """A batch of a task's two classes, drawn under a name: (n, 4)."""
    x = torch.randn(n, 4, generator=generator(name, task))
    return Batch(x, 2 * task + torch.arange(n) % 2, torch.full((n,), task))
