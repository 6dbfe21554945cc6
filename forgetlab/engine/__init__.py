"""Runs carried out: one, all of an experiment, searches, workers, and what is written when a task ends."""
