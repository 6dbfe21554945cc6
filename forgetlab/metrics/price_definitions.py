"""What each price means."""

from __future__ import annotations

from collections.abc import Mapping

PRICES: Mapping[str, str] = {  # name -> definition; a mean over tasks where each has its own
    "trainable": "numbers that the optimizer moves while a task is learned, its head's too; the most of any task",
    "task_bytes": "bytes that must be kept for one task, its module and its head, without what tasks share",
    "task_share": "task_bytes over the bytes of the backbone",
    "shared_bytes": "bytes kept for all tasks together beside the backbone: pools, masks, statistics, or one module",
    "changed": "numbers of the backbone that differ while a task's module is active; 0 where it only adds",
    "changed_share": "changed over the backbone's numbers",
    "rank": "the largest numerical rank of a changed weight matrix; full for any dense change, by rounding alone",
    "rank_90": "the largest rank, over the changed weight matrices, that holds 90 % of the change's energy "
    "(squared singular values)",
    "flops_forward": "operations of one sample's forward pass in training: matrix products, convolutions, attention; "
    "a multiplication and the addition after it are two",
    "flops_backward": "the same for the gradient by what is trained",
    "saved_activation_bytes": "bytes per sample that a training step keeps for its backward pass, each storage once, "
    "without parameters",
    "latency": "time to answer under the first task's module over that of the bare backbone, batches of 8: both are "
    "called in turn, and of each the shortest call counts, in processor time (with a GPU by the wall clock, its queue "
    "emptied before and after)",
    "seconds": "processor time of the whole run, of all threads of its process: training, evaluation and what is "
    "written; work on a GPU is not in it, but waiting for that is. timing.json holds it as processor_seconds, "
    "beside wall_seconds. Of a run that an earlier version made only the wall clock is known, so it has none",
    "backbone_parameters": "numbers of the backbone",
}
