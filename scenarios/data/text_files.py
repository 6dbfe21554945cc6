"""Your own texts: a folder per class, a .txt file per text."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from forgetlab.data import Dataset, Form, Share, labelled, read_folder, texts, with_texts
from forgetlab.plugins import register


@register("data", "text_files")
def text_files(
    path: Path,
    domains: bool = False,  # a folder per domain above those of the classes
    form: Form = "ids",
    max_length: PositiveInt = 64,  # tokens
    test_share: Share = 0.2,
) -> Dataset:
    """Texts path/class/text.txt in UTF-8: x (N, max_length) token ids, or the features of a frozen encoder.

    With ``domains`` the layout is path/domain/class/text.txt. Above either there may be two folders, train and test;
    else a share of each class in each domain is for testing, drawn once.

    Raises:
        OptionError: a class's folder without texts, or a file that is empty or no text, by its name.
    """
    train, test = read_folder(path, (".txt",), domains)
    parts = labelled(
        with_texts(train),
        with_texts(test) if test else None,
        "class",
        domain="domain" if domains else None,
        test_share=test_share,
    )
    return texts(parts, "text", form=form, max_length=max_length)
