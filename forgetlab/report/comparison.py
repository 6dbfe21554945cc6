"""Which strategies differ from one of them, which are shown to equal it, and which ranks their means may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forgetlab.metrics.definition_texts import METRICS
from forgetlab.metrics.families import BySeed, PairedDifference, paired_differences, rank_intervals
from forgetlab.metrics.intervals import Bounds, Interval, t_interval
from forgetlab.plugins.options import suggestion
from forgetlab.report.number_format import of_seeds
from forgetlab.report.summary import Finished, bounds_of, by_seed, grouped
from forgetlab.report.tables import DASH, SECTIONS, Part

VERDICTS = {1: "above", -1: "below", 0: "open"}


@dataclass(frozen=True)
class Question:
    """Against which strategy the others are held, by which metric, and within which margin two are called equal."""

    against: str | None
    metric: str = "average_accuracy"
    margin: float | None = None


@dataclass(frozen=True)
class _Row:
    """One strategy and its values."""

    strategy: str
    label: str
    identity: str
    is_reference: bool
    values: BySeed


def differences(finished: Sequence[Finished], question: Question) -> list[Part]:
    """The file's strategies minus one of its entries, paired by seed; one table per way in which the task is known.

    The family is every strategy of the file (its references are no strategies) that defines the metric, and is told the
    task where the one that it is held against is told it, or neither is.

    Raises:
        LookupError: no such strategy or metric, or none that defines it.
    """
    rows = _rows(finished, question.metric)
    baseline = _named(rows, question.against or "")
    others = [row for row in rows if row is not baseline and not row.is_reference]
    family = [row for row in others if row.values and _alike(row, baseline)]
    if not family:
        raise LookupError(f"no strategy is there to hold against '{baseline.strategy}' by '{question.metric}'")
    found = paired_differences(
        {row.label: row.values for row in family},
        baseline.values,
        margin=question.margin,
        bounds=_of_a_difference(bounds_of(question.metric)),
    )
    sections = [(identity, [row for row in family if row.identity == identity]) for identity in SECTIONS]
    foot = _foot_of_differences(question, baseline, len(family), [row.label for row in others if row not in family])
    title = METRICS[question.metric].title
    return [
        Part(f"{title} minus {baseline.label}. {SECTIONS[identity]}", _columns(some, baseline, found, question), foot)
        for identity, some in sections
        if some
    ]


def _columns(
    rows: Sequence[_Row],
    baseline: _Row,
    found: Mapping[str, PairedDifference | None],
    question: Question,
) -> dict[str, list[str]]:
    pairs = [found[row.label] for row in rows]
    n = len(baseline.values)
    table = {
        "strategy": [row.label for row in rows],
        "difference (95 %, alone)": [
            DASH if one is None else of_seeds(_signed(one.alone), one.alone.n, n) for one in pairs
        ],
        "95 % together": [DASH if one is None else _ends(one.together) for one in pairs],
        "is": [DASH if one is None else VERDICTS[one.direction] for one in pairs],
    }
    if question.margin is not None:
        header = f"within ±{question.margin:g}"
        table[header] = [DASH if one is None else "shown" if one.equal else "not shown" for one in pairs]
    return table


def _foot_of_differences(question: Question, baseline: _Row, size: int, left_out: Sequence[str]) -> str:
    of_family = f"{size} comparisons" if size > 1 else "1 comparison"
    each = f"{100 * (1 - 0.05 / size):.4g} %"
    told = [
        f"n = {len(baseline.values)} seeds, paired; a family of {of_family}: together they hold with 95 %, so each is "
        f"a {each} t-interval (Bonferroni). Above and below are said of that one alone; open is not equal."
    ]
    if question.margin is not None:
        told.append(
            f"Within ±{question.margin:g}: two one-sided tests at {5 / size:.2g} % each (TOST, Bonferroni), "
            "the margin to be named before looking."
        )
    if left_out:
        told.append(f"Not compared (the task known otherwise, or no value): {', '.join(left_out)}.")
    return " ".join(told)


def ranks(finished: Sequence[Finished], metric: str) -> list[Part]:
    """Each strategy's mean, its rank among those of its section, and the ranks that it may have.

    Raises:
        LookupError: no such metric, or no strategy defines it.
    """
    rows = [row for row in _rows(finished, metric) if row.values]
    if not rows:
        raise LookupError(f"no strategy defines '{metric}' here")
    return [
        _ranks_of_section(heading, some, metric)
        for identity, heading in SECTIONS.items()
        if (some := [row for row in rows if row.identity == identity])
    ]


def _ranks_of_section(heading: str, rows: Sequence[_Row], metric: str) -> Part:
    found = rank_intervals({row.label: row.values for row in rows}, higher_is_better=METRICS[metric].higher_is_better)
    n = max(len(row.values) for row in rows)
    means = [t_interval(row.values.values(), bounds=bounds_of(metric)) for row in rows]
    columns = {
        "strategy": [row.label for row in rows],
        METRICS[metric].title: [of_seeds(str(mean), mean.n, n) for mean in means],
        "rank [95 %]": [str(found[row.label]) for row in rows],
    }
    pairs = len(rows) * (len(rows) - 1) // 2
    foot = (
        f"n = {n} seeds. Rank 1 is the best mean; the interval holds the ranks that are not ruled out, for all rows at "
        f"once with 95 % (Mogstad et al. 2024, from paired t-intervals of {pairs} pairs, Bonferroni)."
    )
    return Part(heading, columns, foot)


def _rows(finished: Sequence[Finished], metric: str) -> list[_Row]:
    """
    Raises:
        LookupError: no such metric.
    """
    if metric not in METRICS:
        near = suggestion(metric, METRICS) or f"; there are: {', '.join(METRICS)}"
        raise LookupError(f"no metric '{metric}'{near}")
    values = by_seed(finished, metric)
    return [
        _Row(runs[0].result.strategy, label, told, runs[0].result.family == "reference", values[label, told])
        for (label, told), runs in grouped(finished).items()
    ]


def _named(rows: Sequence[_Row], name: str) -> _Row:
    for row in rows:
        if name in (row.strategy, row.label):
            if not row.values:
                raise LookupError(f"'{name}' does not define this metric")
            return row
    names = [row.strategy for row in rows]
    hint = suggestion(name, names) or f"; there are: {', '.join(names)}"
    raise LookupError(f"no strategy '{name}'{hint}")


def _alike(one: _Row, other: _Row) -> bool:
    """Both are told the task, or neither is."""
    return (one.identity == "told") == (other.identity == "told")


def _of_a_difference(bounds: Bounds) -> Bounds:
    """Between which values the difference of two such metrics lies.

    >>> _of_a_difference((0, 1))
    (-1, 1)
    """
    low, high = bounds
    return low - high, high - low


def _signed(interval: Interval) -> str:
    return f"{_three(interval.mean)} {_ends(interval)}".rstrip()


def _ends(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"[{_three(interval.low)}, {_three(interval.high)}]"


def _three(value: float) -> str:
    """Three digits with their sign, and no "-0.000"."""
    return f"{round(value, 3) + 0.0:+.3f}"
