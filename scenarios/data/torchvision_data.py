"""A data set of torchvision, by the name of its class: https://docs.pytorch.org/vision/stable/datasets.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from forgetlab.data import Dataset, Mode, Share, labelled, labelled_tables, parts
from forgetlab.data.torchvision_sets import read
from forgetlab.plugins import register


@register("data", "torchvision")
def torchvision_data(
    data_set: str,  # such as CIFAR100
    root: Path | None = None,  # the folder of the data
    download: bool = False,
    options: dict[str, Any] | None = None,  # what else the class takes, such as {split: letters}
    train_split: str = "train",  # where a class calls its parts by name
    test_split: str = "test",
    size: PositiveInt | None = None,  # pixels, of a side; by default the images are as they are
    resize: PositiveInt | None = None,  # pixels, of the shorter side before the middle is cut out; by default as size
    mode: Mode | None = None,  # by default grey stays grey
    test_share: Share = 0.2,
) -> Dataset:
    """Images and labels of a class of torchvision.datasets: x (N, 3 or 1, H, W) bytes.

    Its own test part is used where its constructor takes ``train`` or ``split`` and the options do not say which; else
    a share of each class is for testing, drawn once. Some of these classes load their files with pickle, after they
    have checked the files' digests.

    Raises:
        OptionError: there is no such class, the data are not in the folder, or the images have several sizes.
    """
    found = parts(data_set, root, download, options or {}, (train_split, test_split))
    images = [read(part, data_set, size, mode, resize) for part in found]
    rows, names = labelled_tables(found, [labels for _, labels in images], data_set)
    test = rows[1] if len(rows) > 1 else None
    whole = labelled(rows[0], test, "label", class_names=names, test_share=test_share)
    return whole.dataset(images[0][0], images[1][0]) if test else whole.taken_from(images[0][0])
