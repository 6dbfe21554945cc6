"""A check of a plug-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Check = Callable[[Any], None]  # takes a plug-in; raises AssertionError where it breaks a promise
