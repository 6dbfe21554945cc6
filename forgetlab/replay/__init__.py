"""Replay: the contracts of memories, samplers and rehearsals, and what carries them out.

A memory of your own imports from here.
"""

from forgetlab.batch import Batch
from forgetlab.replay.memory import Memory
from forgetlab.replay.nearest_mean import directions, mean_directions, nearest
from forgetlab.replay.rehearsal import Rehearsal
from forgetlab.replay.sampler import Sampler
from forgetlab.replay.slots import Slots, equal_shares
from forgetlab.training.competing_classes import MASK, among, competes, widened

__all__ = [
    "MASK",
    "Batch",
    "Memory",
    "Rehearsal",
    "Sampler",
    "Slots",
    "among",
    "competes",
    "directions",
    "equal_shares",
    "mean_directions",
    "nearest",
    "widened",
]
