"""The commands about plug-ins: what there is, what one is, a new one, and whether one keeps its promises."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from forgetlab.checks import scaffold

if TYPE_CHECKING:
    from forgetlab.plugins.registry import Plugin


FILE = click.Path(path_type=Path)
REFUSED = 2


def fail(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(REFUSED)


@click.command(name="list")
@click.argument("kind", required=False)
def list_(kind: str | None) -> None:
    """List the plug-ins of KIND (or of all kinds), the metrics, and what of Avalanche's own runs by its name."""
    from forgetlab.avalanche import stock
    from forgetlab.metrics.definition_texts import METRICS
    from forgetlab.plugins import options, registry

    if kind == "avalanche":
        click.echo(stock.listing())
        return
    names = {**{name: registry.available(name) for name in registry.KINDS}, "metric": list(METRICS)}
    names["avalanche"] = stock.runnable()
    if kind is not None and kind not in names:
        fail(f"no kind {kind!r}{options.suggestion(kind, names)}; kinds: {', '.join(names)}")
    for a_kind in [kind] if kind else names:
        click.echo(f"{a_kind}: {', '.join(names[a_kind]) or 'none yet'}")


@click.command()
@click.argument("kind")
@click.argument("name")
def show(kind: str, name: str) -> None:
    """Show what NAME of a KIND is: its docstring, paper, and parameters with types and defaults."""
    from forgetlab.avalanche import stock
    from forgetlab.metrics.definition_texts import describe_metric
    from forgetlab.plugins import options, registry

    tellers = {"metric": describe_metric, "avalanche": stock.describe_stock}
    if kind not in (kinds := [*registry.KINDS, *tellers]):
        fail(f"no kind {kind!r}{options.suggestion(kind, kinds)}; kinds: {', '.join(kinds)}")
    try:
        click.echo(tellers[kind](name) if kind in tellers else plugin_text(registry.find(kind, name)))
    except LookupError as error:
        fail(str(error.args[0]))


@click.command()
@click.argument("kind", type=click.Choice(scaffold.KINDS))
@click.argument("name")
@click.option("--folder", type=FILE, default=Path(), help="Where the two files go.  [default: here]")
def new(kind: str, name: str, folder: Path) -> None:
    """Write a plug-in of a KIND to start from: NAME.py, which works as it is, and its test."""
    try:
        click.echo("\n".join(scaffold.advice(kind, name, scaffold.new(kind, name, folder))))
    except (scaffold.Refused, OSError) as error:
        fail(str(error))


@click.command()
@click.argument("file", type=FILE)
@click.option("--name", help="Check this one alone of what the file registers.")
def check_module(file: Path, name: str | None) -> None:
    """Check that what FILE registers keeps the promises of its kind. This runs the code in FILE.

    It ends with 0 where all promises are kept, 1 where one is broken, and 2 where the file cannot be used.
    """
    from rich.console import Console

    from forgetlab.plugins.registry import PluginError

    try:
        sys.exit(scaffold.report(file, name, Console()))
    except (scaffold.Refused, PluginError) as error:
        fail(str(error))


COMMANDS = (list_, show, new, check_module)


def plugin_text(plugin: Plugin) -> str:
    """What a plug-in is: its docstring, paper, and parameters with types and defaults."""
    from forgetlab.plugins import registry
    from forgetlab.results.paper_protocols import as_written, assumed_by

    module = inspect.getmodule(plugin.factory)
    title = f"{plugin.kind} {plugin.name}: {registry.KINDS[plugin.kind].meaning}"
    texts = [title, inspect.getdoc(plugin.factory), inspect.getdoc(module)]
    lines = [
        f"  {p.name}: {p.type} ({'required' if p.required else f'default {p.default!r}'})"
        for p in registry.parameters(plugin)
    ]
    texts.append("\n".join(["Parameters:", *lines]) if lines else "No parameters.")
    if assumed := assumed_by(plugin):
        texts.append(f"Its paper assumes 'protocol: {{{as_written(assumed)}}}'.")
    return "\n\n".join(text for text in texts if text)
