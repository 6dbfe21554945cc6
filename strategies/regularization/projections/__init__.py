"""Constraints on the gradient."""
