"""Data sets of torchvision as tensors of bytes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forgetlab import torchvision_ops
from forgetlab.data.images import Mode, as_bytes, refuse_small_resize
from forgetlab.data.table import Table
from forgetlab.plugins.options import OptionError, suggestion

FLAG, SPLIT = "train", "split"  # how a constructor asks for a part


def parts(
    name: str, root: Path | None, download: bool, options: Mapping[str, Any], splits: tuple[str, str]
) -> list[Any]:
    """The data set, or its training and its test part where its constructor takes ``train`` or ``split``.

    Raises:
        OptionError: there is no such class, it does not take these options, or its data are not in the folder.
    """
    torchvision_ops.ensure()
    from torchvision import datasets

    known = [key for key in datasets.__all__ if inspect.isclass(getattr(datasets, key))]
    if name not in known:
        raise OptionError(f"torchvision.datasets has no class {name!r}{suggestion(name, known)}", "data_set")
    factory = getattr(datasets, name)
    taken = _parameters(factory)
    given = {"root": None if root is None else str(root), "download": download or None}
    arguments = {key: value for key, value in given.items() if value is not None and key in taken} | dict(options)
    chosen: list[dict[str, Any]] = [{}]
    if FLAG in taken and FLAG not in options:
        chosen = [{FLAG: True}, {FLAG: False}]
    elif SPLIT in taken and SPLIT not in options:
        chosen = [{SPLIT: split} for split in splits]
    try:
        return [factory(**arguments, **part) for part in chosen]
    except TypeError as error:
        raise OptionError(f"{name}: {error}", "options") from error
    except (RuntimeError, OSError, ValueError) as error:
        hint = "" if download or "download" not in taken else "; 'download: true' fetches the data"
        raise OptionError(f"{name}: {error}{hint}", "root") from error


def read(
    part: Any, name: str, size: int | None, mode: Mode | None, resize: int | None = None
) -> tuple[Tensor, list[int]]:
    """(N, C, H, W) bytes and labels.

    Raises:
        OptionError: samples that are no images with one number, or images of several sizes.
    """
    refuse_small_resize(size, resize)
    images: list[Tensor] = []
    labels: list[int] = []
    for i in range(len(part)):
        image, label = part[i]
        if not hasattr(image, "convert"):
            raise OptionError(f"{name} gives no images but {type(image).__name__}", "data_set")
        try:
            labels.append(int(label))
        except (TypeError, ValueError):
            raise OptionError(f"{name} labels an image with {label!r}, not with one number", "data_set") from None
        images.append(as_bytes(image, size, mode, resize))
        if images[-1].shape != images[0].shape:
            shapes = f"{tuple(images[0].shape)} and {tuple(images[-1].shape)}"
            raise OptionError(
                f"{name} has images of the shapes {shapes}: say which size, and mode, they shall have", "size"
            )
    return torch.stack(images), labels


def labelled_tables(found: list[Any], labels: list[list[int]], name: str) -> tuple[list[Table], list[str]]:
    """The labels as positions among the names of the classes that occur, by rows counted from 0, and these names."""
    import pandas as pd

    occurring = sorted(set().union(*labels))
    named = getattr(found[0], "classes", None)
    fits = isinstance(named, list | tuple) and occurring[0] >= 0 and occurring[-1] < len(named)
    names = [str(named[label]) if fits and named else str(label) for label in occurring]
    positions = [[occurring.index(label) for label in part] for part in labels]
    rows = (pd.DataFrame({"label": part}, index=pd.RangeIndex(len(part), name="row")) for part in positions)
    return [Table(name, part) for part in rows], names


def _parameters(factory: type) -> set[str]:
    """What a constructor takes, and what it passes on to the one above it."""
    found: set[str] = set()
    for owner in inspect.getmro(factory):
        parameters = inspect.signature(owner.__init__).parameters
        found |= parameters.keys()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found
