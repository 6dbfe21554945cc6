"""Whose module answers a sample when the task is not told."""
