"""Avalanche's own plug-ins and strategies by name: which can be run here, which cannot and why, and their arguments.

Every name of Avalanche 0.6.0 was run on a small stream; a name that no table holds comes from a newer Avalanche and
is tried as it is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from forgetlab.experiment import Protocol, ResolvedSpec
from forgetlab.plugins.options import OptionError, suggestion, type_name, unknown_key

KINDS = {"plugin": "plug-in", "strategy": "strategy"}
WORDS = re.compile(r":param (\w+):\s*(.+?)(?=\s*(?::param|:return|\Z))", re.DOTALL)  # on a parameter, in a docstring
GIVEN = {  # what the run gives, and where it comes from
    "model": "it is the network of 'model:', which all entries share",
    "optimizer": "it comes from 'train: {optimizer: ..., lr: ...}', a fresh one for each task",
    "criterion": "it is the cross-entropy, or the strategy's own",
    "train_mb_size": "it comes from 'train: {batch_size: ...}'",
    "train_epochs": "it comes from 'protocol: {budget: ...}'",
    "eval_mb_size": "no score depends on it",
    "device": "it comes from 'device:'",
    "evaluator": "the scores are ForgetLab's own",
    "plugins": "an entry is combined with others of the families beside 'avalanche:'",
    "eval_every": "every task is evaluated when a task has ended",
    "peval_mode": "every task is evaluated when a task has ended",
    "num_workers": "batches are slices of tensors, which need no workers",
    "cwr_layer_name": "it is the network's head",
}


@dataclass(frozen=True)
class StockVerdict:
    """Whether a name can be run, and under which protocols."""

    refused: str = ""  # why it cannot
    heads: tuple[str, ...] = ("growing", "fixed", "per-task")
    seen_only: bool = False  # whether `loss_classes` must be 'seen' where the task is not told
    why: str = ""

    @property
    def needs(self) -> str:
        heads = "" if "per-task" in self.heads else f"head: {' or '.join(self.heads)}"
        return ", ".join(filter(None, [heads, "loss_classes: seen" if self.seen_only else ""]))


RUNS = StockVerdict()
EVALUATING = "it leaves the model in evaluation mode while it trains"
BRINGS = "it brings a pretrained model of its own, so it does not start where the others start"
ONE_HEAD = ("growing", "fixed")
CWR = StockVerdict(heads=ONE_HEAD, seen_only=True, why=f"it looks for the one layer that answers, and {EVALUATING}")
RWALK = StockVerdict(heads=ONE_HEAD, seen_only=True, why=f"it knows no weights that a task brings, and {EVALUATING}")
DER = StockVerdict(heads=("fixed",), why="it holds logits against those that it kept, so their number may not grow")

BIC = StockVerdict("it refuses a model that can be asked with tasks, as ours can")
COPE = StockVerdict("it takes the last linear layer of the model, which is not its head here, for an embedding")
GSS = StockVerdict("it adds the gradients that it measures to those of the step, and stores again what it replays")
LFL = StockVerdict("it needs a model with Avalanche's get_features()")
MIR = StockVerdict("it is made for online streams: it never replays the classes of the task before")
SI = StockVerdict(
    "on a CPU its copies of the weights are the weights, so nothing matters to it; use 'regularization: si'"
)
CLASS_MEANS = StockVerdict("it needs a model with one of Avalanche's classifiers by class means")
GENERATOR = StockVerdict("it needs a generator, which no file can name")
AUTOENCODER = StockVerdict("it trains an autoencoder, which answers no classes")

PLUGINS: Mapping[str, StockVerdict] = {
    **dict.fromkeys(("AGEMPlugin", "EWCPlugin", "FromScratchTrainingPlugin", "GDumbPlugin", "GEMPlugin"), RUNS),
    **dict.fromkeys(("LwFPlugin", "MASPlugin", "ReplayPlugin"), RUNS),
    "CWRStarPlugin": CWR,
    "RWalkPlugin": RWALK,
    **dict.fromkeys(("CurrentDataFeCAMUpdate", "MemoryFeCAMUpdate", "FeCAMOracle"), CLASS_MEANS),
    **dict.fromkeys(("CurrentDataNCMUpdate", "MemoryNCMUpdate", "NCMOracle"), CLASS_MEANS),
    **dict.fromkeys(("GenerativeReplayPlugin", "TrainGeneratorAfterExpPlugin"), GENERATOR),
    "BiCPlugin": BIC,
    "CoPEPlugin": COPE,
    "GSS_greedyPlugin": GSS,
    "LFLPlugin": LFL,
    "MIRPlugin": MIR,
    "SynapticIntelligencePlugin": SI,
    "EarlyStoppingPlugin": StockVerdict(
        "it reads Avalanche's own evaluation; 'protocol: {budget: ...}' says when to stop"
    ),
    "EvaluationPlugin": StockVerdict("the scores are ForgetLab's own"),
    "FeatureDistillationPlugin": StockVerdict("it needs a model that keeps its features in an attribute"),
    "LRSchedulerPlugin": StockVerdict("it holds the scheduler of one optimizer, but each task has a fresh one"),
    "PPPloss": StockVerdict("it is a loss, that of CoPE"),
    "RARPlugin": StockVerdict("it traces the model symbolically, which a model that masks classes does not allow"),
    "SupervisedPlugin": StockVerdict("it is what plug-ins are built on, and does nothing"),
}
STRATEGIES: Mapping[str, StockVerdict] = {
    **dict.fromkeys(("AGEM", "Cumulative", "ER_ACE", "EWC", "FromScratchTraining", "GDumb", "GEM"), RUNS),
    **dict.fromkeys(("LwF", "MAS", "MER", "Naive", "Replay"), RUNS),
    "CWRStar": CWR,
    "DER": DER,
    **dict.fromkeys(("AETraining", "VAETraining"), AUTOENCODER),
    **dict.fromkeys(("AR1", "LearningToPrompt"), StockVerdict(BRINGS)),
    **dict.fromkeys(
        ("ExpertGateStrategy", "PackNet", "PNNStrategy", "SCR"), StockVerdict("it needs its own kind of model")
    ),
    "BiC": BIC,
    "CoPE": COPE,
    "GSS_greedy": GSS,
    "LFL": LFL,
    "MIR": MIR,
    "SynapticIntelligence": SI,
    "ER_AML": StockVerdict("it never returns where a class has fewer samples in memory than a batch has"),
    "FeatureReplay": StockVerdict("it takes the head out of the model, which then cannot grow"),
    "GenerativeReplay": StockVerdict(
        "its generator is for images of 28 x 28, and trained in a loop that counts nothing"
    ),
    "ICaRL": StockVerdict("it makes a model of its own from two parts, and answers by class means"),
    "JointTraining": StockVerdict("it is trained once, on the whole stream; the reference 'joint' is that here"),
    "OnlineNaive": StockVerdict("Avalanche has deprecated it, in favour of Naive"),
    "StreamingLDA": StockVerdict("it trains no network; the reference 'ridge' is the closed-form classifier here"),
}
OWN_BATCHES = ("GDumbPlugin", "ReplayPlugin")  # plug-ins that put old samples into the incoming batches
OWN_STEPS = ("MER",)
TABLES = {"plugin": PLUGINS, "strategy": STRATEGIES}


def stock_problems(spec: ResolvedSpec, protocol: Protocol) -> list[OptionError]:
    """All that speaks against {"plugin" or "strategy": a name, argument: value, ...}; each says at which key."""
    from forgetlab.avalanche.api import stock_class, stock_names

    kind = next(key for key in KINDS if key in spec)
    other, name = next(key for key in KINDS if key != kind), spec[kind]
    verdict = TABLES[kind].get(name, RUNS)
    if verdict.refused:
        return [OptionError(f"Avalanche's {name} cannot be used here: {verdict.refused}", kind)]
    if name in stock_names(other) and name not in stock_names(kind):
        return [OptionError(f"{name} is a {KINDS[other]} of Avalanche: write '{other}: {name}'", kind)]
    try:
        stock = stock_class(kind, name)
    except OptionError as error:
        return [error]
    found = [OptionError(f"{name} {why}", kind) for why in _against(verdict, kind, stock, protocol)]
    return found + list(_of_arguments(name, stock, {key: value for key, value in spec.items() if key != kind}))


def clash(spec: ResolvedSpec, family: str) -> str | None:
    """Why another family has no meaning beside a plug-in or strategy that can be run."""
    name = spec.get("strategy") or spec["plugin"]
    if family == "replay" and ("strategy" in spec or name in OWN_BATCHES):
        return f"replay has no meaning with {name}, which draws old samples itself: the memory would keep them as new"
    if family == "regularization" and name in OWN_STEPS:
        return f"regularization has no meaning with {name}, which takes its steps itself: nothing joins its loss"
    return None


def _against(verdict: StockVerdict, kind: str, stock: type, protocol: Protocol) -> Iterator[str]:
    if kind == "strategy" and not {"model", "optimizer"} <= inspect.signature(stock).parameters.keys():
        yield "makes a model or an optimizer of its own, so it does not start where the others start"
    if protocol.head not in verdict.heads:
        yield f"cannot work with 'head: {protocol.head}': {verdict.why}; it needs {verdict.needs}"
    elif verdict.seen_only and protocol.loss_classes != "seen" and not protocol.task_known_at_test:
        yield f"cannot work with 'loss_classes: {protocol.loss_classes}': {verdict.why}; it needs {verdict.needs}"


def _of_arguments(name: str, stock: type, arguments: Mapping[str, Any]) -> Iterator[OptionError]:
    taken = own_arguments(stock)
    for key, value in arguments.items():
        if key in GIVEN:
            yield OptionError(f"{name}: the run gives {key!r}: {GIVEN[key]}", key)
        elif key not in taken:
            yield OptionError(f"{name}: {unknown_key(key, taken)}", key)
        elif wanted := _misfit(taken[key], value):
            yield OptionError(f"{name}: {key!r} should be {wanted}, not {value!r}", key)
    if missing := [key for key, p in taken.items() if p.default is p.empty and key not in arguments]:
        yield OptionError(f"{name} needs {' and '.join(map(repr, missing))}", None)


def own_arguments(stock: type) -> dict[str, inspect.Parameter]:
    """What a file may give a stock class."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = inspect.signature(stock).parameters.items()
    return {name: p for name, p in named if p.kind not in several and name not in GIVEN}


