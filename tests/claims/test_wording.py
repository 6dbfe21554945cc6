"""What README, docs and the heads of the experiments say of two numbers that are near each other.

"As good as" and its like claim equality. That no difference was found is no such claim: a noisy method would always
pass. So in the paragraph of such words there must stand the margin of an equivalence test, and the interval that lies
inside it. "Surely" asks for an interval that is corrected for the family of comparisons. Who only wants to say that
few seeds do not tell two things apart says that: it needs no test. What is equal exactly, or by construction, is
listed in `EXACT`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import EXPERIMENTS, README, ROOT

EQUALITY = (
    r"\bas (good|bad|strong|accurate) as\b",
    r"\bequals?\b[^.;:]*\bwithin\b",
    r"\bequals\b",
    r"\b(is|are|was|were|stays?|does) (just )?(equal|the same|identical)\b",
    r"\bequal (to )?`?(naive|joint|separate|ridge|replay|fine-tuning)\b",
    r"\b(is|are) (naive|joint|separate|`separate`|`joint`)\b(?! (fine-tuning|training|is|are))",
    r"\bno (better|worse|different)\b",
    r"\bhardly (better|worse|different)\b",
    r"\b(makes?|made|is) no difference\b",
    r"\b(lies?|lay) together\b",
    r"\b(adds?|gains?|loses?|costs?) nothing\b(?! (visible|that))",
    r"\bon (a )?par\b",
    r"\bindistinguishable\b",
    r"\blearns? what\b",
)
SURENESS = (r"\bsurely\b", r"\bcertainly\b", r"\bwithout doubt\b", r"\bsignificant(ly)?\b")
NUMBER = r"[+\-−]?\d*\.?\d+"
INTERVAL = rf"\[{NUMBER}, {NUMBER}\]"
EXACT = (  # no findings over seeds: what these say is held by a test, to the bit or to rounding
    r"\bto the (last )?(bit|digit)\b",
    r"\bbit for bit\b",
    r"\bequal runs, equal bytes\b",
    r"\bby construction\b",
    r"\bmerged equals attached\b",
    r"\ball is equal that its folder tells\b",
    r"\d(\.\d+)?e-\d",  # a tolerance of rounding
)
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), *sorted(EXPERIMENTS.rglob("*.yaml")))


def prose(path: Path, text: str) -> str:
    """What is said in words: a page without its code, or the comments of a scenario file's head."""
    if path.suffix == ".yaml":
        return "\n".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    """Each paragraph, item of a list and row of a table as one line."""
    for block in re.split(r"\n\s*\n|\n(?=- |\| )", text):
        yield " ".join(block.split())


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?;])\s+", paragraph)


def unfounded(path: Path, text: str) -> list[str]:
    """The sentences that claim more than stands in their paragraph."""
    found = []
    for paragraph in paragraphs(prose(path, text)):
        has_interval = re.search(INTERVAL, paragraph) is not None
        is_equivalence = has_interval and re.search(r"\bmargin\b", paragraph) is not None
        is_corrected = has_interval and re.search(r"\b(Bonferroni|corrected)\b", paragraph) is not None
        for sentence in sentences(paragraph):
            exact = any(re.search(pattern, sentence) for pattern in EXACT)
            if not exact and not is_equivalence and _says(EQUALITY, sentence):
                found.append(f"{path.name}: equal by which margin? {sentence}")
            if not is_corrected and _says(SURENESS, sentence):
                found.append(f"{path.name}: sure after which correction? {sentence}")
    return found


def _says(patterns: tuple[str, ...], sentence: str) -> bool:
    return any(re.search(pattern, sentence, re.IGNORECASE) for pattern in patterns)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_called_equal_without_a_margin(path: Path) -> None:
    assert unfounded(path, path.read_text(encoding="utf-8")) == []


PLANTED = {
    "as good as": "Ridge on frozen features is as good as replay of 100 stories here.",
    "equal within": "What both give is equal within the intervals.",
    "equals": "On this stream LwF equals naive training.",
    "equal naive": "EWC and SI equal naive training here.",
    "is naive": "LwF is naive here (paired difference -0.001 [-0.004, 0.001]).",
    "no better": "Merging answers no better than fine-tuning in sequence.",
    "hardly": "Its prototypes are hardly better.",
    "adds nothing": "Adapting the backbone adds nothing to them.",
    "surely": "With equal trials only replay is surely better (+0.084 [0.006, 0.162]).",
    "over two lines": "The closed forms are as\ngood as the probe.",
    "in a list": "- the margin is [0.1, 0.2]\n- ridge is as good as replay",
}


@pytest.mark.parametrize("words", PLANTED)
def test_a_planted_claim_is_found(words: str) -> None:
    text = f"Some words before.\n\n{PLANTED[words]} Some more.\n\nA margin elsewhere: [0.1, 0.2]; Bonferroni.\n"
    assert len(unfounded(Path("page.md"), text)) == 1
    head = "\n".join(f"# {line}" for line in PLANTED[words].splitlines())
    assert len(unfounded(Path("file.yaml"), f"# forgetlab run file.yaml\n#\n{head}\nname: x\n")) == 1


FOUNDED = {
    "a margin": "EWC equals naive within 0.02, the margin named beforehand: the 90 % interval is [-0.002, 0.011].",
    "a correction": "Replay is surely better: corrected for a family of four, [0.010, 0.140].",
    "to the bit": "A stored module's answers are equal to the bit.",
    "rounding": "Every step equals Avalanche's (6e-8).",
    "said of the seeds": "Three seeds do not tell replay (0.642) and modules (0.632) apart.",
    "no claim": "Every strategy gets equally many trials, in equal shares, under equal conditions.",
    "code": "```python\n# as good as\n```",
}


@pytest.mark.parametrize("words", FOUNDED)
def test_what_is_founded_or_exact_passes(words: str) -> None:
    assert unfounded(Path("page.md"), f"Before.\n\n{FOUNDED[words]}\n") == []
