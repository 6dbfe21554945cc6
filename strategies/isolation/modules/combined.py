"""Several modules act together as one, in their order; a list under `isolation:` in a scenario file becomes this.

MAM (He et al. 2022, https://arxiv.org/abs/2110.04366) is `prefix` and `unified` in a list.
"""

from __future__ import annotations

from typing import Annotated

from forgetlab.isolation import Combination
from forgetlab.plugins import Named, Spec, build, register


@register("isolation", "combined")
class Combined(Combination):
    """h = m_n(... m_1(h)): what one module leaves at a site is what the next one finds there."""

    def __init__(self, parts: Annotated[tuple[Spec, ...], Named("isolation")]) -> None:
        specs = [{"name": spec} if isinstance(spec, str) else dict(spec) for spec in parts]
        super().__init__([build("isolation", spec.pop("name"), spec) for spec in specs])
