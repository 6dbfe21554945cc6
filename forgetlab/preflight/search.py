"""What stands against a search: told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from forgetlab.engine.search_space import entry_path, n_trials, trains
from forgetlab.experiment import Experiment, Problem, Tuning
from forgetlab.plugins.options import OptionError

if TYPE_CHECKING:
    from forgetlab.streams.scenario import Scenario


NO_OPTUNA = "optuna is not installed: pip install 'forgetlab[tune]', or write 'search: grid'"
OTHER_CLASSES = (
    "the class order varies with the seed, so classes that the search sees under one are scored under another: "
    "leave 'seeds' out (then each run has a search of its own), or take class_order out of protocol.seeds_vary"
)
AS_MANY = "list as many for each strategy, or say 'trials: N' under 'tuning' (the table tells how many each used)"


def search_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is unfair, or cannot be searched, as far as the file alone tells."""
    tuning = experiment.tuning
    if tuning is None:
        return
    if tuning.search == "optuna" and find_spec("optuna") is None:
        yield ("tuning", "search"), NO_OPTUNA
    named = isinstance(tuning.seeds, tuple) and (tuning.seeds, len(tuning.seeds)) != (experiment.seeds, 1)
    if named and tuning.scenario is None and "class_order" in experiment.protocol.seeds_vary:
        yield ("tuning", "seeds"), OTHER_CLASSES
    if tuning.search == "grid":
        ranges = [choice for choice in tuning.choices if not choice.values]
        yield from ((choice.at, "a range is for 'search: optuna'; a grid needs a list") for choice in ranges)
        if tuning.trials is None and not ranges:
            yield from _unequal(experiment)


def _unequal(experiment: Experiment) -> Iterator[Problem]:
    """Strategies that would get fewer trials than others. Who has nothing to train may have nothing to choose."""
    sizes = {entry.name: max(n_trials(experiment, entry), 1) for entry in experiment.entries}
    largest = max(sizes, key=lambda name: sizes[name])
    for entry in experiment.entries:
        n = sizes[entry.name]
        if n < sizes[largest] and (n > 1 or trains(entry)):
            few = f"{n} combination{'s' if n > 1 else ''} to try in {entry.name}, {sizes[largest]} in {largest}"
            yield entry_path(experiment, entry), f"{few}: {AS_MANY}"


def search_stream_problems(experiment: Experiment, scenario: Scenario) -> Iterator[Problem]:
    """What speaks against the search once its stream is there; ``scenario`` is the whole one that is to be scored."""
    tuning = experiment.tuning
    if tuning is None:
        return
    if tuning.scenario is not None:
        yield from _other_stream_problems(experiment, tuning, scenario)
        return
    n, k = len(scenario.tasks), tuning.tasks or 0
    if n - k < 2:
        why = f"{max(n - k, 0)} of its {n} tasks would be left to score, and forgetting needs 2"
        yield ("tuning", "tasks"), f"the stream is too short for a search on {k} tasks: {why}"


def _other_stream_problems(experiment: Experiment, tuning: Tuning, scenario: Scenario) -> Iterator[Problem]:
    from forgetlab.data.datasets import as_input
    from forgetlab.plugins.registry import built
    from forgetlab.streams import soundness
    from forgetlab.streams.scenario import pretraining_tasks

    place, spec = ("tuning", "scenario"), tuning.scenario or {}
    seed = tuning.seeds[0] if isinstance(tuning.seeds, tuple) else experiment.seeds[0]
    try:
        other: Scenario = built("scenario", spec, seed=seed)
        holds = [stream.tokenizer or "numbers" for stream in (other, scenario)]
        if holds[0] != holds[1]:
            raise OptionError("it holds {}, and the scored stream {}".format(*holds))
        if experiment.pretrain is not None:
            pretraining_tasks(experiment.pretrain, other, seed)
        x = as_input(other.tasks[0].train.x[:2])
        built("model", experiment.model, input_shape=tuple(x.shape[1:])).eval()(x)
    except OptionError as error:
        yield (*place, *error.keys), str(error)
        return
    except Exception as error:  # what a data set or a model says for itself
        yield place, str(error).partition("\n")[0] or type(error).__name__
        return
    yield from (
        (place, message) for message in soundness.soundness_problems(other) or soundness.shared_rows(other, scenario)
    )
    n = min(len(other.tasks), tuning.tasks or len(other.tasks))
    listed = experiment.protocol.budget.listed
    if listed is not None and len(listed) < n:
        told = f"'protocol: {{budget: ...}}' lists {len(listed)} numbers, and the search is on {n} tasks of this stream"
        yield place, f"{told}: write one number for all, or 'tuning: {{tasks: {len(listed)}}}'"
    if n < max(2, tuning.tasks or 0):
        yield place, f"the search needs {max(2, tuning.tasks or 0)} tasks, and this stream has {n}"
    if other.task_known_at_test != scenario.task_known_at_test:
        yield place, "in one of both streams the task is told at test, in the other it is not: give both one setting"
