"""TF-IDF and ridge on token ids, against scikit-learn's own on the same counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.tokenizer import PADDING
from forgetlab.config.load import load
from forgetlab.data.datasets import Samples
from forgetlab.experiment import Run
from forgetlab.learners import tfidf as module
from forgetlab.learners.context import Context
from forgetlab.learners.tfidf import Tfidf, conjugate_gradients, counted, fitted, smooth_idf, stacked, weighted
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario
from forgetlab.training.competing_classes import MASK
from helpers.streams import in_pairs

VOCABULARY, LENGTH = 60, 12


def corpus(labels: list[int], seed: int) -> Samples:
    """Texts of 3 to 12 tokens, of which about half come from the eight that the label prefers."""
    draw = generator("test_tfidf", seed)
    y = torch.tensor(labels)
    own = 1 + 8 * y.unsqueeze(1) + torch.randint(8, (len(y), LENGTH), generator=draw)
    any_ = torch.randint(1, VOCABULARY, (len(y), LENGTH), generator=draw)
    x = torch.where(torch.rand(len(y), LENGTH, generator=draw) < 0.5, own, any_)
    long = torch.randint(3, LENGTH + 1, (len(y), 1), generator=draw)
    return Samples(x.masked_fill(torch.arange(LENGTH) >= long, PADDING).int(), y)


def stream(tokenizer: str | None = "words") -> Scenario:
    """Two classes in each of three tasks."""
    train = [corpus([2 * t, 2 * t + 1] * 20, t) for t in range(3)]
    test = [corpus([2 * t, 2 * t + 1] * 10, 10 + t) for t in range(3)]
    return replace(in_pairs(train, test), tokenizer=tokenizer, scores=("macro_f1", "log_loss"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Any run: the reference asks for nothing but its device."""
    file: Path = tmp_path_factory.mktemp("tfidf") / "any.yaml"
    file.write_text("name: any\nscenario: split_digits\nmodel: mlp\nreferences: [naive]\n")
    experiment = load(file)
    return experiment.run(experiment.entries[0], 0)


def prepared(run: Run, scenario: Scenario, strength: float = 1.0) -> Tfidf:
    learner = Tfidf(strength)
    learner.prepare(Context(run, scenario, to_benchmark(scenario), torch.device("cpu")))
    return learner


def theirs(train: Samples, asked: Tensor, strength: float) -> Any:
    """scikit-learn's answers, fitted to all training texts at once."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import Ridge

    def counts(ids: Tensor) -> Any:
        return np.stack([np.bincount(row[row != PADDING], minlength=VOCABULARY) for row in ids.numpy()])

    weigh: Any = TfidfTransformer(sublinear_tf=True).fit(counts(train.x))
    onehot = torch.nn.functional.one_hot(train.y).numpy()
    fit: Any = Ridge(alpha=strength, solver="cholesky").fit(weigh.transform(counts(train.x)).toarray(), onehot)
    return fit.predict(weigh.transform(counts(asked)).toarray())


def together(scenario: Scenario, n: int) -> Samples:
    return Samples(*(torch.cat([getattr(task.train, part) for task in scenario.tasks[:n]]) for part in ("x", "y")))


def agrees(found: Tensor, expected: Any) -> bool:
    return bool(np.abs(found.numpy() - expected).max() < 1e-6)


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_after_every_task_it_is_scikit_learns_on_all_texts_so_far(run: Run, strength: float) -> None:
    scenario = stream()
    learner = prepared(run, scenario, strength)
    asked = torch.cat([task.test.x for task in scenario.tasks])
    for n in (1, 2, 3):
        learner.learn(n - 1)
        assert agrees(learner.logits(asked), theirs(together(scenario, n), asked, strength))


def test_its_answers_are_those_of_scikit_learns_classifier(run: Run) -> None:
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import RidgeClassifier

    scenario = stream()
    learner = prepared(run, scenario)
    for task in range(3):
        learner.learn(task)
    train, asked = together(scenario, 3), torch.cat([task.test.x for task in scenario.tasks])
    x, test = (counted(ids, at_least=VOCABULARY).toarray() for ids in (train.x, asked))
    weigh: Any = TfidfTransformer(sublinear_tf=True).fit(x)
    classifier: Any = RidgeClassifier(alpha=1.0).fit(weigh.transform(x).toarray(), train.y.numpy())
    expected = classifier.predict(weigh.transform(test).toarray())
    assert learner.logits(asked).argmax(1).tolist() == expected.tolist()
    assert (learner.logits(asked).argmax(1) == torch.cat([t.test.y for t in scenario.tasks])).double().mean() > 0.7


def test_an_idf_of_the_first_task_alone_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The break: weights that are not brought up to date."""
    scenario = stream()
    learner = prepared(run, scenario)
    first = smooth_idf(counted(scenario.tasks[0].train.x, at_least=VOCABULARY))
    monkeypatch.setattr(module, "smooth_idf", lambda texts: first[: texts.shape[1]])
    for task in range(3):
        learner.learn(task)
    asked = scenario.tasks[2].test.x
    assert not agrees(learner.logits(asked), theirs(together(scenario, 3), asked, 1.0))


