"""Processes that a test starts."""

from __future__ import annotations

import signal


def listening() -> None:
    """Hear Ctrl-C also where the tests run in the background of a shell, which ignores it for them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
