"""All of Avalanche that ForgetLab stands on, in one place; no other file imports it."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab import torchvision_ops
from forgetlab.plugins.options import OptionError, suggestion

torchvision_ops.ensure()  # Avalanche imports torchvision at once
warnings.filterwarnings("ignore", message="no QP solver found", module="qpsolvers")
warnings.filterwarnings("ignore", message="Using a non-tuple sequence", module="avalanche.training.utils")

from avalanche import benchmarks as _benchmarks  # noqa: E402
from avalanche.benchmarks import utils as _utils  # noqa: E402
from avalanche.benchmarks.scenarios.generic_scenario import CLExperience, CLScenario, EagerCLStream  # noqa: E402
from avalanche.benchmarks.scenarios.online import OnlineCLExperience  # noqa: E402
from avalanche.benchmarks.scenarios.online import split_online_stream as _split_online_stream  # noqa: E402
from avalanche.benchmarks.utils import data_attribute as _data_attribute  # noqa: E402
from avalanche.benchmarks.utils.data import AvalancheDataset  # noqa: E402
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader  # noqa: E402
from avalanche.benchmarks.utils.flat_data import FlatData  # noqa: E402
from avalanche.core import BaseSGDPlugin  # noqa: E402
from avalanche.logging import BaseLogger  # noqa: E402
from avalanche.models import MultiTaskModule, avalanche_forward  # noqa: E402
from avalanche.training import templates as _templates  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin, from_scratch_training  # noqa: E402
from avalanche.training.regularization import RegularizationMethod  # noqa: E402
from avalanche.training.storage_policy import ExemplarsBuffer  # noqa: E402
from avalanche.training.templates.base import BaseTemplate  # noqa: E402
from avalanche.training.templates.base_sgd import PeriodicEval  # noqa: E402
from avalanche.training.utils import ParamData  # noqa: E402

# Avalanche calls these itself; its mark of deprecation prints at each call and resets the process's warning filters
ExemplarsBuffer.update = inspect.unwrap(ExemplarsBuffer.update)
from_scratch_training.reset_optimizer = inspect.unwrap(from_scratch_training.reset_optimizer)

# Avalanche's annotations are looser than its code; what they would refuse here is known to work
SupervisedTemplate: Any = _templates.SupervisedTemplate
TaskAwareSupervisedClassificationDataset: Any = _utils.TaskAwareSupervisedClassificationDataset
DataAttribute: Any = _data_attribute.DataAttribute
benchmarks: Any = _benchmarks
benchmark_from_datasets: Any = _benchmarks.benchmark_from_datasets
split_online_stream: Any = _split_online_stream
with_classes_timeline: Any = _benchmarks.with_classes_timeline
with_task_labels: Any = _benchmarks.with_task_labels

__all__ = [
    "AvalancheDataset",
    "BaseLogger",
    "CLExperience",
    "CLScenario",
    "DataAttribute",
    "EagerCLStream",
    "EvaluationPlugin",
    "FlatData",
    "MultiTaskModule",
    "OnlineCLExperience",
    "PeriodicEval",
    "SupervisedPlugin",
    "SupervisedTemplate",
    "TaskAwareSupervisedClassificationDataset",
    "avalanche_forward",
    "benchmark_from_datasets",
    "benchmarks",
    "constructed",
    "given_to",
    "held_bytes",
    "split_online_stream",
    "stock_class",
    "stock_names",
    "stock_plugin",
    "with_classes_timeline",
    "with_task_labels",
]
STOCK = {  # where each kind of stock class stands, and what it is built on
    "plugin": ("avalanche.training.plugins", BaseSGDPlugin),
    "strategy": ("avalanche.training.supervised", BaseTemplate),
}


def stock_names(kind: str) -> list[str]:
    """Every name of Avalanche's own in its module of plug-ins or of strategies, whether it can be used or not."""
    module = vars(importlib.import_module(STOCK[kind][0]))
    return sorted(
        name
        for name, value in module.items()
        if not name.startswith("_") and str(getattr(value, "__module__", "")).startswith("avalanche.")
    )


def stock_class(kind: str, name: str) -> type:
    """One of Avalanche's own plug-ins or strategies.

    Raises:
        OptionError: there is none of this name.
    """
    place, base = STOCK[kind]
    module = vars(importlib.import_module(place))
    classes = {n: c for n, c in module.items() if inspect.isclass(c) and issubclass(c, base)}
    if name not in classes:
        what = {"plugin": "plug-in"}.get(kind, kind)
        raise OptionError(f"Avalanche has no {what} {name!r}{suggestion(name, classes)}", kind)
    return classes[name]


def stock_plugin(spec: Mapping[str, Any], **given: Any) -> SupervisedPlugin:
    """One of Avalanche's own plug-ins, by its class name and arguments: {"plugin": name, argument: value, ...}.

    Raises:
        OptionError: Avalanche has no such plug-in, or it does not take these arguments.
    """
    name = str(spec.get("plugin"))
    kind = stock_class("plugin", name)
    arguments = {key: value for key, value in spec.items() if key != "plugin"}
    with constructed("plugin", name):
        return kind(**{**given_to(kind, given), **arguments})


@contextmanager
def constructed(kind: str, name: str) -> Iterator[None]:
    """Whatever a stock constructor raises, as an `OptionError`: they check by assertions, or not at all."""
    try:
        yield
    except Exception as error:
        raise OptionError(f"{name}: {error or type(error).__name__}", kind) from error


def given_to(stock: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a run gives, what a stock constructor takes; no criterion where it has one of its own."""
    taken = inspect.signature(stock).parameters
    own = "criterion" in taken and not isinstance(taken["criterion"].default, (nn.CrossEntropyLoss, type))
    return {key: value for key, value in given.items() if key in taken and not (own and key == "criterion")}


def held_bytes(held: Any, model: nn.Module) -> int | None:
    """The bytes of the tensors and samples that stock code holds beside the live model; None where one cannot tell."""
    plain = (bool, int, float, str, torch.device, Iterator, MultiDatasetDataLoader)
    if held is model or held is None or isinstance(held, plain):
        return 0  # loaders and iterators run over samples that are held elsewhere
    if isinstance(held, Tensor):
        return held.numel() * held.element_size()
    if isinstance(held, ParamData):
        return held_bytes(held.data, model)
    if isinstance(held, ExemplarsBuffer):
        return held_bytes(held.buffer, model)
    if isinstance(held, AvalancheDataset):
        return len(held) * sum(torch.as_tensor(field).nbytes for field in held[0]) if len(held) else 0
    if isinstance(held, nn.Module):
        return _sum_of(held.state_dict().values(), model)
    if isinstance(held, (Mapping, list, tuple, set)):
        return _sum_of(held.values() if isinstance(held, Mapping) else held, model)
    if isinstance(held, BaseTemplate):
        parts = [getattr(part, "storage_policy", part) for part in vars(held).values()]  # MER's stands one deeper
        return _sum_of([part for part in parts if isinstance(part, (ExemplarsBuffer, AvalancheDataset))], model)
    if isinstance(held, (BaseSGDPlugin, RegularizationMethod)):
        return _sum_of(vars(held).values(), model)
    return None


def _sum_of(parts: Iterable[Any], model: nn.Module) -> int | None:
    found = [held_bytes(part, model) for part in parts]
    return None if None in found else sum(size for size in found if size is not None)
