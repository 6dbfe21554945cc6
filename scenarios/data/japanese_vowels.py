"""Japanese Vowels: Kudo, Toyama & Shimbo 1999, https://doi.org/10.24432/C5NS47.

Nine men say "ae"; who speaks is the class. The copy inside the package aeon, with its official test set.
Licence: CC BY 4.0 (the data), BSD-3 (aeon).
"""

from __future__ import annotations

import torch
from torch import Tensor

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import Dataset, Samples
from forgetlab.plugins import register

STEPS = 29  # of the longest sample
SPEAKERS = tuple(f"speaker {i}" for i in range(1, 10))

Series = list[Tensor]  # (12, steps) each


@register("data", "japanese_vowels")
def japanese_vowels() -> Dataset:
    """640 spoken vowels, 370 of them for testing: x (12 cepstral coefficients, 29 steps) float, 9 speakers.

    Every channel has mean 0 and standard deviation 1 over the steps of the training data; shorter samples, of 7 steps
    and more, end in zeros.
    """
    (train, train_y), (test, test_y) = _read("TRAIN"), _read("TEST")
    steps = torch.cat(train, dim=1)
    mean, deviation = steps.mean(1, keepdim=True), steps.std(1, keepdim=True, correction=0)

    def samples(series: Series, y: Tensor) -> Samples:
        x = torch.zeros(len(series), len(mean), STEPS)
        for row, one in zip(x, series, strict=True):
            row[:, : one.shape[1]] = (one - mean) / deviation
        return Samples(x, y)

    return Dataset(samples(train, train_y), samples(test, test_y), SPEAKERS)


def _read(part: str) -> tuple[Series, Tensor]:
    """A line holds channels, divided by colons, of steps, divided by commas, and last the speaker's number."""
    path = packaged("aeon", f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts")
    series, labels = [], []
    for line in path.read_text(encoding="utf-8").partition("@data")[2].split():
        *channels, speaker = line.split(":")
        rows = [[float(step) for step in channel.split(",")] for channel in channels]
        series.append(torch.tensor(rows, dtype=torch.float64))
        labels.append(int(speaker) - 1)
    return series, torch.tensor(labels)
