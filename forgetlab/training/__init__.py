"""One task being learned: network, heads, competing classes, loop, data order, augmentation, pretraining."""
