"""The table of deliberate breaks is true of the code as it is; that each is noticed, `make prove` shows."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("prove") / "breaks.py"


@pytest.fixture(scope="module")
def prove() -> Any:
    spec = spec_from_file_location("prove_breaks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # where its dataclass looks for its own module
    spec.loader.exec_module(module)
    return module


def test_each_break_is_in_one_place_and_each_test_is_there(prove: Any) -> None:
    assert prove.misplaced(prove.BREAKS, prove.Tree(prove.ROOT)) == []


def test_there_are_sixty_and_more_and_several_in_each_room(prove: Any) -> None:
    rooms = Counter(one.name.partition(":")[0] for one in prove.BREAKS)
    assert sum(rooms.values()) >= 60
    few = [room for room, n in rooms.items() if n < 2 and room not in ("batch", "cache")]  # rooms of one file
    assert few == []
    assert all(any(f"case {number}" in one.name for one in prove.BREAKS) for number in range(41, 49))


def test_a_break_whose_code_has_changed_is_told(prove: Any) -> None:
    """Nowhere, twice, or no program."""
    tree = prove.Tree(prove.ROOT)
    test = "test_each_break_is_in_one_place_and_each_test_is_there"
    told = {
        "what nobody " + "ever wrote": "0 times",
        "from __future__ import annotations": "times",
    }
    for old, words in told.items():
        (line,) = prove.misplaced([prove.Break("planted", old, "", test)], tree)
        assert words in line
    one = prove.BREAKS[0]
    (line,) = prove.misplaced([one._replace(new="(")], tree)
    assert line.startswith(f"{one.name}: ")
    (line,) = prove.misplaced([one._replace(test="test_that_is_not_there")], tree)
    assert "0 tests are called test_that_is_not_there" in line
