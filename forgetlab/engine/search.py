"""The search itself: values are proposed, each is tried in runs like any other, and the best are kept.

A trial is given no test data and no task that is scored: `forgetlab.engine.search_space` says what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch

from forgetlab.engine import one_run
from forgetlab.engine.search_space import Number, Space, about, choice_names, n_trials, space, with_values
from forgetlab.experiment import Choice, Experiment, Run, Strategy, StreamPart, Tuned
from forgetlab.seeding import generator

SPENT = ("samples_seen", "samples_replayed", "updates")  # what a search takes, trained on the search's tasks
Values = tuple[Number, ...]  # one for each choice
Proposals = Generator[Values, float | None, None]  # is told the score of each; None where training diverged


class NothingChosen(RuntimeError):
    """Training diverged in every trial."""


class Attempt(NamedTuple):
    """One run of a trial, carried out."""

    score: float | None  # None: training diverged
    counts: Mapping[str, Any]
    error: str | None = None


class Search(NamedTuple):
    """What is searched: the choices of one entry, each trial with each of these seeds."""

    experiment: Experiment
    entry: Strategy
    seeds: tuple[int, ...]

    def run(self, strategy: Strategy, seed: int) -> Run:
        """The run of a trial."""
        run, tuning = self.experiment.run(strategy, seed), self.experiment.tuning
        assert tuning is not None
        protocol = run.protocol.model_copy(update={"evaluate_on": "validation"})
        part = StreamPart(last=tuning.tasks, validation=tuning.validation)
        given = {"protocol": protocol, "part": part, "scenario": tuning.scenario or run.scenario}
        return run.model_copy(update=given)


Try = Callable[[Run, str], Attempt]  # the second tells a reader which trial it is


def chosen_by(search: Search, attempt: Try) -> tuple[Tuned, dict[str, Any]]:
    """What wins, the first of equals, and the whole log.

    Raises:
        NothingChosen: training diverged in every trial.
    """
    experiment, entry, seeds = search
    assert experiment.tuning is not None
    choices, n = space(experiment, entry), n_trials(experiment, entry)
    proposals = PROPOSALS[experiment.tuning.search](choices, n, experiment.tuning.seed)
    trials: list[dict[str, Any]] = []
    values: Values | None = next(proposals)
    while values is not None:
        trials.append(_trial(search, choices, values, f"trial {len(trials) + 1}/{n}", attempt))
        try:
            values = proposals.send(trials[-1]["score"])
        except StopIteration:
            values = None
    sound = [one for one in trials if one["score"] is not None]
    if not sound:
        raise NothingChosen(f"training diverged in each of the {n} trials: {trials[0]['errors'][0]}")
    best = max(sound, key=lambda one: one["score"])
    tuned = Tuned(
        values=best["values"],
        score=best["score"],
        trials=n,
        of=max(n_trials(experiment, other) for other in experiment.entries),
        search=about(experiment, entry, seeds),
        **{name: sum(one[name] for one in trials) for name in SPENT},
    )
    saw = [{"seed": seed, **_seen(search.run(entry, seed))} for seed in seeds]
    return tuned, {"chosen": tuned.model_dump(mode="json"), "saw": saw, "trials": trials}


def _trial(search: Search, choices: Space, values: Values, number: str, attempt: Try) -> dict[str, Any]:
    """What came of one trial."""
    named = dict(zip(choice_names(search.entry, choices), values, strict=True))
    written = ", ".join(f"{name}={value:g}" for name, value in named.items())
    folder = ",".join(f"{name}={value!r}" for name, value in named.items())
    strategy = with_values(search.entry, choices, values).model_copy(update={"name": f"{search.entry.name}.{folder}"})
    done = [attempt(search.run(strategy, seed), f"{number} ({written})") for seed in search.seeds]
    scores = [one.score for one in done if one.score is not None]
    totals = [one.counts.get("total", {}) for one in done]
    return {
        "values": named,
        "score": math.fsum(scores) / len(scores) if len(scores) == len(done) else None,
        "scores": [one.score for one in done],
        "errors": [one.error for one in done if one.error is not None],
        **{name: sum(total.get(name, 0) for total in totals) for name in SPENT},
    }


def _seen(run: Run) -> dict[str, Any]:
    """The tasks of a trial, and how many samples each is trained and scored on."""
    scenario = one_run.load_scenario(run)
    return {
        "tasks": [task.name for task in scenario.tasks],
        "classes": [[scenario.class_names[label] for label in task.classes] for task in scenario.tasks],
        "training_samples": [len(task.train.y) for task in scenario.tasks],
        "validation_samples": [len(task.test.y) for task in scenario.tasks],
    }


def _grid(choices: Space, n: int, seed: int) -> Proposals:
    """All combinations, or n of them, drawn once; in the order of the file."""
    every = list(product(*(choice.values for choice in choices)))
    if n < len(every):
        drawn = torch.randperm(len(every), generator=generator("grid", seed))[:n]
        every = [every[place] for place in sorted(drawn.tolist())]
    for values in every:  # noqa: UP028 - a list cannot be told the scores
        yield values


def _optuna(choices: Space, n: int, seed: int) -> Proposals:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011); the first n / 2 at random, ten at most."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, (n + 1) // 2))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    kinds = {str(number): _distribution(choice) for number, choice in enumerate(choices)}
    for _ in range(n):
        asked = study.ask(kinds)
        score = yield tuple(asked.params[name] for name in kinds)
        if score is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(asked, score)


def _distribution(choice: Choice) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if choice.values:
        return CategoricalDistribution(choice.values)
    assert choice.low is not None and choice.high is not None
    if isinstance(choice.low, int) and isinstance(choice.high, int):
        return IntDistribution(choice.low, choice.high, log=choice.log)
    return FloatDistribution(choice.low, choice.high, log=choice.log)


PROPOSALS: Mapping[str, Callable[[Space, int, int], Proposals]] = {"grid": _grid, "optuna": _optuna}
