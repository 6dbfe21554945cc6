"""Your own arrays, images, texts and data sets: what is written is what is read, and what is wrong is named."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetlab.data.arrays import as_tensor
from forgetlab.data.datasets import Dataset, dataset
from forgetlab.plugins import registry
from helpers.data import refused

pytestmark = pytest.mark.usefixtures("own_cache")

COLOURS = {"red": (200, 0, 0), "green": (0, 100, 0), "blue": (0, 0, 50)}


def arrays(folder: Path, **named: Any) -> Path:
    path = folder / "my.npz"
    np.savez(path, allow_pickle=False, **{name: np.asarray(array) for name, array in named.items()})
    return path


def image(path: Path, colour: tuple[int, ...] | int, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


# Arrays


def test_arrays_keep_their_values_labels_and_rows(tmp_path: Path) -> None:
    x, y = np.arange(24, dtype=np.float64).reshape(12, 2), np.array([3, 5] * 6)
    data = dataset({"name": "arrays", "path": str(arrays(tmp_path, x=x, y=y)), "test_share": 0.5})
    assert data.class_names == ("3", "5") and data.train.x.dtype == torch.float32
    assert data.test.y.bincount().tolist() == data.train.y.bincount().tolist() == [3, 3]
    for part in (data.train, data.test):
        rows = (part.x[:, 0] / 2).long()
        assert part.x.tolist() == x[rows.numpy()].tolist() and part.y.tolist() == (rows % 2).tolist()


def test_arrays_with_a_test_part_domains_and_names(tmp_path: Path) -> None:
    named = {"x": np.eye(4, dtype=np.int16), "y": [0, 1, 0, 1], "domain": [1, 1, 0, 0]}
    tested = {"x_test": np.eye(4)[:2], "y_test": [1, 0], "domain_test": [0, 1]}
    spec = {"class_names": ["cat", "dog"], "domain_names": ["before", "after"]}
    data = dataset({"name": "arrays", "path": str(arrays(tmp_path, **named, **tested)), **spec})
    assert data.train.x.tolist() == np.eye(4).tolist() and data.test.y.tolist() == [1, 0]
    assert data.class_names == ("cat", "dog") and data.domain_names == ("before", "after")
    assert data.domains is not None and [part.tolist() for part in data.domains] == [[1, 1, 0, 0], [0, 1]]
    np.savez(tmp_path / "text.npz", x=np.eye(4), y=np.array(["dog", "cat"] * 2))
    data = dataset({"name": "arrays", "path": str(tmp_path / "text.npz"), "test_share": 0.5})
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize("as_folder", [True, False])
def test_single_arrays_are_not_read_before_they_are_used(tmp_path: Path, as_folder: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    files = {"x": images, "y": np.arange(6) % 2, "x_test": images[:2], "y_test": np.array([0, 1])}
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    paths = {"path": str(tmp_path)} if as_folder else {name: str(tmp_path / f"{name}.npy") for name in files}
    data = dataset({"name": "arrays", **paths})
    assert data.train.x.shape == (6, 3, 5, 4) and data.train.x.dtype == torch.uint8
    assert torch.equal(data.train.x, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.equal(data.test.x, data.train.x[:2])
    data.train.x[0] = 0
    assert np.array_equal(np.load(tmp_path / "x.npy"), images), "the file is the user's"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 5, 4), (7, 1, 5, 4)),
        ((7, 5, 4, 3), (7, 3, 5, 4)),
        ((7, 5, 4, 1), (7, 1, 5, 4)),
        ((7, 3, 5, 4), (7, 3, 5, 4)),
        ((7, 3, 5, 3), (7, 3, 5, 3)),
        ((7, 9), (7, 9)),
    ],
)
def test_bytes_become_images(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert as_tensor(np.zeros(shape, dtype=np.uint8)).shape == expected
    assert as_tensor(np.zeros(shape)).shape == shape, "other numbers stay as they are"


@pytest.mark.parametrize(
    ("named", "option", "message"),
    [
        ({"y": [1, 2]}, "x", "'x' is missing: there is y"),
        ({"x": np.eye(2), "y": [0, 1], "x_test": np.eye(2)}, "y_test", "'y_test' is missing"),
        ({"x": np.eye(2), "y": [0, 1], "domain_test": [0]}, "domain", "'domain' is missing"),
        ({"x": np.eye(2), "y": [0, 1], "x_tets": [1]}, "path", "named 'x_tets'; did you mean 'x_test'"),
        ({"x": np.eye(3), "y": [0, 1]}, "y", "'y' has 2 rows where 'x' has 3"),
        ({"x": np.eye(3), "y": [0, 1, 0], "domain": [1]}, "domain", "'domain' has 1 rows"),
        ({"x": np.eye(2), "y": [0.5, 1]}, "y", "whole numbers or text (N,), not float64"),
        ({"x": np.eye(2), "y": np.eye(2, dtype=int)}, "y", "(2, 2)"),
        ({"x": np.ones(2), "y": [0, 1]}, "x", "numbers (N, ...), not float64 (2,)"),
        ({"x": np.array([["a"], ["b"]]), "y": [0, 1]}, "x", "numbers (N, ...)"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "x", "(0, 2)"),
        (
            {"x": np.eye(2), "y": [0, 1], "x_test": np.eye(3), "y_test": [0, 1, 0]},
            "x_test",
            "(2,), one of 'x_test' (3,)",
        ),
        (
            {"x": [[1.0], [np.nan], [np.inf], [2.0]], "y": [0, 1, 0, 1]},
            "x",
            "NaN or infinite in rows 1, 2 (counted from 0)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, named: dict[str, Any], option: str, message: str) -> None:
    assert message in refused("arrays", option, path=str(arrays(tmp_path, **named)))


def test_a_label_out_of_range_is_refused_with_its_rows(tmp_path: Path) -> None:
    path = arrays(tmp_path, x=np.eye(5), y=[0, 1, 2, 0, -1])
    message = refused("arrays", path=str(path), class_names=["cat", "dog"])
    assert "'y' '2' in rows 2, 4 is not one of 0 to 1" in message
    path = arrays(tmp_path, x=np.eye(4), y=[0, 1, 0, 1])
    assert "no training row has 'y' cow" in refused("arrays", path=str(path), class_names=["cat", "dog", "cow"])


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (ran,)

    trapped = np.array([Trap(), Trap()], dtype=object)
    np.save(tmp_path / "x.npy", trapped, allow_pickle=True)
    np.save(tmp_path / "y.npy", np.array([0, 1]))
    np.savez(tmp_path / "my.npz", x=trapped, y=np.array([0, 1]))
    for options, option in (
        ({"path": str(tmp_path)}, "path"),
        ({"path": str(tmp_path / "my.npz")}, "path"),
        ({"x": str(tmp_path / "x.npy"), "y": str(tmp_path / "y.npy")}, "x"),
    ):
        assert "may run code" in refused("arrays", option, **options)
    assert not ran.exists()
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert ran.exists(), "the trap works"


def test_a_file_that_is_no_array_is_named(tmp_path: Path) -> None:
    assert "no such file" in refused("arrays", "path", path=str(tmp_path / "none.npz"))
    (tmp_path / "my.npz").write_bytes(b"PK\x03\x04 cut")
    assert refused("arrays", "path", path=str(tmp_path / "my.npz")).startswith("my.npz")
    np.save(tmp_path / "x.npy", np.eye(2))
    assert "give it as 'x'" in refused("arrays", "path", path=str(tmp_path / "x.npy"))
    (tmp_path / "y.npy").write_bytes(b"")
    assert refused("arrays", "path", path=str(tmp_path)).startswith("y.npy")
    assert "'x' is missing" in refused("arrays", "x")


# Images


def folder_of_images(folder: Path, per_class: int = 5, under: str = "") -> Path:
    """An image's green value in the class red, and so on, is its number: it is known again wherever it goes."""
    for name, colour in COLOURS.items():
        for i in range(per_class):
            image(folder / under / name / f"{i}.png", tuple(value or i for value in colour))
    return folder


