"""Your own arrays: an .npz file, or .npy files, with x, y and, where there are, x_test, y_test and domains."""

from __future__ import annotations

from pathlib import Path

from forgetlab.data import Dataset, Share, as_tensor, labelled, tables
from forgetlab.data.arrays import read
from forgetlab.plugins import register


@register("data", "arrays")
def arrays(
    path: Path | None = None,  # an .npz file, or a folder of .npy files named x, y, ...
    x: Path | None = None,
    y: Path | None = None,
    x_test: Path | None = None,
    y_test: Path | None = None,
    domain: Path | None = None,
    domain_test: Path | None = None,
    class_names: tuple[str, ...] = (),  # of the labels 0, 1, ...
    domain_names: tuple[str, ...] = (),
    test_share: Share = 0.2,
) -> Dataset:
    """Samples x (N, ...) and labels y (N,), from one file or one each.

    Bytes are images (N, H, W), (N, H, W, 3) or (N, C, H, W) and become (N, C, H, W); other numbers become float32.
    Without x_test a share of each class in each domain is for testing, drawn once.

    Raises:
        OptionError: arrays that do not fit together, or values that cannot be used; the error names the rows, from 0.
    """
    files = {"x": x, "y": y, "x_test": x_test, "y_test": y_test, "domain": domain, "domain_test": domain_test}
    found = read(path, files)
    source = "domain" if "domain" in found else None
    train, test = tables(found)
    parts = labelled(
        train,
        test,
        "y",
        domain=source,
        class_names=class_names,
        domain_names=domain_names,
        test_share=test_share,
    )
    inputs = as_tensor(found["x"])
    return parts.dataset(inputs, as_tensor(found["x_test"])) if test else parts.taken_from(inputs)
