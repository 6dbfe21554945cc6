"""Batches of one sample, told before a network with BatchNorm meets them: `forgetlab.backbones.batch_norm`."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from forgetlab.backbones.batch_norm import takes_one_sample
from forgetlab.experiment import Experiment, KeyPath, Problem, Strategy, Train
from forgetlab.streams.scenario import Scenario

TRAINING_REFERENCES = ("naive", "joint", "separate")  # the others leave the backbone as it is
WHY = "BatchNorm has no variance of one sample"


def batch_of_one_problems(
    experiment: Experiment, scenario: Scenario, backbone: nn.Module, x: Tensor
) -> Iterator[Problem]:
    """Where training would meet a batch of one that cannot be joined to another, for a backbone that takes none."""
    entries = [(entry, train, place) for entry, train, place in _trained(experiment) if _trains_backbone(entry)]
    alone = [task.name for task in scenario.tasks if len(task.train.y) == 1]
    of_one = {place for _, train, place in entries if train.batch_size == 1}
    if not entries or not (alone or of_one) or takes_one_sample(backbone, x):
        return
    if alone:
        message = f"{WHY}, and {alone[0]} has no more to train on; give each task two samples or more"
        yield ("scenario",), f"{message}, or the model no BatchNorm"
    for place in sorted(of_one, key=len):
        yield place, f"{WHY}; write 'batch_size: 2' or more, or take a model without BatchNorm"


def _trained(experiment: Experiment) -> Iterator[tuple[Strategy, Train, KeyPath]]:
    """Each entry, how it is trained, and where its batch size is written."""
    for entry in experiment.entries:
        place: KeyPath = ("train", "batch_size")
        if "batch_size" in entry.train:
            i = experiment.strategies.index(entry)
            place = ("strategies", i, "train", "batch_size")
        yield entry, experiment.run(entry, experiment.seeds[0]).train, place


def _trains_backbone(entry: Strategy) -> bool:
    """Whether the backbone's own layers are in training mode: under a module or a classifier they are frozen."""
    if entry.reference is not None:
        return entry.reference["name"] in TRAINING_REFERENCES
    return entry.isolation is None and entry.classifier is None