def test_images_keep_their_colours_and_classes(tmp_path: Path) -> None:
    path = folder_of_images(tmp_path / "mine")
    data = dataset({"name": "image_folder", "path": str(path), "size": 4})
    assert data.class_names == ("blue", "green", "red") and data.train.x.shape == (12, 3, 4, 4)
    assert data.test.y.tolist() == [0, 1, 2] and data.train.x.dtype == torch.uint8
    for part in (data.train, data.test):
        for x, y in zip(part.x, part.y.tolist(), strict=True):
            colour = COLOURS[data.class_names[y]]
            assert (x == x[:, :1, :1]).all(), "one colour"
            assert all(int(x[c, 0, 0]) == value for c, value in enumerate(colour) if value)
    channel = {"blue": 0, "green": 0, "red": 1}  # where the number stands
    for label, name in enumerate(data.class_names):
        numbers = [p.x[p.y == label][:, channel[name], 0, 0].tolist() for p in (data.train, data.test)]
        assert sorted(numbers[0] + numbers[1]) == list(range(5)), "every image once"
    grey = dataset({"name": "image_folder", "path": str(path), "size": 4, "mode": "L"})
    assert grey.train.x.shape == (12, 1, 4, 4)


def test_the_middle_of_an_image_is_taken(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((4, 20, 3), dtype=np.uint8)
    pixels[:, 6:14] = 90  # of the square in the middle, and what scaling sees beside it
    for name in ("a", "b"):
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    for size in (4, 2, 8):
        data = dataset({"name": "image_folder", "path": str(tmp_path), "size": size})
        assert data.train.x.shape == (2, 3, size, size) and (data.train.x == 90).all()


def test_the_shorter_side_may_be_made_longer_than_what_is_cut_out(tmp_path: Path) -> None:
    """8 x 12 pixels, each told by its place: with 8 before 4 the middle 4 x 4 of them; with 16 before 8 each twice."""
    from PIL import Image

    pixels = np.repeat(np.arange(96, dtype=np.uint8).reshape(8, 12, 1), 3, axis=2)
    for name in ("a", "b"):
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    given = {"name": "image_folder", "path": str(tmp_path)}
    middle = torch.from_numpy(pixels[2:6, 4:8, 0].copy())
    assert torch.equal(dataset({**given, "size": 4, "resize": 8}).train.x[0, 0], middle)
    doubled = Image.fromarray(pixels).resize((24, 16), Image.Resampling.BILINEAR).crop((8, 4, 16, 12))
    found = dataset({**given, "size": 8, "resize": 16}).train.x[0, 0]
    assert torch.equal(found, torch.from_numpy(np.array(doubled)[..., 0].copy()))
    assert not torch.equal(found, dataset({**given, "size": 8}).train.x[0, 0])
    assert "at most as many pixels as 'resize'" in refused(
        "image_folder", "resize", path=str(tmp_path), size=8, resize=4
    )


def test_images_with_parts_and_domains(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for part, n in (("train", 3), ("test", 2)):
        for domain in ("day 9", "day 10"):
            folder_of_images(folder, n, f"{part}/{domain}")
    (folder / "README.md").write_text("mine")
    (folder / "train" / ".hidden").mkdir()
    data = dataset({"name": "image_folder", "path": str(folder), "domains": True, "size": 2})
    assert data.domain_names == ("day 9", "day 10") and data.domains is not None
    assert data.train.y.bincount().tolist() == [6, 6, 6] and data.test.y.bincount().tolist() == [4, 4, 4]
    assert data.domains[0].tolist() == [0] * 9 + [1] * 9 and data.domains[1].tolist() == [0] * 6 + [1] * 6
    message = refused("image_folder", "path", path=str(folder), size=2)
    assert "train/day 9/ holds folders" in message and "'domains: true'" in message


def test_images_are_decoded_again_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetlab.data import images

    folder, decoded = folder_of_images(tmp_path / "mine", 2), []
    real = images.as_bytes
    monkeypatch.setattr(images, "as_bytes", lambda *given: decoded.append(1) or real(*given))

    def read(size: int = 2) -> Dataset:
        decoded.clear()
        return dataset({"name": "image_folder", "path": str(folder), "size": size})

    first = read()
    assert len(decoded) == 6
    assert torch.equal(read().train.x, first.train.x) and not decoded
    read(size=3)
    assert len(decoded) == 6
    for i in range(2):
        image(folder / "blue" / f"{i}.png", (1, 2, 3))
    assert read().train.x[0, :, 0, 0].tolist() == [1, 2, 3] and len(decoded) == 6


def test_broken_images_are_named(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "mine", 4)
    (folder / "red" / "0.png").write_bytes(b"no image")
    whole = (folder / "blue" / "1.png").read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(noise).save(folder / "green" / "3.png")
    cut = folder / "green" / "3.png"
    cut.write_bytes(cut.read_bytes()[:3000])
    message = refused("image_folder", "path", path=str(folder), test_share=0.01)
    named = {name for name in ("red/0.png", "green/3.png", "blue/1.png") if name in message}
    assert named, message
    (folder / "red" / "0.png").write_bytes(whole)
    cut.write_bytes(whole)
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(folder / "blue" / "0.png")
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(folder / "blue" / "1.png")
    assert "more than 8 bits" in refused("image_folder", "path", path=str(folder))


def test_transparency_grey_palettes_and_turned_images_are_read(tmp_path: Path) -> None:
    from PIL import Image

    image(tmp_path / "a" / "0.png", (1, 2, 3, 0), mode="RGBA")
    image(tmp_path / "a" / "1.png", 77, mode="L")
    palette = Image.new("P", (4, 4))
    palette.putpalette([9, 8, 7] * 256)
    (tmp_path / "b").mkdir()
    palette.save(tmp_path / "b" / "0.png", transparency=b"\x00" * 4)
    turned = Image.new("RGB", (8, 4), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, 2, 4))  # a white left edge, which Exif says is the top
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b" / "1.png", exif=exif)
    data = dataset({"name": "image_folder", "path": str(tmp_path), "size": 4, "test_share": 0.5})
    found = {tuple(x[:, 1, 1].tolist()): x for part in (data.train, data.test) for x in part.x}
    assert {(1, 2, 3), (77, 77, 77), (9, 8, 7), (0, 0, 0)} == found.keys()


def test_a_photograph_stands_as_its_camera_was_held(tmp_path: Path) -> None:
    """Exif says how an image has to be turned; the numbers alone show it on its side."""
    from PIL import Image

    for name, orientation in (("plain", 1), ("turned", 6)):
        (tmp_path / name).mkdir()
        exif = Image.Exif()
        exif[0x0112] = orientation
        for i in range(2):
            picture = Image.new("RGB", (4, 4), (0, 0, 0))
            picture.paste((255, 255, 255), (0, 0, 1, 4))  # a white left edge, which 6 says is the top
            picture.save(tmp_path / name / f"{i}.png", exif=exif)
    data = dataset({"name": "image_folder", "path": str(tmp_path), "size": 4, "test_share": 0.5})
    edge = torch.zeros(4, 4, dtype=torch.uint8)
    edge[:, 0] = 255
    for x, y in (data.train, data.test):
        for image_of, label in zip(x, y.tolist(), strict=True):
            expected = edge if data.class_names[label] == "plain" else edge.T
            assert torch.equal(image_of[0], expected)


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    assert "no such folder" in refused("image_folder", "path", path=str(tmp_path / "none"))
    folder = folder_of_images(tmp_path / "mine", 2)
    (folder / "violet").mkdir()
    assert "violet/ holds nothing" in refused("image_folder", "path", path=str(folder))
    (folder / "violet").rmdir()
    image(folder / "stray.png", 0, mode="L")
    assert "stray.png lies in no class's folder" in refused("image_folder", "path", path=str(folder))
    (tmp_path / "empty").mkdir()
    assert "no folder in" in refused("image_folder", "path", path=str(tmp_path / "empty"))
    folder = tmp_path / "parts"
    folder_of_images(folder, 1, "train")
    image(folder / "test" / "red" / "0.png", (1, 1, 1))
    assert "no test row has 'class' blue, green" in refused("image_folder", path=str(folder))


# Texts


def folder_of_texts(folder: Path) -> Path:
    for name, said in {"owl": "hello world", "auk": "good night"}.items():
        for i in range(5):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{i}.txt").write_text(f"{said} {i}", encoding="utf-8")
    return folder


def test_texts_become_token_ids(tmp_path: Path) -> None:
    data = dataset({"name": "text_files", "path": str(folder_of_texts(tmp_path)), "max_length": 6})
    assert data.class_names == ("auk", "owl") and data.tokenizer == "minilm"
    assert data.train.x.shape == (8, 6) and data.test.y.tolist() == [0, 1]
    assert (data.train.x[data.train.y == 1][:, 1:3] == torch.tensor([7592, 2088])).all(), "hello world"
    numbers = torch.cat([part.x[part.y == 1, 3] for part in (data.train, data.test)])
    assert numbers.unique().shape == (5,), "every text once"


def test_files_that_are_no_texts_are_named(tmp_path: Path) -> None:
    path = folder_of_texts(tmp_path / "mine")
    (path / "owl" / "3.txt").write_bytes(b"\xff\xfe\x00")
    assert "owl/3.txt is no text in UTF-8" in refused("text_files", "path", path=str(path))
    (path / "owl" / "3.txt").write_text(" \n")
    assert "owl/3.txt is empty" in refused("text_files", "path", path=str(path))
    (path / "auk" / "no.pdf").write_bytes(b"")
    for file in (path / "auk").glob("*.txt"):
        file.unlink()
    assert "auk/ holds nothing, no .txt file" in refused("text_files", "path", path=str(path))


# Hugging Face's format


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of save_to_disk: images, texts, numbers, a class label whose names are not sorted, and two splits."""
    import datasets
    from PIL import Image

    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "said": datasets.Value("string"),
            "width": datasets.Value("float32"),
            "place": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["zebra", "ape"]),
        }
    )

    def part(n: int) -> Any:
        rows = [
            {
                "img": Image.new("RGB", (6, 4), (i, 0, 0)),
                "said": ["hello world", "good night"][i % 2],
                "width": float(i),
                "place": ["south", "north"][i // 2 % 2],
                "label": i % 2,
            }
            for i in range(n)
        ]
        return datasets.Dataset.from_list(rows, features=features)

    path = tmp_path_factory.mktemp("hugging")
    datasets.DatasetDict({"train": part(8), "test": part(4)}).save_to_disk(path / "both")
    part(8).save_to_disk(path / "one")
    return path


def test_images_of_a_saved_data_set(saved: Path) -> None:
    data = dataset({"name": "hugging_face", "path": str(saved / "both"), "image": "img", "size": 3})
    assert data.class_names == ("zebra", "ape") and data.train.x.shape == (8, 3, 3, 3)
    assert data.train.x[:, 0, 0, 0].tolist() == list(range(8)) and data.train.y.tolist() == [0, 1] * 4
    assert data.test.x[:, 0, 0, 0].tolist() == list(range(4))
    alone = dataset({"name": "hugging_face", "path": str(saved / "one"), "image": "img", "domain": "place"})
    assert alone.domain_names == ("north", "south") and alone.domains is not None
    for part, domains in zip((alone.train, alone.test), alone.domains, strict=True):
        number = part.x[:, 0, 0, 0].long()
        assert torch.equal(part.y, number % 2) and torch.equal(domains, 1 - number // 2 % 2)
    divided = {"path": str(saved / "both"), "image": "img", "test_split": None}
    assert len(dataset({"name": "hugging_face", **divided}).test.y) == 2


def test_texts_and_numbers_of_a_saved_data_set(saved: Path) -> None:
    path = str(saved / "both")
    said = dataset({"name": "hugging_face", "path": path, "text": "said", "max_length": 5})
    assert said.train.x[0].tolist() == [101, 7592, 2088, 102, 0] and said.tokenizer == "minilm"
    numbers = dataset({"name": "hugging_face", "path": path, "columns": ["width", "place"]})
    assert numbers.train.x[:, 1:].tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]] * 2
    torch.testing.assert_close(numbers.train.x[:, 0], (torch.arange(8) - 3.5) / np.std(range(8)).astype("float32"))


def test_what_a_saved_data_set_does_not_have_is_told(saved: Path, tmp_path: Path) -> None:
    path = str(saved / "both")
    assert "say which column x is" in refused("hugging_face", path=path)
    assert "say which column x is" in refused("hugging_face", path=path, image="img", text="said")
    assert "no column 'image'; did you mean 'img'" in refused("hugging_face", path=path, image="image")
    assert "no column 'labels'; did you mean 'label'" in refused("hugging_face", path=path, image="img", label="labels")
    assert "'said' holds no images" in refused("hugging_face", "image", path=path, image="said")
    message = refused("hugging_face", "test_split", path=path, image="img", test_split="validation")
    assert "there is train, test" in message and "null divides" in message
    assert "by 'path'" in refused("hugging_face", "path", image="img")
    assert "no folder that save_to_disk wrote" in refused("hugging_face", "path", path=str(tmp_path), image="img")


def test_unlabelled_rows_of_a_saved_data_set_are_refused(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"width": datasets.Value("int64"), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"width": [1, 2, 3], "label": [0, 1, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "x")
    message = refused("hugging_face", path=str(tmp_path / "x"), columns=["width"])
    assert "'label' '-1' in row 2 is not one of 0 to 1" in message


def test_the_package_of_hugging_face_is_named_and_never_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "3.6.0"

    monkeypatch.setitem(sys.modules, "datasets", Old)
    assert "pip install 'datasets>=4'" in refused("hugging_face", path="x", image="img")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refused("hugging_face", path="x", image="img")


def test_a_data_set_of_the_hub_is_asked_for_by_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*names: Any, **options: Any) -> Any:
        asked.append((names, options))
        return datasets.load_from_disk(str(saved / "both"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    dataset({"name": "hugging_face", "hub": "me/mine", "config": "small", "revision": "v1", "columns": ["width"]})
    assert asked == [(("me/mine", "small"), {"revision": "v1"})]


# torchvision


@pytest.fixture
def mnist(tmp_path: Path) -> Iterator[Path]:
    """A folder in the format of MNIST: 6 training and 4 test images, all pixels of an image its number."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 6), ("t10k", 4)):
        pixels = np.repeat(np.arange(n, dtype=np.uint8), 28 * 28).tobytes()
        labels = bytes(i % 2 * 7 for i in range(n))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, n, 28, 28) + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, n) + labels)
    yield tmp_path


