"""Stock Avalanche, as its users write it: a data set of PIL images, its benchmark, its strategy, its evaluator."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from forgetlab.avalanche import api  # noqa: F401  makes torchvision, which Avalanche imports, importable everywhere
from forgetlab.data.datasets import Samples
from forgetlab.streams.scenario import Scenario

MEAN, DEVIATION = 0.2860, 0.3530  # as in Avalanche's own SplitFMNIST


class Pictures(Dataset[tuple[Any, int]]):
    """What torchvision.datasets.FashionMNIST is: bytes in memory, a PIL image for each sample that is asked for."""

    def __init__(self, parts: Sequence[Samples], transform: Callable[[Any], Any] = lambda image: image) -> None:
        self.transform = transform
        self.data = torch.cat([part.x for part in parts]).squeeze(1)
        self.targets = torch.cat([part.y for part in parts])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.data[index].numpy())), int(self.targets[index])


def benchmark(scenario: Scenario) -> Any:
    """The same tasks in the same order, by the call with which Avalanche makes its SplitFMNIST."""
    from avalanche.benchmarks import nc_benchmark

    return nc_benchmark(
        Pictures([task.train for task in scenario.tasks]),  # type: ignore[arg-type]
        Pictures([task.test for task in scenario.tasks]),  # type: ignore[arg-type]
        n_experiences=len(scenario.tasks),
        task_labels=False,
        fixed_class_order=list(range(scenario.n_classes)),
        train_transform=as_tensor(),
        eval_transform=as_tensor(),
    )


def as_tensor() -> Any:
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (DEVIATION,))])


def normal(x: Tensor) -> Tensor:
    """What `as_tensor` makes of an image, for a batch of tensors in [0, 1]."""
    return (x - MEAN) / DEVIATION


def pictures(samples: Samples) -> Pictures:
    """One task's samples as a PyTorch user has them, each made a tensor when it is asked for."""
    return Pictures([samples], as_tensor())


def strategy(
    sizes: tuple[int, int, int],
    batch_size: int,
    evaluation_batch: int,
    *plugins: Any,
    of: Callable[..., Any] | None = None,
    **options: Any,
) -> Any:
    """Fine-tuning, or another strategy, with its default evaluator, which logs loss and accuracy to the terminal."""
    from avalanche.models import SimpleMLP
    from avalanche.training.supervised import Naive

    n_inputs, hidden, n_classes = sizes
    model = SimpleMLP(n_classes, n_inputs, hidden, hidden_layers=2, drop_rate=0.0)
    return (of or Naive)(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        train_epochs=1,
        eval_mb_size=evaluation_batch,
        plugins=list(plugins),
        **options,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Takes what Avalanche prints and what it warns of; its loggers keep the stream that they found when made."""
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(action="ignore"),
    ):
        yield
