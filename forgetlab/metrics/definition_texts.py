"""What each metric means, where it comes from and how others define it: ``forgetlab show metric NAME``."""

from __future__ import annotations

import difflib
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from forgetlab.metrics import accuracy_matrix, scores_beside_accuracy
from forgetlab.metrics.intervals import UNBOUNDED, Bounds
from forgetlab.metrics.price_definitions import PRICES

SHARE: Bounds = (0.0, 1.0)  # an accuracy, or what an accuracy has fallen by from its best
OF_SHARES: Bounds = (-1.0, 1.0)  # a difference of two accuracies
NEEDS = {
    "": "the accuracy matrix a",
    "initial": "the accuracy matrix a, and the accuracy before any training",
    "joint": "the accuracy matrix a, and that of the reference 'joint', same seed",
    "separate": "the accuracy matrix a, and that of the reference 'separate', same seed",
    "score": "the score matrix of the same name",
    "prequential": "the accuracy on each task's samples just before they are learned, in an online stream",
    "pretrained": "the accuracies on the pretraining data, at the start and after each task",
}


@dataclass(frozen=True)
class Metric:
    """A metric's definition; tasks count from 1 in the formula, and k tasks are learned."""

    compute: Callable[..., float | None]
    title: str
    formula: str
    source: str
    differs: str  # how other frameworks define it
    higher_is_better: bool = True
    needs: str = ""  # a key of NEEDS
    bounds: Bounds = SHARE  # an interval over seeds is cut to them

    @property
    def name(self) -> str:
        return self.compute.__name__

    @property
    def meaning(self) -> str:
        """The first paragraph of the function's docstring."""
        return " ".join((self.compute.__doc__ or "").partition("\n\n")[0].split())


