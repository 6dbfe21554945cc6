"""Layers, biases or heads trained as they are."""
