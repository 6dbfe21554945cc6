"""The pictures are PNGs, equal for equal input, and show what they are given."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from forgetlab.metrics.intervals import Interval
from forgetlab.report import pictures
from forgetlab.results.store import Row

MATRIX: list[Row] = [[1.0, None], [0.25, 0.5]]


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png), format="png")


def lower(n: int) -> list[Row]:
    return [[0.9 if j <= i else None for j in range(n)] for i in range(n)]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into the cells."""
    written: list[str] = []
    write = Axes.text

    def text(self: Axes, x: float, y: float, s: str, **rest: Any) -> Any:
        written.append(s)
        return write(self, x, y, s, **rest)

    monkeypatch.setattr(Axes, "text", text)
    return written


@pytest.mark.slow
def test_equal_input_gives_equal_bytes() -> None:
    curve = [(1, Interval(0.0, None, 1)), (2, Interval(0.3, 0.1, 3))]
    first = pictures.accuracy_heat_map(MATRIX, ["a", "b"], "ewc")
    assert first == pictures.accuracy_heat_map(MATRIX, ["a", "b"], "ewc")
    assert pictures.forgetting_curves({"a": curve}, "x") == pictures.forgetting_curves({"a": curve}, "x")
    assert first.startswith(b"\x89PNG") and b"Software" not in first


def test_every_cell_is_written_and_the_unknown_is_a_dash(texts: list[str]) -> None:
    pictures.accuracy_heat_map(MATRIX, ["a", "b"], "ewc", initial=[None, None])
    assert texts == ["1.00", pictures.DASH, "0.25", "0.50"]


def test_a_row_before_training_comes_first_where_it_is_known(texts: list[str]) -> None:
    pictures.accuracy_heat_map(MATRIX, ["a", "b"], "ewc", initial=[0.1, None])
    assert texts[:2] == ["0.10", pictures.DASH] and len(texts) == 6


def test_an_unfinished_matrix_has_fewer_rows(texts: list[str]) -> None:
    pictures.accuracy_heat_map(MATRIX[:1], ["a", "b"], "ewc")
    assert texts == ["1.00", pictures.DASH]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "written"), [(15, 225), (16, 0)])
def test_cells_too_small_to_read_are_not_written(texts: list[str], n: int, written: int) -> None:
    png = pictures.accuracy_heat_map(lower(n), [f"task {i}" for i in range(n)], "many")
    assert len(texts) == written
    assert max(pixels(png).shape[:2]) < 1400


@pytest.mark.slow
def test_another_value_is_another_picture() -> None:
    changed: list[Row] = [[1.0, None], [0.25, 0.9]]
    ours, theirs = (pixels(pictures.accuracy_heat_map(m, ["a", "b"], "ewc")) for m in (MATRIX, changed))
    assert ours.shape == theirs.shape and (ours != theirs).any()


@pytest.mark.slow
def test_the_interval_over_seeds_is_a_band() -> None:
    narrow, wide = ([(step, Interval(0.1 * step, half, 3)) for step in (1, 2, 3)] for half in (0.01, 0.05))
    ours, theirs = (pixels(pictures.forgetting_curves({"a": curve}, "x")) for curve in (narrow, wide))
    coloured = [int((np.ptp(image[..., :3], axis=-1) > 0.05).sum()) for image in (ours, theirs)]
    assert coloured[1] > coloured[0]


@pytest.mark.parametrize("n", [0, 1, 8, 9, 40])
def test_any_number_of_curves_is_drawn(n: int) -> None:
    curves = {f"task {number}": [(1, Interval(0.01 * number, None, 1))] for number in range(n)}
    assert pictures.forgetting_curves(curves, "x").startswith(b"\x89PNG")
