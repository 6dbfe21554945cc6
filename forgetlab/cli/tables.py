"""What finished runs show on a screen: tables of comparisons, and of the modules that a run keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forgetlab.cli.progress import say
from forgetlab.engine import search_space, settings_then
from forgetlab.experiment import Experiment, Strategy
from forgetlab.report.summary import Finished

if TYPE_CHECKING:
    from forgetlab.report.comparison import Question
    from forgetlab.results.store import RunFolder, Store


def print_comparison(store: Store, name: str, description: Mapping[str, Any], markdown: bool) -> None:
    """The table of what was run last under a name."""
    done = _stored(store, name, description)
    if done and markdown:
        from forgetlab.report import summary, tables

        print(tables.markdown(summary.summarise(done), name))
    elif done:
        print_table(done, name)


def print_answers(
    store: Store, name: str, description: Mapping[str, Any], question: Question, *, ranks: bool, markdown: bool
) -> None:
    """Paired differences, ranks, or both, of what was run last under a name.

    Raises:
        LookupError: the question names a strategy that is not there, or a metric that no strategy defines.
    """
    from forgetlab.report import comparison, tables

    done = _stored(store, name, description)
    if not done:
        return
    parts = comparison.differences_from_one(done, question) if question.against else []
    parts += comparison.ranks(done, question.metric) if ranks else []
    if markdown:
        print(tables.in_markdown(parts, name))
        return
    console = screen()
    console.print(f"\n[bold]{name}[/bold]")
    console.print(tables.on_a_screen(parts))


def _stored(store: Store, name: str, description: Mapping[str, Any]) -> list[Finished]:
    """The finished runs of an experiment; what else is in its folder had other settings. It says what is missing."""
    experiment = settings_then.stored_experiment(description)
    done, wanted = finished_of(store, experiment, name), len(experiment.entries) * len(experiment.seeds)
    if len(done) < wanted:
        say(f"{name}: {len(done)} of {wanted} runs are finished; 'forgetlab run' of its file goes on")
    return done


def finished_of(store: Store, experiment: Experiment, folder: str) -> list[Finished]:
    """The finished runs of an experiment as it is set now, in the folder of this name."""
    runs = [(entry, seed) for entry in experiment.entries for seed in experiment.seeds]
    folders = [(store.folder(folder, entry.name, seed), entry, seed) for entry, seed in runs]
    return finished([folder for folder, entry, seed in folders if _is_its_own(folder, experiment, entry, seed)])


def show_in_mlflow(experiment: Experiment, folders: list[RunFolder], text: str) -> None:
    """Fill MLflow; the run folders hold everything, so a store that cannot be reached stops nothing."""
    from forgetlab.report.mlflow_store import update_view

    try:
        update_view(experiment.name, folders, experiment.tracking.uri, resolved_file=text)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        say(f"MLflow at {experiment.tracking.uri} was not filled: {reason}; the same command tries again")


def _is_its_own(folder: RunFolder, experiment: Experiment, entry: Strategy, seed: int) -> bool:
    """Whether a folder holds the experiment's run of an entry, with what its search chose."""
    if folder.key is None:
        return False
    run = search_space.settled(experiment, entry, seed, folder.description())
    return run is not None and folder.holds(run.model_dump(mode="json", exclude_none=True))


def finished(folders: Sequence[RunFolder]) -> list[Finished]:
    found = [(folder, folder.result()) for folder in folders]
    return [
        Finished(result, folder.timing(), adopted=bool(folder.adopted_from))
        for folder, result in found
        if result is not None and result.finished
    ]


def print_table(done: list[Finished], title: str) -> None:
    from forgetlab.report.summary import summarise
    from forgetlab.report.tables import table

    console = screen()
    console.print(f"\n[bold]{title}[/bold]")
    console.print(table(summarise(done)))


def print_modules(folder: RunFolder) -> None:
    """What a run keeps of each task, and of all together."""
    from rich.table import Table

    from forgetlab.engine import reopened
    from forgetlab.results import module_files

    files, console = module_files.task_files(folder), screen()
    reopened.refuse_shared(module_files.description(folder))
    if not files:
        raise module_files.ModulesError(
            f"{folder.path} keeps no modules; a strategy with 'isolation' keeps one per task"
        )
    table = Table("task", "name", "classes", "attached at", *right("trained", "stored", "bytes"), box=None)
    result = folder.result()
    trained = result.counts.get("per_task", {}).get("trainable", []) if result else []
    for task, path in files.items():
        about, numbers, size = module_files.sizes(path)
        moved = f"{trained[task]:,}" if task < len(trained) else "-"
        classes = ", ".join(map(str, about.get("classes", [])))
        cells = (str(task), about["task"], classes, attached_at(about.get("sites", [])), moved)
        table.add_row(*cells, f"{numbers:,}", f"{size:,}")
    console.print(table)
    for name in ("shared", "router"):
        if (path := module_files.path_of(folder, name)).is_file():
            _, numbers, size = module_files.sizes(path)
            console.print(f"{name}: {numbers:,} numbers, {size:,} bytes", highlight=False)


def right(*names: str) -> list[Any]:
    from rich.table import Column

    return [Column(name, justify="right") for name in names]


def attached_at(sites: Sequence[Mapping[str, Any]]) -> str:
    """Roles and their layers.

    >>> attached_at([{"role": "attn.q", "layer": 0}, {"role": "attn.v", "layer": 0}, {"role": "attn.q", "layer": 1}])
    'attn.q 0-1, attn.v 0'
    """
    layers: dict[str, list[int]] = {}
    for site in sites:
        layers.setdefault(site["role"], []).append(site["layer"])
    return ", ".join(f"{role} {_span(sorted(set(at)))}" for role, at in layers.items()) or "nowhere"


def _span(numbers: list[int]) -> str:
    gapless = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if gapless and len(numbers) > 1 else ", ".join(map(str, numbers))


def screen() -> Any:
    """Where tables go: wide enough where nobody looks at a terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)
    return console
