"""TF-IDF and ridge: what counting words does for a stream of texts, without any network.

Weights are those of scikit-learn's TfidfTransformer(sublinear_tf=True): (1 + ln tf) (1 + ln((1 + n) / (1 + df))), rows
of length 1. An idf changes with every text, and with it all rows, so no sum of weighted rows stays true: kept are the
labels and, as sparse counts, how often each token is in each training text; every task weights and fits them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forgetlab.avalanche.tensor_data import batches
from forgetlab.backbones.tokenizer import PADDING
from forgetlab.learners.closed_form import BATCH, answered, count_pass
from forgetlab.learners.context import Context
from forgetlab.learners.learner import Learner, Scores
from forgetlab.metrics.accuracy_matrix import Array
from forgetlab.plugins.options import OptionError
from forgetlab.streams.scenario import Scenario
from forgetlab.training.competing_classes import only

Sparse = Any  # scipy.sparse.csr_array
TOLERANCE = 1e-10  # of the fit's residual, beside the right side's length


class Tfidf(Learner):
    """Ridge to one-hot labels on TF-IDF; the intercept is not penalised."""

    trains = False

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def check(self, scenario: Scenario) -> None:
        """Raises:
        OptionError: the stream holds no token ids.
        """
        if scenario.tokenizer is None:
            raise OptionError("tfidf counts token ids, and this stream holds none")

    def prepare(self, context: Context) -> None:
        self.check(context.scenario)
        super().prepare(context)
        self.texts: list[Sparse] = []  # how often each token is in each
        self.labels = torch.zeros(0, dtype=torch.int64)

    def learn(self, task: int) -> None:
        scenario, stream = self.context.scenario, self.context.benchmark.streams["train"]
        for batch in batches(stream[task].dataset, BATCH, "cpu"):
            self.texts.append(counted(batch.x))
            self.labels = torch.cat([self.labels, batch.y])
        self._fit()
        self._count(len(scenario.tasks[task].train.y))

    def evaluate(self, task: int) -> Scores | None:
        return answered(self.context, task, set(self.labels.tolist()), lambda ids, _: self.logits(ids))

    def logits(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, C)"""
        width = len(self.idf)
        texts = counted(ids.cpu(), at_least=width)
        never = np.full(texts.shape[1] - width, 1 + np.log(1 + len(self.labels)))  # tokens of no training text
        x = weighted(texts, np.concatenate([self.idf, never]))
        logits = torch.from_numpy(x[:, :width] @ self.weight + self.intercept)
        return only(logits, self.labels.bincount() != 0).to(self.context.device)

    def _fit(self) -> None:
        texts = stacked(self.texts)
        self.idf = smooth_idf(texts)
        onehot = torch.nn.functional.one_hot(self.labels).double().numpy()
        self.weight, self.intercept = fitted(weighted(texts, self.idf), onehot, self.strength)

    def _count(self, n: int) -> None:
        answers = {name: torch.from_numpy(getattr(self, name)) for name in ("idf", "weight", "intercept")}
        self.counts.keep(answers)
        arrays = [array for text in self.texts for array in (text.data, text.indices, text.indptr)]
        self.counts.memory_bytes = self.labels.nbytes + sum(array.nbytes for array in arrays)
        count_pass(self.counts, [answers["weight"], answers["intercept"]], n)


def counted(ids: Tensor, at_least: int = 0) -> Sparse:
    """How often each token is in each text, padding left out. (N, L) -> (N, V), V the largest id plus one"""
    from scipy.sparse import csr_array

    rows, places = ids.ne(PADDING).nonzero().unbind(1)
    tokens = ids[rows, places].int().numpy()
    shape = (len(ids), max(at_least, int(ids.max()) + 1))
    return csr_array((np.ones(len(tokens), dtype=np.int32), (rows.int().numpy(), tokens)), shape=shape)


def stacked(parts: list[Sparse]) -> Sparse:
    """Texts one after another, as wide as the widest."""
    from scipy.sparse import csr_array, vstack

    width = max(part.shape[1] for part in parts)
    same = [csr_array((part.data, part.indices, part.indptr), shape=(part.shape[0], width)) for part in parts]
    return csr_array(vstack(same))


def smooth_idf(texts: Sparse) -> Array:
    """1 + ln((1 + n) / (1 + df)), df the texts that hold a token. (V,)"""
    df = np.bincount(texts.indices, minlength=texts.shape[1])
    return 1 + np.log((1 + texts.shape[0]) / (1 + df))


def weighted(texts: Sparse, idf: Array) -> Sparse:
    """TF-IDF rows of length 1; an empty text stays zero."""
    x = texts.astype(np.float64)
    x.data = (1 + np.log(x.data)) * idf[x.indices]
    rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    x.data /= np.sqrt(np.bincount(rows, weights=x.data**2))[rows]
    return x


def fitted(x: Sparse, y: Array, strength: float) -> tuple[Array, Array]:
    """Ridge's weight (V, C) and intercept (C,): (Xc^T Xc + s I) W = Xc^T Y, Xc the rows less their mean."""
    mean, transposed = x.mean(axis=0), x.T.tocsr()

    def apply(w: Array) -> Array:
        v = x @ w - mean @ w
        return transposed @ v - np.outer(mean, v.sum(0)) + strength * w

    weight = conjugate_gradients(apply, transposed @ y - np.outer(mean, y.sum(0)))
    return weight, y.mean(0) - mean @ weight


def conjugate_gradients(apply: Callable[[Array], Array], b: Array) -> Array:
    """X with A X = B, column by column, for a symmetric positive definite A: Hestenes & Stiefel 1952."""
    x, r, p = np.zeros_like(b), b.copy(), b.copy()
    square = (r * r).sum(0)
    enough = TOLERANCE**2 * square
    for _ in range(10 * len(b)):
        if (square <= enough).all():
            break
        q = apply(p)
        step = _ratio(square, (p * q).sum(0))
        x, r = x + step * p, r - step * q
        now = (r * r).sum(0)
        p, square = r + _ratio(now, square) * p, now
    return x


def _ratio(a: Array, b: Array) -> Array:
    """a / b; 0 where a column is solved and both are."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
