"""The scenario file, from text to an experiment."""
