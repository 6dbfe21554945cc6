"""The commands that look after what runs left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forgetlab.cli.plugin_commands import FILE, fail

if TYPE_CHECKING:
    from forgetlab.engine.adoption import Adoption
    from forgetlab.experiment import Experiment

RUNS = click.option(
    "--runs", type=FILE, default=Path("runs"), show_default=True, help="Folder that holds all run folders."
)
LEFT = 1  # something is finished and was not adopted


def load(paths: Sequence[Path]) -> list[Experiment]:
    """The experiments of all files, or all that is wrong with any of them."""
    from forgetlab.config.load import load
    from forgetlab.config.yaml_reader import FileErrors

    found, refused = [], []
    for path in paths:
        try:
            found.append(load(path))
        except FileErrors as error:
            refused.append(str(error))
    if refused:
        fail("\n".join(refused))
    return found


@click.group(name="runs")
def runs_() -> None:
    """Look after finished runs."""


@runs_.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Tell what would be adopted, and write nothing.")
@RUNS
def adopt(files: Sequence[Path], dry_run: bool, runs: Path) -> None:
    """Take over the finished runs of scenario FILES that an earlier version made, so that they are found again.

    Their settings, package versions and tasks must be today's; the code that made them is not compared, so each is
    marked as adopted. It ends with 1 where a finished run was not adopted, and tells why.
    """
    from forgetlab.engine import adoption
    from forgetlab.results.store import Busy, Store

    if not runs.is_dir():
        fail(f"no folder {runs}; '--runs' names another one")
    left = 0
    for experiment in load(files):
        try:
            outcomes = adoption.adopt(experiment, Store(runs), dry_run=dry_run)
        except Busy as error:
            fail(str(error))
        except OSError as error:  # a full disk, somebody else's folder: each file is whole, the old or the new one
            fail(f"{error.filename or runs}: {error.strerror}; what was adopted before stays so, the rest is as it was")
        left += sum(outcome.verdict == "refused" for outcome in outcomes)
        click.echo("\n".join([*_told(outcomes, dry_run), _summary(experiment.name, outcomes, dry_run)]))
    if left:
        sys.exit(LEFT)


def _told(outcomes: Sequence[Adoption], dry_run: bool) -> list[str]:
    """A line for each run that is adopted, or cannot be; trials that can be are only counted."""
    adopted = "would be adopted" if dry_run else "adopted"
    lines = []
    for outcome in outcomes:
        if outcome.verdict == "refused":
            lines.append(f"  {outcome.run}: not adopted: {'; '.join(outcome.reasons)}")
        elif outcome.verdict == "adopted" and not outcome.trial:
            lines.append(f"  {outcome.run}: {adopted}" + (f" ({outcome.note})" if outcome.note else ""))
    return lines


def _summary(name: str, outcomes: Sequence[Adoption], dry_run: bool) -> str:
    words = {
        "adopted": "would be adopted" if dry_run else "adopted",
        "current": "found as they are",
        "refused": "not adopted",
        "unfinished": "not finished",
    }
    parts = []
    for what, trials in (("runs", False), ("trials", True)):
        found = [outcome.verdict for outcome in outcomes if outcome.trial == trials]
        counts = [f"{found.count(verdict)} {told}" for verdict, told in words.items() if verdict in found]
        if counts:
            parts.append(f"of {len(found)} {what} {', '.join(counts)}")
    return f"{name}: {'; '.join(parts)}"


COMMANDS = (runs_,)
