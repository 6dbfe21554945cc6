"""Transforms: each against another way to compute it, and what all of them keep."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from forgetlab.data.datasets import Dataset, Samples
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError, OptionsError
from forgetlab.seeding import generator
from forgetlab.streams.build import domains
from forgetlab.streams.scenario import DomainChanges

IMAGES = ("permutation", "rotation", "noise", "blur", "contrast", "colour")
OF_IMAGES_ALONE = IMAGES[1:]
NOT_DRAWN_ANEW = tuple(name for name in IMAGES if name != "noise")  # for other images
CORRUPTIONS = ("noise", "blur", "contrast", "colour")


def built(name: str, n_tasks: int = 3, seed: int = 0, **options: Any) -> DomainChanges:
    return registry.build("transform", name, options, seed=seed, n_tasks=n_tasks)


def last(name: str, x: Tensor, n_tasks: int = 2, **options: Any) -> Tensor:
    return list(built(name, n_tasks, **options).values())[-1](x)


def images(
    n: int = 20, channels: int = 3, size: tuple[int, int] = (12, 12), dtype: torch.dtype = torch.uint8
) -> Tensor:
    x = torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator("test", n, channels))
    return x if dtype == torch.uint8 else x.to(dtype) / 255


def reference(x: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return x.numpy().astype(np.float64)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", IMAGES)
def test_every_domain_keeps_type_and_range_and_the_first_is_unchanged(name: str, dtype: torch.dtype) -> None:
    x = images(dtype=dtype)
    before, changes = x.clone(), built(name, 4)
    found = [change(x) for change in changes.values()]
    assert torch.equal(x, before), "the data themselves stay"
    assert len(found) == 4 and torch.equal(found[0], x)
    for i, one in enumerate(found):
        assert (one.dtype, one.shape) == (x.dtype, x.shape)
        assert one.min() >= 0 and one.max() <= (255 if dtype == torch.uint8 else 1)
        assert not any(torch.equal(one, other) for other in found[:i]), "every domain is another one"
    again = [change(x) for change in built(name, 4).values()]
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("name", NOT_DRAWN_ANEW)
def test_bytes_and_floats_are_changed_alike(name: str) -> None:
    x = images()
    found = last(name, x) / 255
    torch.testing.assert_close(found, last(name, x / 255), atol=0.501 / 255, rtol=0)


@pytest.mark.parametrize("name", NOT_DRAWN_ANEW)
def test_an_image_is_changed_the_same_in_any_company(name: str) -> None:
    x = images(2_100, 1, (6, 6))  # more than are changed at once
    whole = last(name, x)
    some = torch.tensor([5, 999, 1_000, 2_099])
    assert torch.equal(last(name, x[some]), whole[some])


@pytest.mark.parametrize("name", IMAGES)
def test_one_task_alone_is_unchanged_and_no_images_are_no_problem(name: str) -> None:
    (only,) = built(name, 1).values()
    assert torch.equal(only(images()), images())
    assert last(name, images(0)).shape == (0, 3, 12, 12)


@pytest.mark.parametrize("name", OF_IMAGES_ALONE)
@pytest.mark.parametrize(
    "x",
    [torch.zeros(4, 16, dtype=torch.int32), torch.rand(4, 16), torch.rand(4, 12, 29), torch.zeros(4, 1, 3, 3).long()],
    ids=["token ids", "vectors", "series", "whole numbers"],
)
def test_what_is_no_image_is_refused_in_every_domain(name: str, x: Tensor) -> None:
    for change in built(name).values():
        with pytest.raises(OptionError, match=f"^{name} is for .*{tuple(x.shape)[1]}") as refused:
            change(x)
        assert refused.value.option == "transform"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_floats_that_are_no_shades_are_refused(name: str) -> None:
    for x in (images(dtype=torch.float32) * 2, images(dtype=torch.float32) - 0.5):
        with pytest.raises(OptionError, match=r"floats in \[0, 1\]"):
            last(name, x)


def test_token_ids_are_not_shuffled_but_series_and_vectors_are() -> None:
    with pytest.raises(OptionError, match="permutation"):
        last("permutation", torch.zeros(4, 16, dtype=torch.int32))
    for x in (torch.randn(5, 16), torch.randn(5, 12, 29)):
        found = last("permutation", x)
        assert not torch.equal(found, x)
        assert torch.equal(found.flatten(1).sort().values, x.flatten(1).sort().values)


def test_a_permutation_is_that_of_the_seed_and_the_task() -> None:
    x = images(channels=1)
    for seed in (0, 1):
        order = torch.randperm(144, generator=generator("permutation", seed, 2))
        assert torch.equal(list(built("permutation", seed=seed).values())[2](x).flatten(1), x.flatten(1)[:, order])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_quarter_turns_are_exact(dtype: torch.dtype) -> None:
    x = images(dtype=dtype)
    changes = built("rotation", 4, max_angle=270.0)
    assert list(changes) == ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]
    for quarters, change in enumerate(changes.values()):
        torch.testing.assert_close(change(x), x.rot90(quarters, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(15, 15), (12, 20)])
def test_a_small_turn_is_that_of_scipy(size: tuple[int, int]) -> None:
    x = images(size=size, dtype=torch.float64)
    found = reference(last("rotation", x, max_angle=20.0))
    wanted = ndimage.rotate(reference(x), 20.0, axes=(2, 3), reshape=False, order=1)
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(found[inside], wanted[inside], atol=1e-6)
    against = ndimage.rotate(reference(x), -20.0, axes=(2, 3), reshape=False, order=1)
    assert np.abs(found[inside] - against[inside]).max() > 0.1, "the other way round is another image"


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_blur_is_that_of_scipy(sigma: float) -> None:
    x = images(size=(12, 17), dtype=torch.float64)
    radius = int(np.ceil(4 * sigma))
    wanted = ndimage.gaussian_filter(reference(x), sigma, mode="nearest", axes=(2, 3), radius=radius)
    np.testing.assert_allclose(reference(last("blur", x, max_sigma=sigma)), wanted, atol=1e-12)


def test_blur_rises_evenly() -> None:
    x = images(dtype=torch.float64)
    changes = built("blur", 5, max_sigma=2.0)
    assert list(changes) == ["blur 0", "blur 0.5", "blur 1", "blur 1.5", "blur 2"]
    assert torch.equal(changes["blur 0.5"](x), last("blur", x, max_sigma=0.5))


def test_noise_has_the_deviation_that_its_name_says() -> None:
    grey = torch.full((1_500, 1, 16, 16), 0.5)
    changes = built("noise", 3, max_deviation=0.1)
    assert list(changes) == ["noise 0", "noise 0.05", "noise 0.1"]
    for name, deviation in (("noise 0.05", 0.05), ("noise 0.1", 0.1)):
        drawn = changes[name](grey) - grey
        assert abs(float(drawn.mean())) < 4 * deviation / len(drawn.flatten()) ** 0.5
        assert float(drawn.std()) == pytest.approx(deviation, rel=0.01)
        assert float(((drawn / deviation) ** 4).mean()) == pytest.approx(3.0, rel=0.05), "as a Gaussian's"
        for first, second in ((drawn[:500], drawn[1_000:]), (drawn[..., 1:], drawn[..., :-1])):
            assert abs(float((first * second).mean())) < 0.02 * deviation**2, "independent"
    rounded = changes["noise 0.1"](torch.full((500, 1, 16, 16), 128, dtype=torch.uint8))
    assert float(rounded.float().std()) / 255 == pytest.approx(0.1, rel=0.01)


def test_noise_differs_between_seeds_tasks_and_parts_of_the_data() -> None:
    train, test = images(400, 1, dtype=torch.float32) / 2 + 0.25, images(401, 1, dtype=torch.float32) / 2 + 0.25
    drawn = [change(train) - train for change in built("noise", max_deviation=0.02).values()][1:]
    drawn += [last("noise", train, seed=1, max_deviation=0.02) - train]
    drawn += [last("noise", test, max_deviation=0.02)[:400] - test[:400]]
    together = torch.corrcoef(torch.stack([one.flatten() for one in drawn]))
    assert (together - torch.eye(4)).abs().max() < 0.03


def test_contrast_is_a_share_of_the_distance_to_the_mean() -> None:
    x = images(dtype=torch.float64)
    changes = built("contrast", 5, min_contrast=0.2)
    assert list(changes) == ["contrast 1", "contrast 0.8", "contrast 0.6", "contrast 0.4", "contrast 0.2"]
    for share, change in zip((1.0, 0.8, 0.6, 0.4, 0.2), changes.values(), strict=True):
        for image, found in zip(reference(x), reference(change(x)), strict=True):
            for channel, one in zip(image, found, strict=True):
                np.testing.assert_allclose(one, channel.mean() + share * (channel - channel.mean()), atol=1e-12)


@pytest.mark.parametrize("option", [{"min_contrast": 0.0}, {"min_contrast": 1.0}])
def test_contrast_leaves_something_to_see(option: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="min_contrast"):
        built("contrast", 2, **option)


def test_hues_are_turned_as_the_standard_library_does_it() -> None:
    x = images(4, size=(5, 5), dtype=torch.float64)
    x[0, :, 0, :3] = torch.tensor([0.0, 1.0, 0.3]).double()  # black, white and grey pixels among others
    for task, change in enumerate(built("colour", 5).values()):
        for image, found in zip(x, change(x), strict=True):
            for old, new in zip(image.flatten(1).T.tolist(), found.flatten(1).T.tolist(), strict=True):
                hue, saturation, value = colorsys.rgb_to_hsv(*old)
                wanted = colorsys.hsv_to_rgb((hue + task / 5) % 1, saturation, value)
                assert new == pytest.approx(wanted, abs=1e-9)


def test_a_third_of_the_circle_exchanges_the_channels() -> None:
    x = images()
    assert torch.equal(last("colour", x, 3), x.roll(-1, 1)), "two thirds: red becomes blue"
    assert torch.equal(list(built("colour", 3).values())[1](x), x.roll(1, 1)), "one third: red becomes green"


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_are_tinted_and_rgb_in_every_domain(channels: int) -> None:
    grey = images(30, 1, dtype=torch.float32)
    x = grey if channels == 1 else grey.repeat(1, 3, 1, 1)
    changes = built("colour", 3)
    assert list(changes) == ["own colours", "hue 120 degrees", "hue 240 degrees"]
    first, green, blue = (change(x) for change in changes.values())
    dark = torch.zeros_like(grey)
    assert torch.equal(first, torch.cat([grey, grey, grey], dim=1))
    assert torch.equal(green, torch.cat([dark, grey, dark], dim=1))
    assert torch.equal(blue, torch.cat([dark, dark, grey], dim=1))


def test_other_channels_than_grey_or_rgb_have_no_hue() -> None:
    with pytest.raises(OptionError, match="grey or RGB"):
        last("colour", images(channels=4))


@pytest.mark.parametrize("name", IMAGES)
def test_a_stream_of_domains_is_made(name: str) -> None:
    y = torch.arange(20) % 2
    data = Dataset(Samples(images(20, 1), y), Samples(images(10, 1), y[:10]), ("a", "b"))
    stream = domains(data, built(name), "domain-incremental")
    assert [task.name for task in stream.tasks] == list(built(name))
    assert stream.input_shape == ((3 if name == "colour" else 1), 12, 12)
    assert stream.checksum() == domains(data, built(name), "domain-incremental").checksum()
    assert {task.test.x.shape for task in stream.tasks} == {(10, *stream.input_shape)}
