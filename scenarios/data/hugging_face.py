"""A data set in Hugging Face's format (package datasets): a folder that save_to_disk wrote, or one of the hub."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from forgetlab.data import Dataset, Missing, Mode, Share, labelled, numbers, texts
from forgetlab.data import hugging_face as hugging
from forgetlab.plugins import OptionError, register


@register("data", "hugging_face")
def hugging_face(
    path: Path | None = None,  # a folder that save_to_disk wrote
    hub: str | None = None,  # or a name on the hub, such as uoft-cs/cifar100, which is downloaded
    config: str | None = None,
    revision: str | None = None,  # of the hub's data set, so that it stays the same
    train_split: str = "train",
    test_split: str | None = "test",  # null: a share of train_split
    label: str = "label",
    domain: str | None = None,
    image: str | None = None,  # the column that x is
    text: str | None = None,
    columns: tuple[str, ...] = (),
    size: PositiveInt = 32,  # pixels, of an image's side
    resize: PositiveInt | None = None,  # pixels, of the shorter side before the middle is cut out; by default as size
    mode: Mode = "RGB",
    max_length: PositiveInt = 64,  # tokens, of a text
    missing: Missing = "refuse",
    test_share: Share = 0.2,
) -> Dataset:
    """x is one column of images or texts, or several columns of numbers, flags and categories as in ``table``.

    Names of classes and domains are the data set's own, where it has them. No code of a data set is run. A folder that
    holds one split alone is divided: a share of each class in each domain is for testing, drawn once.

    Raises:
        OptionError: the package is missing, or there is no such split or column.
    """
    if sum(map(bool, (image, text, columns))) != 1:
        raise OptionError("say which column x is, by one of 'image', 'text' and 'columns'")
    found = hugging.chosen_splits(hugging.splits(path, hub, config, revision), train_split, test_split)
    used = [name for name in (label, domain, text, *columns) if name]
    train, test = hugging.as_table(found[0], used), hugging.as_table(found[1], used) if len(found) > 1 else None
    classes, sources = hugging.label_names(found[0], label), hugging.label_names(found[0], domain)
    parts = labelled(
        train, test, label, domain=domain, class_names=classes, domain_names=sources, test_share=test_share
    )
    if text:
        return texts(parts, text, max_length=max_length)
    if image is None:
        return numbers(parts, columns, missing=missing)
    of_train = hugging.pictures(found[0], image, parts.train.rows.index.tolist(), size, mode, resize)
    of_test = hugging.pictures(found[-1], image, parts.test.rows.index.tolist(), size, mode, resize)
    return parts.dataset(of_train, of_test)
