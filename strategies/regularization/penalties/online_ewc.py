"""Online EWC: Schwarz et al. 2018, Progress & Compress, https://arxiv.org/abs/1805.06370.

One Fisher and one anchor, the last weights, however many tasks there were: old Fishers fade by gamma with each task.
The paper leaves gamma open; 1, no fading, is the default of van de Ven's code (https://arxiv.org/abs/1904.07734).
``merge: mean`` is the merged EWC of FACIL (Masana et al. 2020, https://arxiv.org/abs/2010.15277), whose alpha is gamma:
a mean of Fishers in place of a sum, the same penalty at strength * (1 - gamma) / gamma.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from forgetlab.plugins import OptionError, register
from forgetlab.regularization import Batch, Regularizer, Tensors, mixed, quadratic
from forgetlab.toolbox.fisher import Variant, fisher, trainable


@register("regularizer", "online_ewc")
class OnlineEWC(Regularizer):
    """strength / 2 * sum_i gamma F~_i (theta_i - theta~_i)^2 (equation 8), with F~ <- gamma F~ + F at a task's end.

    Or strength / 2 * sum_i F~_i (theta_i - theta~_i)^2, with F~ <- gamma F~ + (1 - gamma) F, from F~ = 0.
    """

    needs = frozenset({"boundaries", "passes"})
    kept: ClassVar[tuple[str, ...]] = ("fisher", "anchor")  # F~, theta~

    def __init__(
        self,
        strength: NonNegativeFloat = 1e3,
        gamma: Annotated[float, Field(ge=0, le=1)] = 1.0,
        merge: Literal["sum", "mean"] = "sum",
        fisher: Variant = "exact",
    ) -> None:
        if merge == "mean" and gamma == 1:
            raise OptionError("in a mean with gamma 1 no task has a share; FACIL's is 0.5", "gamma")
        super().__init__(strength)
        self.gamma, self.mean = gamma, merge == "mean"
        self.variant: Variant = fisher
        self.fisher, self.anchor = Tensors(), Tensors()

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        return (1 if self.mean else self.gamma) / 2 * quadratic(model, self.fisher, self.anchor)

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        new = fisher(model, data, self.variant, seed=self.seed)
        self.fisher = mixed(self.fisher, self.gamma, new, 1 - self.gamma if self.mean else 1)
        self.anchor = {name: parameter.detach().clone() for name, parameter in trainable(model)}
