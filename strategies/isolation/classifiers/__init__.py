"""Closed forms on features, in the place of trained heads."""