_ALL = (
    Metric(
        accuracy_matrix.average_accuracy,
        "Average accuracy (final)",
        "A = 1/k Σ_{j≤k} a[k,j]",
        source="Lopez-Paz & Ranzato 2017, arXiv:1706.08840 (ACC)",
        differs="PILOT and PyCIL take the mean over test samples, which differs where test sets are unequal; "
        'their "average accuracy", and that of iCaRL, is a mean over stages: average_accuracy_stages.',
    ),
    Metric(
        accuracy_matrix.average_accuracy_stages,
        "Average accuracy over stages",
        "1/k Σ_{i≤k} (1/i Σ_{j≤i} a[i,j])",
        source="Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725 (average incremental accuracy)",
        differs="iCaRL and PILOT take each stage's mean over test samples, not tasks. continuum's accuracy_A "
        "is a mean over all pairs j ≤ i, where late stages count for more.",
    ),
    Metric(
        accuracy_matrix.forgetting,
        "Forgetting (best minus last)",
        "F = 1/(k-1) Σ_{j<k} (max_{j≤l≤k} a[l,j] - a[k,j])",
        source="after Chaudhry et al. 2018 (RWalk), arXiv:1801.10112",
        differs="RWalk and continuum leave the last row out of the maximum, so their value may be negative; "
        "Mammoth and PILOT leave it in, as here. Avalanche takes first minus last: forgetting_first_last.",
        higher_is_better=False,
    ),
    Metric(
        accuracy_matrix.forgetting_first_last,
        "Forgetting (first minus last)",
        "1/(k-1) Σ_{j<k} (a[j,j] - a[k,j])",
        source="Lomonaco et al. 2021 (Avalanche), arXiv:2104.00405",
        differs='What Avalanche calls "forgetting"; Mammoth, PILOT and Renate mean best minus last.',
        higher_is_better=False,
        bounds=OF_SHARES,
    ),
    Metric(
        accuracy_matrix.backward_transfer,
        "Backward transfer (BWT)",
        "BWT = 1/(k-1) Σ_{j<k} (a[k,j] - a[j,j])",
        source="Lopez-Paz & Ranzato 2017, arXiv:1706.08840",
        differs="Avalanche (as minus its forgetting) and Mammoth agree. continuum takes the mean over all "
        "pairs i > j instead of the last row.",
        bounds=OF_SHARES,
    ),
    Metric(
        accuracy_matrix.forward_transfer,
        "Forward transfer (FWT)",
        "FWT = 1/(T-1) Σ_{1<j≤T} (a[j-1,j] - a[0,j]), a[0,·] measured before any training",
        source="Lopez-Paz & Ranzato 2017, arXiv:1706.08840",
        differs="continuum subtracts no initial accuracy. clarena compares with independent models: "
        "relative_learning_accuracy. Mammoth takes a[0,j] from the model already trained on task j-1, which "
        "gives about 0 for most methods.",
        needs="initial",
        bounds=OF_SHARES,
    ),
    Metric(
        accuracy_matrix.learning_accuracy,
        "Learning accuracy",
        "LA = 1/k Σ_{j≤k} a[j,j]",
        source="Riemer et al. 2019 (MER), arXiv:1810.11910",
        differs="Also called plasticity. In class-incremental streams all classes seen so far compete.",
    ),
    Metric(
        accuracy_matrix.plasticity_change,
        "Change of plasticity",
        "1/m Σ_{j>k-m} a[j,j] - 1/m Σ_{j≤m} a[j,j], m = k/10 rounded down; from 20 tasks on",
        source="after Dohare et al. 2024, arXiv:2306.13812 (accuracy by task, as a curve)",
        differs="No other framework has it. It means something where tasks are equally hard, as under permutations.",
        bounds=OF_SHARES,
    ),
    Metric(
        accuracy_matrix.relative_learning_accuracy,
        "Learning accuracy relative to separate models",
        "1/k Σ_{j≤k} (a[j,j] - s[j,j]), s: one model per task",
        source="after Veniat et al. 2021 (CTrL), arXiv:2012.12631 (transfer, there on the last task)",
        differs="clarena calls this forward transfer; the other frameworks lack it.",
        needs="separate",
        bounds=OF_SHARES,
    ),
    Metric(
        accuracy_matrix.intransigence,
        "Intransigence",
        "1/|K| Σ_{k∈K} (a*[k,k] - a[k,k]), a*[k,·]: trained on tasks 1..k together; K: the k that have an a*",
        source="Chaudhry et al. 2018 (RWalk), arXiv:1801.10112",
        differs="RWalk reports I_k of single tasks. A final joint model in the place of a*[k,·] faces more "
        "classes in class-incremental streams, which makes sham negative values.",
        higher_is_better=False,
        needs="joint",
        bounds=OF_SHARES,
    ),
    Metric(
        accuracy_matrix.normalised_accuracy,
        "Normalised accuracy",
        "1/k Σ_{j≤k} (a[k,j] - chance_j) / (a*[k,j] - chance_j), a*[k,·]: trained on tasks 1..k together",
        source="the form of Mnih et al. 2015, doi:10.1038/nature14236, with joint in the human's place",
        differs="clarena normalises forgetting, between joint and a random model. Normalising between naive "
        "and joint explodes where naive hardly forgets.",
        needs="joint",
        bounds=UNBOUNDED,
    ),
    Metric(
        accuracy_matrix.pretrained_forgetting,
        "Forgetting of pretrained knowledge",
        "p[0] - p[k], p[i] the accuracy on the pretraining's test data after i tasks",
        source="this framework; for the question see Mehta et al. 2023, arXiv:2112.09153",
        differs="Others measure zero-shot or probe accuracy; here the head of the pretraining is kept as it was, so a "
        "drop may be a rotation of the features as well as a loss of knowledge.",
        higher_is_better=False,
        needs="pretrained",
        bounds=OF_SHARES,
    ),
    Metric(
        scores_beside_accuracy.router_accuracy,
        "Router accuracy",
        "1/k Σ_{j≤k} r[k,j], r[k,j]: share of task j's test samples sent to task j",
        source="after Kim et al. 2022, arXiv:2211.02633 (task-id prediction)",
        differs="The official L2P and DualPrompt let a test batch vote, which leaks the task where a batch "
        "holds one task; here every sample is routed for itself.",
        needs="score",
    ),
    Metric(
        scores_beside_accuracy.accuracy_given_route,
        "Accuracy given the right route",
        "1/k Σ_{j≤k} c[k,j], c[k,j]: accuracy on those of task j's test samples that were sent to task j",
        source="after Kim et al. 2022, arXiv:2211.02633 (within-task prediction)",
        differs="Not the accuracy with the task told, which counts the wrongly routed samples too.",
        needs="score",
    ),
    Metric(
        scores_beside_accuracy.macro_f1,
        "Macro F1",
        "1/k Σ_{j≤k} f[k,j], f[k,j]: mean over task j's classes of 2 P R / (P + R)",
        source="Lewis et al. 1996, doi:10.1145/243199.243277 (macro-averaging)",
        differs="Classes without test samples in the task are left out; scikit-learn counts predicted ones in.",
        needs="score",
    ),
    Metric(
        scores_beside_accuracy.auroc,
        "Area under the ROC curve",
        "1/k Σ_{j≤k} P(s(x+) > s(x-)) + P(s(x+) = s(x-)) / 2, s: difference of the two logits, x of task j",
        source="Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747",
        differs="Unlike accuracy it does not move with the share of the positive label, which may drift.",
        needs="score",
    ),
    Metric(
        scores_beside_accuracy.log_loss,
        "Log-loss",
        "1/k Σ_{j≤k} mean of -log p(y|x) over task j's test samples",
        source="Good 1952, doi:10.1111/j.2517-6161.1952.tb00104.x (logarithmic score)",
        differs="In nats, over the classes that compete at test; ridge gives no probabilities, so it has no value.",
        higher_is_better=False,
        needs="score",
        bounds=(0.0, math.inf),
    ),
    Metric(
        accuracy_matrix.prequential_accuracy,
        "Prequential accuracy",
        "share of i ≤ n with argmax f_{i-1}(x_i) = y_i, f_{i-1}: the model before the batch that holds x_i",
        source="Gama et al. 2013, doi:10.1007/s10994-012-5320-9 (test, then train)",
        differs="Each batch is answered once by the weights before its step, in training mode, among the classes that "
        "'loss_classes' lets compete, and augmented where training is. It rewards tracking the present, where the "
        "accuracy matrix asks for the past.",
        needs="prequential",
    ),
)
METRICS = {metric.name: metric for metric in _ALL}