def test_a_data_set_of_torchvision_by_its_name(mnist: Path) -> None:
    data = dataset({"name": "torchvision", "data_set": "MNIST", "root": str(mnist)})
    assert data.class_names == ("0 - zero", "7 - seven"), "those that occur"
    assert data.train.x.shape == (6, 1, 28, 28) and data.train.x.dtype == torch.uint8
    assert data.train.x[:, 0, 3, 3].tolist() == list(range(6)) and data.train.y.tolist() == [0, 1] * 3
    assert data.test.x[:, 0, 0, 0].tolist() == list(range(4)) and data.test.y.tolist() == [0, 1] * 2
    colour = dataset({"name": "torchvision", "data_set": "MNIST", "root": str(mnist), "size": 9, "mode": "RGB"})
    assert colour.train.x.shape == (6, 3, 9, 9)
    options = {"root": str(mnist), "options": {"train": True}, "test_share": 0.4}
    divided = dataset({"name": "torchvision", "data_set": "MNIST", **options})
    numbers = [part.x[:, 0, 0, 0] for part in (divided.train, divided.test)]
    assert sorted(torch.cat(numbers).tolist()) == list(range(6)) and len(numbers[1]) == 2
    assert torch.equal(divided.test.y, numbers[1].long() % 2)


def test_a_constructor_above_may_take_what_a_class_passes_on(mnist: Path) -> None:
    raw = mnist / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (mnist / "MNIST" / "raw").iterdir():
        name = path.name.replace("train", "emnist-digits-train").replace("t10k", "emnist-digits-test")
        (raw / name).write_bytes(path.read_bytes())
    spec = {"name": "torchvision", "data_set": "EMNIST", "root": str(mnist), "options": {"split": "digits"}}
    data = dataset(spec)
    assert len(data.train.y) == 6 and len(data.test.y) == 4 and data.class_names == ("0", "7")


