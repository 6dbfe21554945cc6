"""The registry asked from Python: what a scenario file may not say, a script may not say either."""

from __future__ import annotations

import pytest

from forgetlab import plugins
from forgetlab.plugins import OptionsError


def test_an_option_that_a_plugin_does_not_take_is_refused_with_the_nearest() -> None:
    for ask in (plugins.build, plugins.resolve):
        with pytest.raises(OptionsError, match=r"unknown key 'capcity'; did you mean 'capacity'\?"):
            ask("memory", "reservoir", {"capacity": 5, "capcity": 6})
    assert plugins.build("memory", "reservoir", {"capacity": 5}).slots.capacity == 5


def test_an_option_of_another_type_is_refused() -> None:
    for wrong in ("5", 5.5, True, 0):
        with pytest.raises(OptionsError, match="'capacity'"):
            plugins.build("memory", "reservoir", {"capacity": wrong})