def _misfit(parameter: inspect.Parameter, value: Any) -> str | None:
    """What a value should be, where its parameter says so and the value is not that."""
    told, default = parameter.annotation, parameter.default
    untold = told is parameter.empty
    kind = {int: float}.get(type(default), type(default)) if untold else told  # a default of 1 may mean any number
    inside = [hint for hint in get_args(kind) if hint is not NoneType]
    kind = inside[0] if len(inside) == 1 and NoneType in get_args(kind) else kind
    wanted, fits = PLAIN.get(kind, ("", lambda _: True))
    several = untold and isinstance(value, list)  # LwF's alpha may be a list, one for each task
    return None if several or fits(value) or value == default else wanted


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


PLAIN: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: _is_number(value) and isinstance(value, int)),
    float: ("a number", _is_number),
    str: ("a text", lambda value: isinstance(value, str)),
}


def runnable() -> list[str]:
    """The names that run."""
    return [name for table in TABLES.values() for name, verdict in sorted(table.items()) if not verdict.refused]


def listing() -> str:
    """All names of the installed Avalanche, by what can be done with them."""
    from forgetlab.avalanche.api import stock_names

    lines: list[str] = []
    for kind, table in TABLES.items():
        names, what = stock_names(kind), {"plugin": "Plug-ins", "strategy": "Strategies"}[kind]
        lines.append(f"{what} that run, as 'avalanche: {{{kind}: NAME, ...}}':")
        runs = {name: table[name].needs for name in names if name in table and not table[name].refused}
        lines += [f"  {name}{f' (needs {needs})' if needs else ''}" for name, needs in runs.items()]
        lines.append(f"{what} that are refused:")
        lines += [f"  {name}: {table[name].refused}" for name in names if name in table and name not in runs]
        if new := [name for name in names if name not in table]:
            lines.append(f"{what} of a newer Avalanche, which are tried: {', '.join(new)}")
    return "\n".join(lines)


