"""The command ``forgetlab``. It imports what a command needs when the command is called, so that help comes at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forgetlab import __version__
from forgetlab.cli import plugin_commands, run_commands
from forgetlab.cli.plugin_commands import FILE, fail
from forgetlab.cli.run_commands import RUNS
from forgetlab.cli.run_commands import load as _load

if TYPE_CHECKING:
    from forgetlab.experiment import Experiment
    from forgetlab.results.store import RunFolder

WORKERS = click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Runs side by side; no number changes."
)
MARKDOWN = click.option("--markdown", is_flag=True, help="As Markdown, for a text.")
TARGETS = Path("experiments/published/targets.csv")
DEFAULT_URI = "sqlite:///mlflow.db"
FAILED_RUNS, INTERRUPTED = 1, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Experiments on catastrophic forgetting: one file, several strategies and seeds, one honest table."""


for command in (*plugin_commands.COMMANDS, *run_commands.COMMANDS):
    main.add_command(command)


@main.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--fresh", is_flag=True, help="Run everything again, whatever is finished.")
@click.option("--no-tracking", is_flag=True, help="Leave MLflow out; the run folders hold everything.")
@WORKERS
@RUNS
def run(files: Sequence[Path], fresh: bool, no_tracking: bool, workers: int, runs: Path) -> None:
    """Run scenario FILES: every strategy with every seed, then the table of each file."""
    with _interruptible():
        failed = sum(_run(experiment, runs, fresh, not no_tracking, workers) for experiment in _load(files))
    if failed:
        sys.exit(FAILED_RUNS)


def _run(experiment: Experiment, runs: Path, fresh: bool, tracked: bool, workers: int) -> int:
    """Carry out one experiment and print its table; returns how many runs failed."""
    from rich.console import Console

    from forgetlab.cli.progress import Progress, say
    from forgetlab.cli.tables import finished, print_table, show_in_mlflow
    from forgetlab.config.load import resolved
    from forgetlab.engine.all_runs import carry_out
    from forgetlab.results.store import Store

    text = resolved(experiment)
    done: list[RunFolder] = []

    def after_strategy(_: object, folders: list[RunFolder]) -> None:
        done.extend(folders)
        if tracked:
            show_in_mlflow(experiment, done, text)

    with Progress(experiment, Console(stderr=True)) as progress:
        folders = carry_out(
            experiment, Store(runs), fresh=fresh, report=progress, after_strategy=after_strategy, workers=workers
        )
    print_table(finished(folders), experiment.name)
    say(f"Run folders: {runs / experiment.name}")
    if tracked:
        uri = experiment.tracking.uri
        option = "" if uri == DEFAULT_URI else f" --uri {uri}"
        say(f"See every curve side by side: forgetlab ui {experiment.name}{option}")
    if progress.failed:
        say(f"{progress.failed} of {progress.runs} runs failed; the same command tries them again")
    return progress.failed


@main.command()
@click.argument("file", type=FILE)
def check(file: Path) -> None:
    """Print the resolved scenario FILE, every default filled in, or all that is wrong with it."""
    (experiment,) = _load([file])
    from forgetlab.config.load import resolved

    click.echo(resolved(experiment), nl=False)


@main.command()
@click.argument("file", type=FILE)
@click.option("--out", type=FILE, help="Where the picture goes.  [default: previews/NAME.png]")
def preview(file: Path, out: Path | None) -> None:
    """Show the stream of scenario FILE before anything is trained: its tasks, its samples, and what comes when."""
    (experiment,) = _load([file])
    from rich.console import Console

    from forgetlab.cli.progress import say
    from forgetlab.engine.one_run import load_scenario
    from forgetlab.experiment import Strategy
    from forgetlab.report.stream_preview import picture, stream_facts, task_table

    scenario = load_scenario(experiment.run(Strategy(name="none"), experiment.seeds[0]))
    console = Console()
    console.print(task_table(scenario, console.width))
    click.echo("\n".join(stream_facts(scenario, experiment.scenario.get("setting"))))
    path = out or Path("previews") / f"{experiment.name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(scenario, experiment.name))
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    say(f"Picture: {path}")


