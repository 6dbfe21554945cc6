"""Your own images: a folder per class, as torchvision's ImageFolder lays them out."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt
from torch import Tensor

from forgetlab.data import ENDINGS, Dataset, Mode, Share, Table, decoded, labelled, read_folder
from forgetlab.plugins import register


@register("data", "image_folder")
def image_folder(
    path: Path,
    domains: bool = False,  # a folder per domain above those of the classes
    size: PositiveInt = 32,  # pixels, of a side
    resize: PositiveInt | None = None,  # pixels, of the shorter side before the middle is cut out; by default as size
    mode: Mode = "RGB",
    test_share: Share = 0.2,
) -> Dataset:
    """Images path/class/image: x (N, 3 or 1, size, size) bytes, the middle of each, its shorter side made that long.

    With ``domains`` the layout is path/domain/class/image. Above either there may be two folders, train and test; else
    a share of each class in each domain is for testing, drawn once. Decoded once, and again when a file changes.

    Raises:
        OptionError: a class's folder without images, or an image that cannot be read, by its name.
    """
    train, test = read_folder(path, ENDINGS, domains)
    parts = labelled(train, test, "class", domain="domain" if domains else None, test_share=test_share)
    return parts.dataset(_images(parts.train, size, mode, resize), _images(parts.test, size, mode, resize))


def _images(table: Table, size: int, mode: Mode, resize: int | None) -> Tensor:
    files: list[Path] = table.rows["file"].tolist()
    return decoded(table.rows.index.tolist(), lambda i: files[i].read_bytes(), size, mode, resize)
