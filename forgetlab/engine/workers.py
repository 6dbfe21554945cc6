"""Units of work in processes side by side. Which process a unit runs in changes no number of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
Tell = Callable[[Any], None]
WATCH = 0.5  # seconds


class WorkerLost(RuntimeError):
    """A process ended in the midst of its work, by no error of Python's."""


def results(
    units: Sequence[Callable[[Tell], T]], tell: Tell, lasting: type, workers: int = 1
) -> Iterator[tuple[int, T]]:
    """Each unit's place and result, as they end.

    What a unit tells is told at once where there is one worker; where there are several, only what is ``lasting``, when
    the unit has ended.

    Raises:
        WorkerLost: a process was killed.
    """
    if workers == 1:
        for place, unit in enumerate(units):
            yield place, unit(tell)
        return
    from loky import ProcessPoolExecutor, as_completed
    from loky.process_executor import TerminatedWorkerError

    pool = ProcessPoolExecutor(workers)
    try:
        given = [pool.submit(_apart, os.getpid(), place, unit, lasting) for place, unit in enumerate(units)]
        for ended in as_completed(given):
            place, told, result = ended.result()
            for event in told:
                tell(event)
            yield place, result
    except TerminatedWorkerError as error:
        raise WorkerLost("a worker was killed, perhaps for the memory it took; what is finished is kept") from error
    finally:
        pool.shutdown(kill_workers=True)


def _apart(parent: int, place: int, unit: Callable[[Tell], T], lasting: type) -> tuple[int, list[Any], T]:
    _end_with(parent)
    told: list[Any] = []
    result = unit(lambda event: told.append(event) if isinstance(event, lasting) else None)
    return place, told, result


@cache
def _end_with(parent: int) -> None:
    """Leave this process when the one that gives it work is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
