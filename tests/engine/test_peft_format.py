"""LoRA modules that peft's own library reads, and adapters that it wrote, read as ours."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forgetlab import torchvision_ops
from forgetlab.backbones.attention import use
from forgetlab.backbones.minilm import minilm
from forgetlab.backbones.sites import transformer
from forgetlab.checks import isolation
from forgetlab.checks.backbones import samples, tiny
from forgetlab.config import load
from forgetlab.engine import peft_files, reopened
from forgetlab.engine.all_runs import carry_out
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins import registry
from forgetlab.results.module_files import ModulesError
from forgetlab.results.store import Store
from forgetlab.seeding import generator
from helpers.commands import invoke

FAMILIES = ("bert", "gpt2", "hf_vit", "timm", "vit")
FUSED = ("gpt2", "timm")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """peft speaks of settings that it has inferred."""
    torchvision_ops.ensure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lora(backbone: nn.Module, seed: int = 0, **options: Any) -> Isolation:
    """A module with all of its tensors drawn, so that nothing is 0."""
    module: Isolation = registry.build("isolation", "lora", {"rank": 2, **options})
    module.attach(backbone)
    draw = generator("peft format", seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw)
    return module.eval()


def loaded(backbone: nn.Module, folder: Path) -> nn.Module:
    """A copy of the backbone with peft's own library in it."""
    from peft import PeftModel

    whole = copy.deepcopy(backbone)
    inner, path = transformer(whole)
    model: Any = PeftModel.from_pretrained(inner, folder)  # type: ignore[arg-type] - any module will do
    if not path:
        return model.get_base_model().eval()
    setattr(whole, path, model.get_base_model())
    return whole.eval()


@torch.no_grad()
def features(backbone: nn.Module, module: Isolation, x: Tensor) -> Tensor:
    with module.active(backbone, x):
        return backbone(x)