def describe_metric(name: str) -> str:
    """A metric's definition, as text.

    Raises:
        LookupError: there is no such metric.
    """
    if name in PRICES:
        return "\n".join(
            [f"{name}: a price", "", *textwrap.wrap(PRICES[name], 96, initial_indent="  ", subsequent_indent="  ")]
        )
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(METRICS)}"
        raise LookupError(f"no metric '{name}'; {hint}")
    metric = METRICS[name]
    facts = {
        "meaning": metric.meaning,
        "better": "higher" if metric.higher_is_better else "lower",
        "interval": _interval_text(metric.bounds),
        "needs": NEEDS[metric.needs],
        "source": metric.source,
        "elsewhere": metric.differs,
    }
    lines = [f"{name}: {metric.title}", "", f"  {metric.formula}", ""]
    for label, text in facts.items():
        lines += textwrap.wrap(text, 96, initial_indent=f"{label:<11}", subsequent_indent=" " * 11)
    return "\n".join(lines)


def _interval_text(bounds: Bounds) -> str:
    """How the interval over seeds is made.

    >>> _interval_text((0.0, 1.0))
    "95 % t-interval over seeds, cut to the metric's bounds [0, 1]"
    """
    how = "95 % t-interval over seeds"
    if bounds == UNBOUNDED:
        return f"{how}; the metric has no bounds"
    low, high = (f"{bound:g}".replace("inf", "∞") for bound in bounds)
    return f"{how}, cut to the metric's bounds [{low}, {high}]"
