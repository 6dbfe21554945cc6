"""The command line, asked from within this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from forgetlab.cli.main import main


def invoke(*arguments: object) -> Result:
    """What ``forgetlab`` answers to these arguments."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