def test_a_data_set_without_parts_is_divided() -> None:
    options = {"size": 40, "image_size": [3, 8, 8], "num_classes": 2}
    spec = {"name": "torchvision", "data_set": "FakeData", "options": options}
    data, again = dataset(spec), dataset(spec)
    assert data.train.x.shape[1:] == (3, 8, 8) and 6 <= len(data.test.y) <= 10
    assert len(data.train.y) + len(data.test.y) == 40
    assert torch.equal(data.train.x, again.train.x) and data.train.x.float().std() > 30


def test_what_torchvision_cannot_give_is_told(mnist: Path, tmp_path: Path) -> None:
    assert "did you mean 'CIFAR100'" in refused("torchvision", "data_set", data_set="CIFAR-100")
    message = refused("torchvision", "root", data_set="CIFAR10", root=str(tmp_path))
    assert "'download: true' fetches" in message
    assert "root" in refused("torchvision", "options", data_set="CIFAR10")
    wrong = refused("torchvision", "options", data_set="MNIST", root=str(mnist), options={"sise": 3})
    assert "sise" in wrong
    for i, size in enumerate([(4, 4), (5, 5)] * 2):
        image(tmp_path / "mine" / "ab"[i // 2] / f"{i}.png", (0, 0, 0), size)
    assert "say which size" in refused("torchvision", "size", data_set="ImageFolder", root=str(tmp_path / "mine"))


# From a scenario's file


def test_own_data_are_a_stream_by_a_few_lines(tmp_path: Path) -> None:
    arrays(tmp_path, x=np.eye(40), y=np.arange(40) % 4)
    stream = registry.build(
        "scenario", "stream", {"data": {"name": "arrays", "path": str(tmp_path / "my.npz")}, "n_tasks": 2}, seed=0
    )
    assert sorted(stream.class_names) == ["0", "1", "2", "3"]
    assert [len(task.train.y) for task in stream.tasks] == [16, 16]
