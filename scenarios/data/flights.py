"""Flights from New York City in 2013: Wickham 2014, https://github.com/tidyverse/nycflights13. Licence: CC0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import PositiveInt

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import Dataset, Table, labelled, numbers, read_table, thinned
from forgetlab.plugins import register

LATE = 15  # minutes
FEATURES = ("hour", "minute", "arrival", "distance", "weekday", "carrier", "origin", "dest")


@register("data", "flights")
def flights(
    domain: Literal["month", "origin"] = "month",
    rows_per_domain: PositiveInt | None = None,  # drawn once; by default all
    test_days: PositiveInt = 6,  # of each month, its last
) -> Dataset:
    """327,346 flights that arrived: whether more than 15 minutes late; the domain is the month, or the airport.

    x (N, D) float32 holds what the timetable says: hours of departure and arrival, minute, distance, weekday, carrier,
    origin and destination. What is measured on the day tells the label and is left out.
    Flights of one day are late together, so whole days are for testing, by default the last six of every month. With
    the weather the rate of late flights differs between these and the month's other days, in March .10 and .26, so
    look at the AUROC beside the accuracy. Standardised by the first domain's training rows alone, for later ones are
    the future; carriers and destinations that these do not have are 0 in all columns.

    Raises:
        FileNotFoundError: the package is not on this machine.
    """
    rows = _prepared(read_table(packaged("nycflights13", "nycflights13/data/flights.csv.zip")).rows)
    rows = thinned(rows, domain, rows_per_domain) if rows_per_domain else rows
    is_test = rows["day"] > rows["days"] - test_days
    train, test = Table("flights", rows[~is_test]), Table("flights", rows[is_test])
    parts = labelled(train, test, "late", domain=domain, class_names=("on time", "late"))
    data = numbers(parts, [x for x in FEATURES if x != domain], statistics="first_domain", max_categories=200)
    return replace(data, scores=("auroc", "log_loss"), rows_may_repeat=True)


def _prepared(rows: Any) -> Any:
    """Each flight that arrived, once, with what is not in the file."""
    import pandas as pd

    rows = rows.drop_duplicates().dropna(subset="arr_delay")
    date, arrival = pd.to_datetime(rows[["year", "month", "day"]]), rows["sched_arr_time"]
    return rows.assign(
        late=(rows["arr_delay"] > LATE).astype(int),
        month=date.dt.strftime("%Y-%m"),
        days=date.dt.days_in_month,
        weekday=date.dt.day_name(),
        arrival=arrival // 100 + arrival % 100 / 60,
    )
