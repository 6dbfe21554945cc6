"""What cannot be carried out is refused where it stands in the file, with the reason, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forgetlab.config import load
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.plugins import registry
from helpers.runs import told

BEGIN = "name: x\nscenario: split_digits\nmodel: {name: mlp, hidden: [8]}\n"
LORA = "strategies:\n  - isolation: {name: lora, sites: [attn.q, mlp.in]}\n"
PLUGIN = '''
import torch
from torch import nn
from forgetlab.isolation import Isolation
from forgetlab.plugins import OptionError, register

@register("isolation", "wrong_size")
class WrongSize(Isolation):
    def __init__(self) -> None:
        super().__init__(["mlp.in"])

    def make(self, site):
        return nn.Linear(site.in_dim, site.out_dim + 1)

    def after(self, part, site, x, y):
        return y + part(x)

@register("isolation", "wider")
class Wider(Isolation):
    def __init__(self) -> None:
        super().__init__(["block"])

    def make(self, site):
        return nn.Identity()

    def after(self, part, site, x, y):
        return torch.cat([y, y], 1)

@register("isolation", "mistaken")
class Mistaken(Isolation):
    def __init__(self) -> None:
        super().__init__(["mlp.in"])

    def make(self, site):
        return nn.Linear(site.width, 1)

@register("model", "flat")
class Flat(nn.Module):
    """Asks for the values of tensors as it is built, as timm's transformers do."""

    def __init__(self, input_shape, says: int = 64) -> None:
        super().__init__()
        self.drop, self.n_features = [x.item() for x in torch.linspace(0, 1, 3)], says

    def forward(self, x):
        return x.flatten(1)

@register("model", "one_channel")
class OneChannel(nn.Module):
    n_features = 8

    def __init__(self, input_shape) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, x):
        return self.layer(x)

@register("memory", "even")
def even(capacity: int = 3):
    if capacity % 2:
        raise OptionError(f"{capacity} is odd", "capacity")

@register("projection", "cone")
class Cone:
    """A constraint by one of its own."""

    needs = frozenset()
    references = "none"
