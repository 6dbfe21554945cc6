"""Shares of one network's weights."""
