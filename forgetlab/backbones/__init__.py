"""Pretrained backbones, read from the packages that hold their weights."""