'''


@pytest.fixture
def plugin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line that names a file of plug-ins; what it registers is forgotten after the test."""
    registry.discover()
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(registry, "_files", {})
    (tmp_path / "mine.py").write_text(PLUGIN, encoding="utf-8")
    return "plugins: [./mine.py]\n"


def test_more_tasks_than_classes(tmp_path: Path) -> None:
    text = BEGIN.replace("split_digits", "{name: split_digits, n_tasks: 11}")
    assert told(tmp_path, text) == [("11}", "11 tasks cannot be cut from 10 classes")]


def test_a_site_that_the_backbone_has_not(tmp_path: Path) -> None:
    (problem,) = told(tmp_path, BEGIN + LORA)
    assert problem == ("[attn.q, mlp.in]}", "a mlp has no 'attn.q' to attach to; it has: whole, mlp.in, block")


def test_patches_that_do_not_divide_an_image(tmp_path: Path) -> None:
    text = BEGIN.replace("{name: mlp, hidden: [8]}", "{name: vit, patch: 3}")
    assert told(tmp_path, text + LORA) == [("3}", "images of 8 x 8 do not divide into patches of 3")]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    strategies = LORA + "  - avalanche: {plugin: EWCPlugn, ewc_lambda: 1}\n"
    problems = told(tmp_path, BEGIN + strategies + "device: cuda:77\n")
    assert [message.split(";")[0] for _, message in problems] == [
        "a mlp has no 'attn.q' to attach to",
        "Avalanche has no plug-in 'EWCPlugn'",
        "this machine has no 'cuda:77' device",
    ]


@pytest.mark.parametrize(
    ("entry", "place", "reason"),
    [
        ("{strategy: Cumulatve}", "Cumulatve}", "Avalanche has no strategy 'Cumulatve'; did you mean 'Cumulative'?"),
        ("{plugin: LwfPlugin}", "LwfPlugin}", "Avalanche has no plug-in 'LwfPlugin'; did you mean 'LwFPlugin'?"),
        ("{plugin: EWCPlugin, ewc_lambda: 1, mods: x}", "x}", "EWCPlugin: unknown key 'mods'; did you mean 'mode'?"),
        ("{plugin: EWCPlugin, ewc_lambda: 1, mode: x}", "EWCPlugin, ", "EWCPlugin: Mode must be separate or online."),
    ],
)
def test_avalanche(tmp_path: Path, entry: str, place: str, reason: str) -> None:
    ((there, message),) = told(tmp_path, BEGIN + f"strategies:\n  - avalanche: {entry}\n")
    assert there.startswith(place)
    assert message.startswith(reason)


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_: object, device: str) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "zeros", zeros)
    assert ("cuda", "this machine has no 'cuda' device; use auto or cpu") in told(tmp_path, BEGIN + "device: cuda\n")


@pytest.mark.parametrize(
    ("lines", "place", "message"),
    [
        (
            "strategies:\n  - isolation: wrong_size\n",
            "wrong_size",
            "wrong_size does not fit a mlp: The size of tensor a (8) must match the size of tensor b (9) "
            "at non-singleton dimension 1 (mine.py, line 16)",
        ),
        (
            "strategies:\n  - isolation: wider\n",
            "wider",
            "wider does not fit a mlp: features of (2, 16) where the backbone alone gives (2, 8)",
        ),
        (
            "strategies:\n  - isolation: mistaken\n",
            "mistaken",
            "mistaken does not fit a mlp: 'Site' object has no attribute 'width' (mine.py, line 35)",
        ),
        (
            "strategies:\n  - replay: {memory: {name: even, capacity: 3}}\n",
            "3}}",
            "3 is odd",
        ),
        (
            "strategies:\n  - replay: {memory: reservoir, capacity: 5, projection: cone}\n",
            "cone}",
            "this one needs no old samples: write it under 'regularization:'",
        ),
        (
            "strategies:\n  - replay: {memory: reservoir, capacity: 5, depth: 2}\n",
            "2}",
            "kept samples can enter no block of this model",
        ),
        (
            "strategies:\n  - replay: {general: {ratio: 0.5}}\n",
            "{ratio: 0.5}}",
            "nothing was pretrained that could be general: name its 'data'",
        ),
        (
            "strategies:\n  - {isolation: hat, shared: true}\n",
            "hat, shared: true}",
            "this module is made for one task and cannot be shared: it acts when a task begins or ends",
        ),
    ],
)
def test_a_method_that_cannot_work(tmp_path: Path, plugin_file: str, lines: str, place: str, message: str) -> None:
    assert told(tmp_path, BEGIN + lines + plugin_file) == [(place, message)]


@pytest.mark.parametrize(
    ("model", "problems"),
    [
        ("flat", []),
        (
            "{name: flat, says: 9}",
            [("{name: flat, says: 9}", "flat makes (2, 64) of 2 samples; with its n_features it should be (2, 9)")],
        ),
        (
            "one_channel",
            [
                (
                    "one_channel",
                    "one_channel does not work: mat1 and mat2 shapes cannot be multiplied (16x8 and 3x8) "
                    "(mine.py, line 57)",
                )
            ],
        ),
    ],
)
def test_a_model_is_tried(tmp_path: Path, plugin_file: str, model: str, problems: list[tuple[str, str]]) -> None:
    assert told(tmp_path, BEGIN.replace("{name: mlp, hidden: [8]}", model) + plugin_file) == problems


def test_the_global_generator_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert told(tmp_path, BEGIN + LORA.replace("attn.q, ", "")) == []
    assert torch.equal(torch.rand(4), expected)


def test_what_is_wrong_with_nested_data_is_told_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "birds.csv").write_text("species,year,beak\nowl,1,2.0\nwren,1,3.0\n")
    path = tmp_path / "scenario.yaml"
    data = "{name: table, path: birds.csv, label: specis}"
    path.write_text(f"name: x\nmodel: mlp\nscenario:\n  name: stream\n  data: {data}\n")
    with pytest.raises(FileErrors) as refused:
        load.load(path)
    assert "scenario.yaml:5:47: birds.csv has no column 'specis'; did you mean 'species'?" in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "entry", "place"),
    [
        ("memory", "replay: {memory: {name: even, capacity: 4}}", "{name: even, capacity: 4}"),
        ("regime", "regularization: slowly", "slowly"),
        ("sampler", "replay: {memory: {name: reservoir, capacity: 4}, sampler: slowly}", "slowly"),
    ],
)
def test_a_function_where_only_a_class_can_be_asked(
    tmp_path: Path, plugin_file: str, kind: str, entry: str, place: str
) -> None:
    if kind != "memory":
        function = f'\n@register("{kind}", "slowly")\ndef slowly():\n    return None\n'
        (tmp_path / "mine.py").write_text(PLUGIN + function, encoding="utf-8")
    name = "even" if kind == "memory" else "slowly"
    ((found, message),) = told(tmp_path, f"{BEGIN}{plugin_file}strategies:\n  - {entry}\n")
    assert found.startswith(place)
    assert message.startswith(f"{name} is a function, and a {kind} is a class: 'forgetlab new {kind} NAME' writes one")
