"""One task being learned: network and heads, competing classes, the loop, augmentation, pretraining."""