@main.command()
@click.argument("names", nargs=-1)
@click.option("--against", metavar="STRATEGY", help="Paired differences of all strategies from this one, corrected.")
@click.option("--ranks", is_flag=True, help="Ranks of the means, with their intervals.")
@click.option("--metric", help="Of '--against' and '--ranks'.  [default: average_accuracy]")
@click.option("--margin", type=float, help="Of '--against': an equivalence test with this margin, named beforehand.")
@MARKDOWN
@RUNS
def compare(
    names: Sequence[str],
    against: str | None,
    ranks: bool,
    metric: str | None,
    margin: float | None,
    markdown: bool,
    runs: Path,
) -> None:
    """Print the table of experiments NAMES (default: all) again, from their run folders."""
    from forgetlab.cli import tables
    from forgetlab.plugins.options import suggestion
    from forgetlab.report.comparison import Question
    from forgetlab.results.store import Store

    if metric is not None and against is None and not ranks:
        fail("'--metric' goes with '--against STRATEGY' or '--ranks'; the whole table holds the usual ones")
    if margin is not None and against is None:
        fail("'--margin' goes with '--against STRATEGY': what is to be equal to what?")
    if margin is not None and not margin > 0:
        fail(f"'--margin' is above 0, not {margin:g}")

    found = Store(runs).experiments()
    if not found:
        fail(f"nothing was run under {runs} yet; 'forgetlab run FILE' does, and '--runs' names another folder")
    for name in names:
        if name not in found:
            hint = suggestion(name, found) or f"; there are: {', '.join(found)}"
            fail(f"no experiment {name!r} under {runs}{hint}")
    question = Question(against, metric or "average_accuracy", margin)
    for name in names or found:
        if against is None and not ranks:
            tables.print_comparison(Store(runs), name, found[name], markdown)
            continue
        try:
            tables.print_answers(Store(runs), name, found[name], question, ranks=ranks, markdown=markdown)
        except LookupError as error:
            fail(f"{name}: {error.args[0]}")


@main.command()
@click.argument("names", nargs=-1)
@click.option("--quick", is_flag=True, help="A shortened schedule: shows that all rows run, and judges none.")
@click.option("--targets", type=FILE, default=TARGETS, show_default=True, help="The table of published numbers.")
@MARKDOWN
@WORKERS
@RUNS
def verify(names: Sequence[str], quick: bool, targets: Path, markdown: bool, workers: int, runs: Path) -> None:
    """Run the rows NAMES (default: all) of the published numbers; it ends with 1 where a judged one differs."""
    from forgetlab.cli import verify as rows
    from forgetlab.cli.published_targets import TargetsError

    try:
        with _interruptible():
            sys.exit(FAILED_RUNS if rows.verify(targets, names, runs, quick, markdown, workers) else 0)
    except TargetsError as error:
        fail(str(error))


@main.command()
@click.argument("run", type=FILE)
@click.option(
    "--merged", type=(int, FILE), metavar="TASK FILE", help="Write the backbone with that task's change in it."
)
@click.option(
    "--peft", type=(int, FILE), metavar="TASK FOLDER", help="Write that task's LoRA as Hugging Face's peft does."
)
@RUNS
def modules(run: Path, merged: tuple[int, Path] | None, peft: tuple[int, Path] | None, runs: Path) -> None:
    """List what RUN keeps of each task, or write one task's module for other programs.

    RUN is a run's folder, or NAME/STRATEGY[/seed-N] below the folder of all runs.
    """
    from forgetlab.cli import tables
    from forgetlab.cli.progress import say
    from forgetlab.engine import peft_files, reopened
    from forgetlab.plugins.options import OptionError
    from forgetlab.plugins.registry import PluginError
    from forgetlab.results import module_files

    try:
        folder = module_files.run_folder(run, runs)
        if merged is not None:
            gap = reopened.write_merged(folder, *merged)
            say(f"Merged: {merged[1]}; its answers to the task's test samples differ by {gap:.1g} at most")
        if peft is not None:
            peft_files.export(folder, *peft)
            say(f"In peft's format: {peft[1]}; the head is beside it, in {peft_files.HEAD}")
        if merged is peft is None:
            tables.print_modules(folder)
    except (module_files.ModulesError, OptionError, PluginError, OSError) as error:
        fail(str(error))


@main.command()
@click.argument("name", required=False)
@click.option("--uri", default=DEFAULT_URI, show_default=True, help="Where MLflow keeps its data.")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@click.option("--port", default=0, help="Port of the server; 0 takes a free one.")
def ui(name: str | None, uri: str, no_browser: bool, port: int) -> None:
    """Start MLflow's UI at the charts of experiment NAME, or of the newest one."""
    from forgetlab.report.mlflow_ui import serve

    try:
        sys.exit(serve(uri, name, open_browser=not no_browser, port=port, announce=click.echo))
    except (LookupError, OSError, RuntimeError) as error:
        fail(str(error.args[0] if error.args else error))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the command at once and cleanly: every file is whole, the task under way is lost."""
    from forgetlab.engine.workers import WorkerLost
    from forgetlab.results.store import Busy

    try:
        yield
    except (Busy, WorkerLost) as error:
        fail(str(error))
    except KeyboardInterrupt:
        click.echo("\nStopped. What is finished is kept; the same command goes on from there.", err=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