def gap(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("options", [{}, {"alpha": 7.0, "scaling": "rslora"}, {"start": "pissa"}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_peft_answers_as_we_do(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    backbone = tiny(name)
    module, x = lora(backbone, **options), samples(backbone, 1)
    peft_files.write(tmp_path, backbone, module)
    ours, theirs = features(backbone, module, x), loaded(backbone, tmp_path)(x)
    assert gap(theirs, ours) <= 1e-6
    assert gap(backbone(x), ours) > 1e-2, "the module does nothing"


def test_the_paths_are_those_of_the_model_inside(tmp_path: Path) -> None:
    backbone = tiny("gpt2")
    peft_files.write(tmp_path, backbone, lora(backbone, layers=[-1]))
    told = json.loads((tmp_path / peft_files.CONFIG).read_text(encoding="utf-8"))
    assert (told["target_modules"], told["r"], told["lora_alpha"]) == (["h.1.attn.c_attn"], 4, 4.0)
    assert told["fan_in_fan_out"] and not told["rank_pattern"]
    b = load_file(tmp_path / peft_files.WEIGHTS)["base_model.model.h.1.attn.c_attn.lora_B.weight"]
    assert not b[:16, 2:].any() and not b[16:32].any() and not b[32:, :2].any(), "q, nothing, v"
    assert b[:16, :2].all() and b[32:, 2:].all()


def test_layers_of_several_ranks_are_told_apart(tmp_path: Path) -> None:
    backbone = tiny("gpt2")
    module, x = lora(backbone, sites=["attn.q", "attn.v", "mlp.in"], alpha=3.0), samples(backbone, 1)
    peft_files.write(tmp_path, backbone, module)
    told = json.loads((tmp_path / peft_files.CONFIG).read_text(encoding="utf-8"))
    assert told["rank_pattern"] == {"h.0.mlp.c_fc": 2, "h.1.mlp.c_fc": 2} and told["r"] == 4
    with torch.no_grad():
        assert gap(loaded(backbone, tmp_path)(x), features(backbone, module, x)) <= 1e-6


@torch.no_grad()
def test_minilm_in_transformers_own_hands(tmp_path: Path) -> None:
    """The adapter on a model that transformers made, asked as transformers is asked: no code of ours is in the way."""
    from peft import PeftModel

    ours = minilm((16,), layers=2).eval()
    module, x = lora(ours), torch.randint(1000, 5000, (3, 16), generator=generator("ids"))
    x[0, 9:] = ours.padding
    peft_files.write(tmp_path, ours, module)
    bert = copy.deepcopy(ours.encoder)
    bert.set_attn_implementation("eager")
    theirs = PeftModel.from_pretrained(bert, tmp_path).eval()
    mask = x.ne(ours.padding)
    hidden = theirs(input_ids=x, attention_mask=mask.long()).last_hidden_state
    mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    assert gap(mean, features(ours, module, x)) <= 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_written_is_read_again(tmp_path: Path, name: str) -> None:
    backbone = tiny(name)
    module, x = lora(backbone, alpha=3.0), samples(backbone, 1)
    peft_files.write(tmp_path, backbone, module)
    again = made(backbone, tmp_path)
    assert gap(features(backbone, again, x), features(backbone, module, x)) <= 1e-6
    if name not in FUSED:
        assert all(torch.equal(t, again.state_dict()[key]) for key, t in module.state_dict().items())
        assert again.roles == module.roles


def made(backbone: nn.Module, folder: Path) -> Isolation:
    options, tensors = peft_files.read(folder, backbone)
    module: Isolation = registry.build("isolation", "lora", options)
    module.attach(backbone)
    module.load_state_dict(tensors)
    return module.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": ["query", "dense"], "rank_pattern": {"query": 5}, "alpha_pattern": {"layer.1.*.query": 7}},
        {"target_modules": "encoder.layer.1.attention.self.key", "use_rslora": True, "lora_alpha": 5},
    ],
    ids=["plain", "patterns", "rslora"],
)
def test_what_peft_saved_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    backbone = tiny("bert")
    x, theirs = samples(backbone, 1), copy.deepcopy(backbone)
    adapted: Any = get_peft_model(theirs.encoder, LoraConfig(r=3, **options))  # type: ignore[arg-type]
    draw = generator("theirs")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    adapted.save_pretrained(tmp_path)
    theirs.encoder = adapted.get_base_model()
    use(theirs.encoder)
    with torch.no_grad():
        wanted = theirs.eval()(x)
        assert gap(backbone(x), wanted) > 1e-2
    assert gap(features(backbone, made(backbone, tmp_path), x), wanted) <= 1e-6


def test_an_adapter_of_a_larger_model_is_read(tmp_path: Path) -> None:
    """A classifier holds the encoder below ``bert``, so its paths are longer."""
    backbone = tiny("bert")
    module, x = lora(backbone), samples(backbone, 1)
    peft_files.write(tmp_path, backbone, module)
    tensors = load_file(tmp_path / peft_files.WEIGHTS)
    longer = {key.replace("base_model.model.", "base_model.model.bert."): t for key, t in tensors.items()}
    save_file(longer, tmp_path / peft_files.WEIGHTS)
    assert torch.equal(features(backbone, made(backbone, tmp_path), x), features(backbone, module, x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "holds IA3, not LoRA"),
        ({"use_dora": True}, "more than LoRA's A and B: use_dora"),
        ({"bias": "all"}, "more than LoRA's A and B: bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base model's own weights too"),
    ],
)
def test_what_is_more_than_lora_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    backbone = tiny("bert")
    peft_files.write(tmp_path, backbone, lora(backbone))
    file = tmp_path / peft_files.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(ModulesError, match=words):
        peft_files.read(tmp_path, backbone)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    bert = tiny("bert")
    with pytest.raises(ModulesError, match="is no folder that peft wrote"):
        peft_files.read(tmp_path, bert)
    peft_files.write(tmp_path, bert, lora(bert))
    with pytest.raises(ModulesError, match=r"no layer encoder.layer.0.attention.self.query that"):
        peft_files.read(tmp_path, tiny("gpt2"))
    save_file({"base_model.model.x.lora_embedding_A": torch.ones(1)}, tmp_path / peft_files.WEIGHTS)
    with pytest.raises(ModulesError, match="neither A nor B of a linear layer"):
        peft_files.read(tmp_path, bert)


@pytest.mark.parametrize("name", ["adapter", "prefix", "sd_lora", "combined", "linear_probe"])
def test_other_modules_are_not_written(tmp_path: Path, name: str) -> None:
    network: IsolatedNetwork = isolation.trained(registry.find("isolation", name), "bert")
    with pytest.raises(ModulesError, match=r"LoRA holds a change B A|more than its own B A"):
        peft_files.write(tmp_path / "x", network.backbone, network.module_of(1))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(
        "name: tiny\n"
        "scenario: {name: split_digits, n_tasks: 2}\n"
        "model: {name: vit, width: 16, depth: 1, patch: 4}\n"
        "references: []\n"
        "strategies: [{name: lora, isolation: lora, router: prototype}, {name: adapter, isolation: adapter}]\n",
        encoding="utf-8",
    )
    carry_out(load.load(tmp_path / "file.yaml"), Store(tmp_path / "runs"))
    out, runs = tmp_path / "out", tmp_path / "runs"
    done = invoke("modules", "tiny/lora", "--peft", "1", str(out), "--runs", str(runs))
    assert done.exit_code == 0, done.output
    network, x = reopened.load(Store(runs).folder("tiny", "lora", 0).path), torch.rand(4, 1, 8, 8)
    head = load_file(out / peft_files.HEAD)
    with torch.no_grad():
        logits = nn.functional.linear(loaded(network.backbone, out)(x), head["weight"], head["bias"])
        assert gap(logits, network.answer(1, x)) <= 1e-6
    told = invoke("modules", "tiny/adapter", "--peft", "1", str(out / "x"), "--runs", str(runs))
    assert told.exit_code == 2 and "peft's format of LoRA holds a change B A; Adapter is none" in told.stderr


def test_what_peft_itself_made_is_written_as_it_reads_it(tmp_path: Path) -> None:
    """Its LoRA under our contract, on fused and on single layers; two scales that differ are one in the file."""
    for name in ("bert", "timm"):
        backbone = tiny(name)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["attn.q", "attn.k", "attn.v"]}
        module: Isolation = registry.build("isolation", "peft", {"config": config})
        module.attach(backbone)
        draw = generator("peft format", 3)
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw)
        peft_files.write(tmp_path / name, backbone, module.eval())
        x = samples(backbone, 3)
        with torch.no_grad():
            theirs = loaded(backbone, tmp_path / name)(x)
        assert gap(theirs, features(backbone, module, x)) < 1e-5


def test_what_of_peft_is_no_lora_is_not_written(tmp_path: Path) -> None:
    backbone = tiny("vit")
    module: Isolation = registry.build(
        "isolation", "peft", {"config": {"peft_type": "IA3", "target_modules": ["attn.k"], "feedforward_modules": []}}
    )
    module.attach(backbone)
    with pytest.raises(ModulesError, match="PEFT is none"):
        peft_files.write(tmp_path / "x", backbone, module)
