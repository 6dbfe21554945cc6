"""P-tuning: Liu et al. 2021, GPT Understands, Too, https://arxiv.org/abs/2103.10385.

The encoder is the authors', or the MLP that Hugging Face's peft has by default; only what it gives is kept. The
authors' tokens stand in a cloze around the text; here all stand in front of what enters the first block, and a head
answers. Anchors are rows of the embedding table, between the tokens in equal distances, and stay as they are.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, OptionError, Site
from forgetlab.plugins import register


@register("isolation", "p_tuning")
class PTuning(Isolation):
    """X' = [h_1 .. h_i; e(a); h_i+1 .. h_n; X], h = MLP(LSTM(P)) in both directions; a: anchors, given by token id."""

    identity_at_birth, tokens_stay = False, True

    def __init__(
        self, length: PositiveInt = 20, encoder: Literal["lstm", "mlp"] = "lstm", anchors: tuple[int, ...] = ()
    ) -> None:
        super().__init__(("tokens",), layers=(0,))
        self.length, self.encoder, self.anchors = length, encoder, anchors

    def attach(self, backbone: nn.Module) -> None:
        super().attach(backbone)
        tables = [module.weight.detach() for module in backbone.modules() if isinstance(module, nn.Embedding)]
        table = max(tables, key=len, default=torch.empty(0, 0))  # smaller ones are of positions and kinds of text
        if not all(0 <= token < len(table) for token in self.anchors):
            raise OptionError(f"they are among the backbone's {len(table)} tokens, counted from 0", "anchors")
        self.register_buffer("anchored", table[list(self.anchors)], persistent=False)

    def make(self, site: Site) -> nn.Module:
        d, lstm = site.in_dim, self.encoder == "lstm"
        self.lstm = nn.LSTM(d, d // 2, num_layers=2, bidirectional=True) if lstm else None
        first = [nn.Linear(d // 2 * 2, d)] if lstm else [nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)]
        self.mlp: nn.Module = nn.Sequential(*first, nn.ReLU(), nn.Linear(d, d))
        return nn.ParameterDict({"rows": torch.randn(self.length, d)})

    def encoded(self, part: Any) -> Tensor:
        return self.mlp(part["rows"] if self.lstm is None else self.lstm(part["rows"])[0])

    def tokens(self, part: Any, site: Site, h: Tensor) -> Tensor:
        first, *others = self.encoded(part).tensor_split(len(self.anchors) + 1)
        anchors = self.get_buffer("anchored").unsqueeze(1)
        return torch.cat([first, *(rows for pair in zip(anchors, others, strict=True) for rows in pair)])

    def materialise(self) -> None:
        rows = {key: self.encoded(part).detach() for key, part in self.parts.items()}
        self.parts = nn.ModuleDict({key: nn.ParameterDict({"rows": kept}) for key, kept in rows.items()})
        self.lstm, self.mlp = None, nn.Identity()
