"""Regularization: the contracts of penalties, gradient projections and regimes.

A penalty of your own imports from here.
"""

from forgetlab.batch import UNKNOWN, Batch
from forgetlab.regularization.keeper import Keeper, Tensors
from forgetlab.regularization.projection import Projection
from forgetlab.regularization.regime import Regime, layers
from forgetlab.regularization.regularizer import Regularizer, mixed, quadratic
from forgetlab.toolbox.path_integral import Walk, scaled
from forgetlab.toolbox.projection_math import chosen, entering, nonnegative, true_logit_gradients
from forgetlab.toolbox.teacher import answers, changing, features, frozen_copy, logits, padded
from forgetlab.training.competing_classes import classes_at_test

__all__ = [
    "UNKNOWN",
    "Batch",
    "Keeper",
    "Projection",
    "Regime",
    "Regularizer",
    "Tensors",
    "Walk",
    "answers",
    "changing",
    "chosen",
    "classes_at_test",
    "entering",
    "features",
    "frozen_copy",
    "layers",
    "logits",
    "mixed",
    "nonnegative",
    "padded",
    "quadratic",
    "scaled",
    "true_logit_gradients",
]
