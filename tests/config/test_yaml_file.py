"""Values, their places, and what is refused, each with where it stands."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetlab.config.yaml_reader import FileErrors, parse, read, to_text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.yaml"


def data_of(file: Path, text: str) -> dict[str, Any]:
    file.write_text(text, encoding="utf-8")
    return read(file).data


def refusals(file: Path, content: str | bytes) -> list[str]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileErrors) as caught:
        read(file)
    return [line.removeprefix(f"{file}:") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("+7", 7),
        ("010", 10),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("NULL", None),
        ("=", "="),
        ("'1e-3'", "1e-3"),
        ('"null"', "null"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_scalars_follow_the_core_schema(file: Path, text: str, value: object) -> None:
    found = data_of(file, f"key: {text}\n")["key"]
    assert (found, type(found)) == (value, type(value))


def test_places_of_keys_and_values(file: Path) -> None:
    data_of(file, "# heading\na:\n  - x: 1\n    long key: [p, {q: r}]\nb: &anchor {c: 3}\nd: *anchor\n")
    position = read(file).position
    assert position(("a", 0, "x")) == (3, 8)
    assert position(("a", 0, "long key"), of_key=True) == (4, 5)
    assert position(("a", 0, "long key", 1, "q")) == (4, 23)
    assert position(("d",)) == (6, 4)  # where the alias stands
    assert position(("d", "c")) == (5, 16)  # where the value is written
    assert position(()) == (1, 1)


def test_of_a_repeated_key_the_first_counts_and_so_does_its_place(file: Path) -> None:
    file.write_text("a: 1\nb: 2\na: {c: 3}\n", encoding="utf-8")
    document = parse(file)
    assert document.data == {"a": 1, "b": 2}
    assert [(problem.line, problem.column) for problem in document.problems] == [(3, 1)]
    assert document.position(("a",)) == (1, 4)
    assert document.position(("a", "c")) == (1, 4)  # the first has no such part


def test_the_place_of_what_is_missing_is_that_of_the_part_around_it(file: Path) -> None:
    data_of(file, "a:\n  b: [1]\n")
    position = read(file).position
    assert position(("a", "zz"), of_key=True) == (2, 3)
    assert position(("a", "b", 7, "deeper")) == (2, 6)
    assert position(("a", "b", 0, "inside a number")) == (2, 7)
    assert position(("zz", 3)) == (1, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1: the key 'a' stands in line 1 already"),
        ("x: {k: 1,\n    k: 2}\n", "2:5: the key 'k' stands in line 1 already"),
        ("x:\n  1: a\n", "2:3: a key must be a string; quotes make it one"),
        ("true: a\n", "1:1: a key must be a string; quotes make it one"),
        ("? [a]\n: b\n", "1:3: a key must be a string; quotes make it one"),
        ("a: !!python/object/apply:os.system ['id']\n", "1:4: tags such as !!python/object/apply:os.system"),
        ("a: [!foo b]\n", "1:5: tags such as !foo are not allowed"),
        ("a: !!binary aGk=\n", "1:4: tags such as !!binary are not allowed"),
        ("a: ! b\n", "1:4: tags such as ! are not allowed"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "3:3: merge keys (<<) are not allowed"),
        ("a: [1, 2\nb: 3\n", "2:2: not YAML: expected ',' or ']', but got"),
        ("a: b: c\n", "1:5: not YAML: mapping values are not allowed here"),
        ("a: *nobody\n", "1:4: not YAML: found undefined alias 'nobody'"),
        ("a:\n\t- b\n", "2:1: not YAML: found character '\\t'"),
        ('a: "\\UFFFFFFFF"\n', "1:"),
        ('a: "\\ud800"\n', "1:4: half a character"),
        ("a: 1\nb: x\x07\n", "2:5: a character that YAML does not allow: '\\x07'"),
        ("", "1:1: the file is empty"),
        ("# nothing\n", "1:1: the file is empty"),
        ("- a\n", "1:1: the top level must be a mapping"),
        ("---\nnull\n", "2:1: the top level must be a mapping"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document begins here"),
        ("a: &x [1, *x]\n", "1:11: this alias contains itself"),
        ("a: &x {b: {c: *x}}\n", "1:15: this alias contains itself"),
        ("a: .inf\n", "1:4: '.inf' is not a finite number"),
        ("a: -1e999\n", "1:4: '-1e999' is not a finite number"),
        (f"a: {'9' * 5000}\n", "1:4: '999"),
        (f"a: {'[' * 60}{']' * 60}\n", "1:53: values are nested more than 50 deep"),
        (f"a: {'[' * 5000}{']' * 5000}\n", "1:"),
    ],
)
def test_refused_with_a_place(file: Path, text: str, expected: str) -> None:
    (line,) = refusals(file, text)
    assert line.startswith(expected)


def test_not_a_number_is_refused(file: Path) -> None:
    assert refusals(file, "a: .nan\n") == ["1:4: '.nan' is not a finite number"]


def test_what_can_be_read_around_is_told_at_once_and_in_order(file: Path) -> None:
    lines = refusals(file, "a: 1\n2: x\na: !t y\n")
    assert [line.split(" ")[0] for line in lines] == ["2:1:", "3:1:", "3:4:"]


def test_an_alias_is_plain_data_and_shares_nothing(file: Path) -> None:
    data = data_of(file, "a: &x [1, {b: 2}]\nc: *x\n")
    data["a"][1]["b"] = 3
    assert data["c"] == [1, {"b": 2}]


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory(file: Path) -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
    (line,) = refusals(file, f"l0: &l0 x\n{levels}")
    assert "more than 100,000 values" in line


def test_many_aliases_of_one_value_are_fine(file: Path) -> None:
    assert data_of(file, f"a: &x [1]\nb: [{', '.join(['*x'] * 1000)}]\n")["b"] == [[1]] * 1000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: \xc3\xa4\xff\n", "2:5: the byte 0xff is not UTF-8 text"),
        ("a: 1\n".encode("utf-16"), "1:1: the byte 0xff is not UTF-8 text"),
        (b"a: caf\xe9", "1:7: the byte 0xe9 is not UTF-8 text"),
    ],
)
def test_other_encodings_are_refused_at_the_first_bad_byte(file: Path, content: bytes, expected: str) -> None:
    assert refusals(file, content) == [expected]


def test_a_byte_order_mark_is_no_part_of_the_first_key(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(file).data == {"a": 1}


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    reasons = {
        tmp_path: "this is a folder",
        tmp_path / "none.yaml": "no such file",
        loop: "the file cannot be read: ",
        Path("a\0b"): "the file cannot be read: ",
    }
    for path, reason in reasons.items():
        with pytest.raises(FileErrors) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}:1:1: {reason}")


def test_text_is_read_again_as_it_was_by_this_reader_and_by_readers_of_yaml_1_1(file: Path) -> None:
    known = [
        "1e-3",
        "1E5",
        ".5",
        "010",
        "0o7",
        "yes",
        "off",
        "null",
        "",
        "~",
        "2024-01-01",
        "1:30",
        "<<",
        "=",
        "é",
    ]
    draw = random.Random(0)
    made = ["".join(draw.choices("01e.-+_:#'\"\\ \n\tnoxyté{}[]&*!|>%@", k=draw.randrange(1, 7))) for _ in range(2000)]
    numbers = [0, -3, 10**30, 0.1, 1e-5, 1e300, -0.0, 1e16, True, False, None]
    data = {"values": [*known, *made, *numbers], "keys": {text: 1 for text in known if text != "<<"}}
    text = to_text(data)
    assert data_of(file, text) == data
    assert yaml.safe_load(text) == data
