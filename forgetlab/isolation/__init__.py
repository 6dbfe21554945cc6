"""Parameter isolation: the contracts of modules, routers, mergers and classifiers, and what carries them out.

A module of your own imports from here: `Isolation` and what it is built of.
"""

from forgetlab.backbones.sites import Layers, LinearRole, Role, Site
from forgetlab.batch import Batch
from forgetlab.isolation.attachment import leaving_last, wrapped
from forgetlab.isolation.classifier import (
    FromSums,
    RandomFeatures,
    add_samples,
    best_strength,
    count_classes,
    means,
    one_hot,
    ridge,
    wider,
)
from forgetlab.isolation.combined_module import Combination
from forgetlab.isolation.layer_copies import own_buffers, own_layers, own_tensors
from forgetlab.isolation.merger import Changes, Merger, by_place
from forgetlab.isolation.module import Isolation, Shared, library
from forgetlab.isolation.quantisation import dequantised, quantised, quantised_linear
from forgetlab.isolation.router import ConfidenceRouter, Router
from forgetlab.plugins.options import OptionError
from forgetlab.training.competing_classes import MASK

__all__ = [
    "MASK",
    "Batch",
    "Changes",
    "Combination",
    "ConfidenceRouter",
    "FromSums",
    "Isolation",
    "Layers",
    "LinearRole",
    "Merger",
    "OptionError",
    "RandomFeatures",
    "Role",
    "Router",
    "Shared",
    "Site",
    "add_samples",
    "best_strength",
    "by_place",
    "count_classes",
    "dequantised",
    "leaving_last",
    "library",
    "means",
    "one_hot",
    "own_buffers",
    "own_layers",
    "own_tensors",
    "quantised",
    "quantised_linear",
    "ridge",
    "wider",
    "wrapped",
]
