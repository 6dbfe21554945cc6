"""What other frameworks call the keys of a scenario file, and what they are called here."""

from __future__ import annotations

from collections.abc import Collection, Mapping

STEPS = "write 'schedule: {name: steps, at: [49, 63], factor: 0.1}'"
COSINE = "write 'schedule: {name: cosine, end: 0, warmup: 0.1}'"
ALL_SCHEDULES = f"{STEPS}, or {COSINE.removeprefix('write ')}"
CLIP = "write 'clip: 1.0', the longest gradient of a step"
BATCH = "write 'batch_size'"
NO_WORKERS = "none is needed: batches are slices of tensors that are in memory, or mapped from disk"
BUDGET = "how long a task is trained stands in 'protocol: {budget: {epochs: 5}}', or '{updates: 500}'"
NO_ACCUMULATION = "gradients of several batches are not added up here yet; take a larger 'batch_size'"
NO_PRECISION = "training is in float32; other precisions are not here yet"

OF_TRAIN: Mapping[str, str] = {
    **dict.fromkeys(("milestones", "lr_steps", "schedule_step", "lr_milestones", "step_size"), STEPS),
    **dict.fromkeys(("lr_decay", "lrate_decay", "gamma", "lr_factor"), STEPS),
    **dict.fromkeys(("lr_min", "min_lr", "eta_min", "T_max"), COSINE),
    **dict.fromkeys(("warmup", "warmup_ratio", "warmup_steps", "warmup_epochs"), COSINE),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_scheduler_type", "sched"), ALL_SCHEDULES),
    **dict.fromkeys(("gradient_clip", "max_grad_norm", "clip_grad", "clip_norm", "grad_clip", "clipgrad"), CLIP),
    **dict.fromkeys(("grad_accumulation", "gradient_accumulation_steps", "accumulate"), NO_ACCUMULATION),
    **dict.fromkeys(("precision", "fp16", "bf16", "amp"), NO_PRECISION),
    **dict.fromkeys(("num_workers", "workers", "dataloader_num_workers", "pin_memory"), NO_WORKERS),
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs", "nepochs", "updates", "iters", "budget"), BUDGET),
    **dict.fromkeys(("head_learning_rate", "classifier_lr", "lr_head"), "write 'head_lr'"),
    **dict.fromkeys(("learning_rate", "lrate", "init_lr"), "write 'lr'"),
    **dict.fromkeys(("bs", "minibatch_size", "train_mb_size", "per_device_train_batch_size"), BATCH),
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2"), "write 'betas: [0.9, 0.999]'"),
    **dict.fromkeys(("wd", "optim_wd"), "write 'weight_decay'"),
    "optim": "write 'optimizer'",
    "nesterov": "sgd is here with plain 'momentum' alone",
    "augmentation": "write 'augment'",
    "transforms": "write 'augment', such as 'augment: {crop: 4, flip: horizontal}'",
}
OF_FILE: Mapping[str, str] = {
    "optimizer": "it stands in 'train: {optimizer: ..., lr: ...}'",
    "lr": "it stands in 'train: {lr: ...}'",
    "batch_size": "it stands in 'train: {batch_size: ...}'",
    "schedule": "it stands in 'train: {schedule: {name: cosine}}'",
    "budget": BUDGET,
    "epochs": BUDGET,
    "dataset": "write 'scenario', a name of 'forgetlab list scenario', or one with its 'data'",
    "seed": "write 'seeds: [0]'",
    "methods": "write 'strategies'",
    "num_workers": NO_WORKERS,
}
SPELLINGS: Mapping[str, Mapping[str, str]] = {"": OF_FILE, "train": OF_TRAIN}


def spelt_here(key: str, within: str, valid: Collection[str]) -> str | None:
    """How a key that others have is said here; None where it is none of theirs."""
    return None if key in valid else SPELLINGS.get(within, {}).get(key)