def test_the_intercept_is_not_penalised() -> None:
    """A shift of every target is a shift of the intercept alone."""
    x = weighted(counted(corpus([0, 1] * 10, 0).x), smooth_idf(counted(corpus([0, 1] * 10, 0).x)))
    y = np.eye(2)[np.arange(20) % 2]
    weight, intercept = fitted(x, y, 1.0)
    moved, moved_intercept = fitted(x, y + 5, 1.0)
    assert np.allclose(weight, moved, atol=1e-9) and np.allclose(intercept + 5, moved_intercept)


def test_counts_leave_out_padding_and_grow() -> None:
    some = counted(torch.tensor([[3, 3, 1, PADDING], [PADDING] * 4]))
    more = counted(torch.tensor([[5, 1, 1, 1]]))
    whole = stacked([some, more])
    assert whole.toarray().tolist() == [[0, 1, 0, 2, 0, 0], [0] * 6, [0, 3, 0, 0, 0, 1]]
    rows = weighted(whole, smooth_idf(whole))
    assert np.allclose(np.sqrt((rows.toarray() ** 2).sum(1)), [1, 0, 1])
    assert some.shape == (2, 4)  # what was counted before is as it was


def test_a_text_of_unknown_words_alone_gets_the_intercept(run: Run) -> None:
    scenario = stream()
    learner = prepared(run, scenario)
    learner.learn(0)
    strange = torch.full((1, LENGTH), VOCABULARY + 7, dtype=torch.int32)
    assert np.allclose(learner.logits(strange).numpy(), learner.intercept)


def test_each_text_is_answered_for_itself(run: Run) -> None:
    scenario = stream()
    learner = prepared(run, scenario)
    learner.learn(0)
    asked = scenario.tasks[0].test.x
    alone = torch.cat([learner.logits(text.unsqueeze(0)) for text in asked])
    assert (alone - learner.logits(asked)).abs().max() < 1e-12


def test_conjugate_gradients_solve_all_columns_also_zeros() -> None:
    draw = np.random.default_rng(0)
    root = draw.normal(size=(30, 30))
    a, b = root @ root.T + np.eye(30), draw.normal(size=(30, 3))
    b[:, 1] = 0
    assert np.allclose(conjugate_gradients(lambda w: a @ w, b), np.linalg.solve(a, b), atol=1e-8)


def test_scores_are_over_seen_classes_and_counts_hold_the_texts(run: Run) -> None:
    scenario = stream()
    learner = prepared(run, scenario)
    assert learner.evaluate(0) is None
    learner.learn(0)
    first = learner.evaluate(0)
    assert first is not None and first["accuracy"] > 0.7 and learner.evaluate(1) is None
    assert first.keys() == {"accuracy", "macro_f1"}  # ridge gives no probabilities
    learner.learn(1)
    assert learner.logits(scenario.tasks[1].test.x).shape[1] == 4
    weight, intercept, idf = 8 * 4 * len(learner.idf), 8 * 4, 8 * len(learner.idf)
    assert learner.counts.stored_bytes == weight + intercept + idf
    distinct = sum(len(set(row) - {PADDING}) for row in together(scenario, 2).x.tolist())
    rows = sum(4 * (1 + 40) for _ in range(2))  # where each text begins
    assert learner.counts.memory_bytes == 8 * 80 + 2 * 4 * distinct + rows
    assert learner.counts.samples_seen == [40, 40] and learner.counts.updates == [0, 0]
    assert learner.current_backbone() is None


def test_a_class_that_no_text_had_does_not_compete(run: Run) -> None:
    scenario = stream()
    learner = prepared(run, scenario)
    learner.learn(1)
    logits = learner.logits(scenario.tasks[1].test.x)
    assert bool((logits[:, :2] == MASK).all()) and not bool((logits[:, 2:] == MASK).any())


def test_a_stream_of_numbers_is_refused(run: Run) -> None:
    with pytest.raises(OptionError, match="counts token ids"):
        prepared(run, stream(tokenizer=None))
