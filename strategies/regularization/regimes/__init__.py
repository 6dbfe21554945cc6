"""Rates, and what is done to the weights between tasks."""
