"""The registry asked from Python: what a scenario file may not say, a script may not say either."""

from __future__ import annotations

import pytest

from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionsError


def test_an_option_that_a_plugin_does_not_take_is_refused_with_the_nearest() -> None:
    for ask in (registry.build, registry.resolve):
        with pytest.raises(OptionsError, match=r"unknown key 'capcity'; did you mean 'capacity'\?"):
            ask("memory", "reservoir", {"capacity": 5, "capcity": 6})
    assert registry.build("memory", "reservoir", {"capacity": 5}).slots.capacity == 5


def test_an_option_of_another_type_is_refused() -> None:
    for wrong in ("5", 5.5, True, 0):
        with pytest.raises(OptionsError, match="'capacity'"):
            registry.build("memory", "reservoir", {"capacity": wrong})
