"""Vectors in front of what attention reads."""
