"""Words that claim equality stand only beside an equivalence test with its margin.

That no difference was found is no equality: a noisy method would always pass. So a paragraph that says "as good as" and
the like has to name a margin and an interval too; else it may give the numbers, or say that so many seeds do not tell
two things apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import EXPERIMENTS, README

ROOT = README.parent
CLAIMS = (
    "as good as",
    "just as well",
    "no better",
    "no worse",
    "on par",
    "equally good",
    "equal within",
    "equals? naive",
    "is naive here",
    "indistinguishable",
    "lies? together",
    "surely",
    "adds nothing",
    "makes no difference",
)
CLAIM = re.compile(rf"\b({'|'.join(CLAIMS)})\b", re.IGNORECASE)
INTERVAL = re.compile(r"\[[-\N{MINUS SIGN}]?\d*\.\d+, [-\N{MINUS SIGN}]?\d*\.\d+\]")
TEST = re.compile(r"margin of an equivalence test")  # in the few words that a file's head has room for


def paragraphs(text: str) -> Iterator[str]:
    """Without tables and code, each on one line."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for part in re.split(r"\n\s*\n", text):
        lines = [line for line in part.splitlines() if not line.startswith("| ")]
        yield " ".join(" ".join(lines).split())


def head(path: Path) -> str:
    """The comment that a scenario file begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return "\n".join(comment)


def unfounded(text: str) -> list[str]:
    """Claims of equality with no margin and interval in their paragraph."""
    found = []
    for paragraph in paragraphs(text):
        founded = TEST.search(paragraph) or ("margin" in paragraph and INTERVAL.search(paragraph))
        if not founded:
            found += [match.group() for match in CLAIM.finditer(paragraph)]
    return found


PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FILES = sorted(EXPERIMENTS.rglob("*.yaml"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_claims_equality_only_beside_its_test(page: Path) -> None:
    assert unfounded(page.read_text(encoding="utf-8")) == []


def test_no_head_of_an_experiment_claims_equality_without_its_test() -> None:
    assert {path.name: found for path in FILES if (found := unfounded(head(path)))} == {}


@pytest.mark.parametrize("claim", ["as good as", "no better than", "equal\nwithin", "surely", "adds nothing"])
def test_a_planted_claim_is_seen(claim: str) -> None:
    planted = f"{README.read_text(encoding='utf-8')}\n\nOn these five seeds ridge is {claim} joint training.\n"
    assert unfounded(planted) == [" ".join(claim.split()).removesuffix(" than")]


def test_a_margin_and_an_interval_found_a_claim() -> None:
    told = (
        "Ridge is as good as joint: the 90 % interval of the difference, [-0.002, 0.011], lies inside the margin 0.02."
    )
    assert unfounded(told) == []
    assert unfounded(told.replace("the margin 0.02", "something")) == ["as good as"]
    assert unfounded(told.replace("[-0.002, 0.011], ", "")) == ["as good as"]