def describe_stock(name: str) -> str:
    """What a stock plug-in or strategy is: Avalanche's own words, and the arguments that a file may give.

    Raises:
        LookupError: the installed Avalanche has no such name.
    """
    from forgetlab.avalanche.api import stock_class, stock_names

    kinds = [kind for kind in KINDS if name in stock_names(kind)]
    if not kinds:
        known = [*stock_names("plugin"), *stock_names("strategy")]
        raise LookupError(f"Avalanche has no plug-in or strategy {name!r}{suggestion(name, known)}")
    verdict = TABLES[kinds[0]].get(name, RUNS)
    title = f"Avalanche's {KINDS[kinds[0]]} {name}" + (f"; needs {verdict.needs}" if verdict.needs else "")
    if verdict.refused:
        return f"{title}\n\nIt cannot be used here: {verdict.refused}"
    stock = stock_class(kinds[0], name)
    words = dict(WORDS.findall(inspect.getdoc(stock.__init__) or ""))
    lines = [_line(p, " ".join(words.get(key, "").split())) for key, p in own_arguments(stock).items()]
    arguments = "\n".join(["Arguments:", *lines]) if lines else "No arguments."
    return "\n\n".join(text for text in (title, inspect.getdoc(stock), arguments) if text)


def _line(parameter: inspect.Parameter, words: str) -> str:
    kind = "" if parameter.annotation is parameter.empty else f"{type_name(parameter.annotation)}, "
    default = "required" if parameter.default is parameter.empty else f"default {parameter.default!r}"
    return f"  {parameter.name}: ({kind}{default}) {words}".rstrip()
